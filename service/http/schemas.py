"""What a client asks (query) and gets (JSON)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.classifier import top
from taillift.models.bundle.device import Device, Provider
from taillift.models.bundle.ensemble import Ensemble, ExitRule
from taillift.models.bundle.manifest import BackboneInfo, ClassInfo, Evaluation, Manifest, Method
from taillift.models.bundle.posterior import Prior, group_confidence
from taillift.models.bundle.prediction_sets import LEAST, MOST, PredictionSets
from taillift.models.bundle.predictor import Predictor
from taillift.models.bundle.review import Decision, Review
from taillift.models.bundle.schema import GROUPS, Group, Precision, Preprocessing
from taillift.models.bundle.temperature import Calibration
from taillift.service.problems import MalformedError, ProblemDocument

MOST_NAMED: Final = 100
# Labels beyond which the nearest one is not looked for: it would keep requests waiting.
MOST_COMPARED: Final = 1_000
CONFIDENCE: Final = "probability, 0 to 1; calibrated where GET /model says so"


class InferenceQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ensemble: Ensemble | None = Field(
        None,
        description="off: the centre view only; full: the mean of five views; adaptive: the others "
        "only where they are worth their cost. By default adaptive where GET /model has an exit "
        "rule, else full",
    )
    prior: str = Field(
        Prior.UNIFORM,
        description="how often the classes are expected: `uniform`, equally; `train`, as in the "
        "training images; or a name from the service's priors, which GET /model lists",
    )


class ClassifyQuery(InferenceQuery):
    top_k: int = Field(
        5,
        ge=1,
        le=MOST_NAMED,
        description="how many classes to name, the surest first; of all: POST /confidence",
    )
    coverage: float | None = Field(
        None,
        ge=LEAST,
        le=MOST,
        description="add to each result a set of labels that holds the right one so often, in "
        "rare classes too",
    )


class ConfidenceQuery(InferenceQuery):
    classes: list[str] = Field([], description="labels to answer for; none: all")


class ModelId(BaseModel):
    name: str
    version: str


class LabelConfidence(BaseModel):
    label: str
    group: Group
    confidence: float = Field(description=CONFIDENCE)
    count: int = Field(description="training images of the class")


class ImageResult(BaseModel):
    filename: str | None


class FailedImage(ImageResult):
    error: ProblemDocument


class ClassifiedImage(ImageResult):
    views: int = Field(description="views that the answer took")
    predictions: list[LabelConfidence]
    decision: Decision | None = Field(
        None,
        description="accept: the errors among such answers are certified, or else only estimated, "
        "to stay within the risk in GET /model (`review`); "
        "review: a person should look at it; null: the bundle or the prior does not tell",
    )
    set: list[str] | None = Field(
        None, description="asked for with `coverage`; the most probable first"
    )


class ClassConfidence(BaseModel):
    label: str
    group: Group
    confidence: float = Field(description=CONFIDENCE)


class ConfidenceOfImage(ImageResult):
    views: int = Field(description="views that the answer took")
    classes: list[ClassConfidence]
    groups: dict[Group, float] = Field(description="sums over all classes of each group")


class InferenceAnswer(BaseModel):
    model: ModelId
    ensemble: Ensemble
    prior: str


class Classification(InferenceAnswer):
    """`results` are in the order of the images."""

    results: list[ClassifiedImage | FailedImage]


class Confidence(InferenceAnswer):
    """`results` are in the order of the images."""

    results: list[ConfidenceOfImage | FailedImage]


class ModelSummary(BaseModel):
    """The manifest in short, and what runs it."""

    name: str
    version: str
    taillift_version: str
    backbone: BackboneInfo
    method: Method
    classes: int
    groups: dict[Group, int] = Field(description="classes in each group")
    preprocessing: Preprocessing
    calibrated: bool
    calibration: Calibration | None
    exit: ExitRule | None = Field(description="of ensemble=adaptive")
    sets: PredictionSets | None = Field(description="of coverage=")
    review: Review | None = Field(description="behind each result's decision")
    evaluation: Evaluation | None
    notes: list[str] = Field(description="why the parts that are absent are")
    priors: list[str] = Field(description="that may be asked for")
    provider: Provider
    precision: Precision
    precision_reason: str
    made: str | None = Field(
        description="how this precision's graph was made and how near it is to fp32's; null for it"
    )


class Status(BaseModel):
    status: Literal["alive", "ready"]


def model_id(manifest: Manifest) -> ModelId:
    return ModelId(name=manifest.name, version=manifest.version)


def classified(
    filename: str | None,
    probabilities: Doubles,
    classes: Sequence[ClassInfo],
    top_k: int,
    views: int,
    decision: Decision | None = None,
    members: Sequence[int] | None = None,
) -> ClassifiedImage:
    """The `top_k` surest of one image's probabilities [C], and the `members` of its set."""
    predictions = [
        LabelConfidence(
            label=classes[index].label,
            group=classes[index].group,
            confidence=float(probabilities[index]),
            count=classes[index].count,
        )
        for index in top(probabilities, top_k)
    ]
    return ClassifiedImage(
        filename=filename,
        views=views,
        predictions=predictions,
        decision=decision,
        set=None if members is None else [classes[index].label for index in members],
    )


def confidences(
    filename: str | None,
    probabilities: Doubles,
    manifest: Manifest,
    chosen: Sequence[int],
    views: int,
) -> ConfidenceOfImage:
    """One image's probabilities [C] of the `chosen` classes and of every group."""
    return ConfidenceOfImage(
        filename=filename,
        views=views,
        classes=[
            ClassConfidence(
                label=manifest.classes[index].label,
                group=manifest.classes[index].group,
                confidence=float(probabilities[index]),
            )
            for index in chosen
        ],
        groups=group_confidence(probabilities, manifest),
    )


def confidence_json(
    answer: InferenceAnswer, results: Iterable[ConfidenceOfImage | FailedImage]
) -> bytes:
    """`answer` and `results` as the JSON of a `Confidence`.

    Each result is written before the next is made: as objects they take many times the memory.
    """
    head = answer.model_dump_json().removesuffix("}").encode()
    texts = b",".join([one.model_dump_json().encode() for one in results])
    return b'%s,"results":[%s]}' % (head, texts)


def chosen_classes(labels: Sequence[str], manifest: Manifest) -> Sequence[int]:
    """Indices of `labels`, of every class where there are none.

    Raises `MalformedError` where a class is not known.
    """
    known = {label: index for index, label in enumerate(manifest.labels)}
    for label in labels:
        if label not in known:
            raise MalformedError(unknown_class(label, manifest.labels))
    return [known[label] for label in labels] or range(len(known))


def unknown_class(label: str, labels: Sequence[str]) -> str:
    """Names the nearest of `labels`, where they are not too many."""
    near = get_close_matches(label, labels, n=1) if len(labels) <= MOST_COMPARED else []
    hint = f"did you mean `{near[0]}`?" if near else "GET /classes lists them"
    return f"unknown class `{label[:80]}`: {hint}"


def model_summary(
    predictor: Predictor, device: Device, priors: Sequence[str], reason: str
) -> ModelSummary:
    manifest, variant = predictor.manifest, predictor.variant
    groups = Counter(info.group for info in manifest.classes)
    return ModelSummary(
        name=manifest.name,
        version=manifest.version,
        taillift_version=manifest.taillift_version,
        backbone=manifest.backbone,
        method=manifest.method,
        classes=len(manifest.classes),
        groups={group: groups[group] for group in GROUPS},
        preprocessing=manifest.preprocessing,
        calibrated=variant.calibration is not None,
        calibration=variant.calibration,
        exit=variant.exit,
        sets=variant.sets,
        review=variant.review,
        evaluation=variant.evaluation,
        notes=list(variant.notes),
        priors=list(priors),
        provider=device.provider,
        precision=predictor.precision,
        precision_reason=reason,
        made=variant.made,
    )


def known_prior(name: str, priors: Mapping[str, Doubles]) -> Doubles:
    """The log shares [C] of a prior; raises `MalformedError` with the nearest name."""
    if name not in priors:
        near = get_close_matches(name, priors, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(priors)}"
        raise MalformedError(f"query parameter `prior`: `{name[:80]}` is not known; {hint}")
    return priors[name]
