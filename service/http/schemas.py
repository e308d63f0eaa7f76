"""Queries of the requests and JSON of the answers."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.classifier import AssignedClass, top
from taillift.models.bundle.device import Device, Provider
from taillift.models.bundle.ensemble import Ensemble, ExitRule
from taillift.models.bundle.known_counts import Assigned
from taillift.models.bundle.manifest import BackboneInfo, ClassInfo, Evaluation, Manifest, Method
from taillift.models.bundle.posterior import MOST_TAIL, Prior, group_confidence
from taillift.models.bundle.prediction_sets import LEAST, MOST, PredictionSets
from taillift.models.bundle.predictor import Predictor
from taillift.models.bundle.review import Decision, DecisionReason, Review
from taillift.models.bundle.schema import GROUPS, Group, Precision, Preprocessing, SixDigits
from taillift.models.bundle.temperature import Calibration
from taillift.models.errors import nearest
from taillift.models.names import index_of_name, indices_by_name
from taillift.service.problems import MalformedError, ProblemDocument
from taillift.service.tail.prevalence import LiveShares

MAX_TOP_K: Final = 100
NUMERAL: Final = re.compile("-?[0-9]+")
CONFIDENCE: Final = "probability from 0 to 1; calibrated if GET /model says so"


def read_numeral(value: object) -> object:
    """Refuse what is not a whole number but would be read as one: true, 1.0, or 1_0."""
    if type(value) is int or (isinstance(value, str) and NUMERAL.fullmatch(value)):
        return value
    raise PydanticCustomError("int_parsing", "Input should be an integer, such as 5")


WholeNumber = Annotated[int, BeforeValidator(read_numeral)]


class InferenceQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ensemble: Ensemble | None = Field(
        None,
        description="off: the centre view only; full: the mean of five views; adaptive: the other "
        "views only if the centre view leaves doubt. The default is `usual_ensemble` of GET "
        "/model: adaptive if it saves at least a quarter of the views, else full",
    )
    prior: str = Field(
        Prior.UNIFORM,
        description="how often the classes are expected: `uniform` (equally often), `train` (as "
        "often as in the training images), the name of one of the service's priors, which GET "
        "/model lists (`live`: the shares of the groups as the monitoring estimates them), or "
        "weights of the groups, such as many:0.6,medium:0.3,few:0.1",
    )
    tail: float | None = Field(
        None,
        json_schema_extra={"minimum": 0, "maximum": MOST_TAIL},
        description="how far to lean toward the rare classes, 0 to 1: as if the model had been "
        "trained with tau = 1 + tail. It divides the `prior` by the classes' shares of the "
        "training images to the power of tail. The default is `usual_tail` of GET /model",
    )
    version: str | None = Field(
        None,
        description="version to answer with: champion, challenger or a number; it must be loaded. "
        "The default is the champion, or what a canary chooses",
    )


class ClassifyQuery(InferenceQuery):
    top_k: WholeNumber = Field(
        5,
        ge=1,
        le=MAX_TOP_K,
        description="number of classes to name, the most probable first; POST /confidence "
        "returns all of them",
    )
    coverage: float | None = Field(
        None,
        ge=LEAST,
        le=MOST,
        description="add to each result a set of labels that contains the right one with this "
        "probability, for rare classes too",
    )
    classes: list[str] = Field(
        [],
        description="labels of the classes that the images may show, if not all: repeated, or "
        "separated by commas",
    )
    counts: str | None = Field(
        None,
        description="how many of the request's images show each class, as JSON such as "
        '`{"red": 12, "blue": "3±1", "other": 2}` (other: none of the model\'s classes). Each '
        "result is then also `assigned` the class that fits the counts best",
    )


class ConfidenceQuery(InferenceQuery):
    classes: list[str] = Field([], description="labels of the classes to return; none: all")


class ModelId(BaseModel):
    name: str
    version: str
    number: int | None = Field(
        None,
        exclude_if=lambda number: number is None,
        description="number of the version in the store; absent if a bundle is served without one",
    )


class LabelConfidence(BaseModel):
    label: str
    group: Group
    confidence: SixDigits = Field(description=CONFIDENCE)
    count: int = Field(description="number of training images of the class")


class ImageResult(BaseModel):
    filename: str | None


class FailedImage(ImageResult):
    error: ProblemDocument


class AssignedLabel(BaseModel):
    label: str
    group: Group | None = Field(description="null: none of the model's classes")
    confidence: float = Field(
        description="probability against the next best assignment; the lowest are those to look at"
    )
    instead: str = Field(description="the image's label in that next best assignment")


class ClassifiedImage(ImageResult):
    id: str | None = Field(
        None,
        exclude_if=lambda text: text is None,
        description="signed id of the prediction, with which POST /feedback takes its label; "
        "absent without a service, or if the bundle has more than 65,536 classes",
    )
    views: int = Field(description="number of views that were looked at")
    predictions: list[LabelConfidence]
    decision: Decision | None = Field(
        None,
        description="accept: the share of errors among such answers is certified, or only "
        "estimated, to stay within the risk that GET /model states (`review`); review: a person "
        "should check the answer; null: the bundle, the prior or the tail allows no decision",
    )
    decision_reason: DecisionReason | None = Field(
        None, description="why: how the confidence stands to the threshold of the answer's group"
    )
    set: list[str] | None = Field(
        None, description="the set for `coverage`, the most probable label first"
    )
    assigned: AssignedLabel | None = Field(
        None, description="the class that fits the `counts` best; null without counts"
    )


class ClassConfidence(BaseModel):
    label: str
    group: Group
    confidence: SixDigits = Field(description=CONFIDENCE)


class ConfidenceOfImage(ImageResult):
    views: int = Field(description="number of views that were looked at")
    classes: list[ClassConfidence]
    groups: dict[Group, SixDigits] = Field(
        description="sum of the confidence of all classes of the group"
    )


class LivePriorReport(BaseModel):
    """The prior that follows the groups' shares; an answer can be repeated with its `prior`."""

    prior: str = Field(description="the shares as a request's `prior` takes them")
    shares: dict[Group, float]
    as_of: datetime | None = Field(
        description="when they were estimated; null: not yet, and all classes are equally likely"
    )
    frozen: str | None = Field(description="why the shares stand still; null: they do not")

    @classmethod
    def of(cls, live: LiveShares) -> Self:
        as_of = None if live.as_of is None else datetime.fromtimestamp(live.as_of, UTC)
        return cls(
            prior=live.text, shares=dict(live.shares), as_of=as_of, frozen=live.frozen or None
        )


class InferenceResponse(BaseModel):
    """How the images of a request were classified."""

    model: ModelId
    ensemble: Ensemble
    prior: str
    tail: float = Field(
        0.0,
        exclude_if=lambda tail: not tail,
        description="how far the answers lean toward the rare classes; absent: not at all",
    )
    live_prior: LivePriorReport | None = Field(
        None,
        exclude_if=lambda live: live is None,
        description="what `prior=live` was for these answers; absent with any other prior",
    )


class Classification(InferenceResponse):
    """`results` are in the order of the images."""

    classes: list[str] | None = Field(
        None, description="the classes that the request allowed; null: all"
    )
    results: list[ClassifiedImage | FailedImage]


class Confidence(InferenceResponse):
    """`results` are in the order of the images."""

    results: list[ConfidenceOfImage | FailedImage]


class ModelSummary(ModelId):
    """Summary of the manifest, and what the model runs on."""

    taillift_version: str
    backbone: BackboneInfo
    method: Method
    classes: int
    groups: dict[Group, int] = Field(description="number of classes in each group")
    preprocessing: Preprocessing
    calibrated: bool
    calibration: Calibration | None
    exit: ExitRule | None = Field(description="rule of ensemble=adaptive")
    usual_ensemble: Ensemble = Field(description="the ensemble of a request that names none")
    usual_ensemble_reason: str
    usual_tail: float = Field(description="the tail of a request that names none")
    sets: PredictionSets | None = Field(description="basis of the sets for `coverage`")
    review: Review | None = Field(description="basis of each result's decision")
    evaluation: Evaluation | None
    notes: list[str] = Field(description="reasons for the parts that are missing")
    priors: list[str] = Field(description="names that a request may use as prior")
    live_prior: LivePriorReport | None = Field(
        None,
        exclude_if=lambda live: live is None,
        description="the prior `live` as it is now; absent without the setting live_prior",
    )
    labelling: bool = Field(
        False,
        exclude_if=lambda labelling: not labelling,
        description="true: photos are kept for labelling, and GET /review lists them",
    )
    provider: Provider
    precision: Precision
    precision_reason: str
    made: str | None = Field(
        description="how the graph of this precision was made and how close it is to fp32; null "
        "for fp32 itself"
    )


class Status(BaseModel):
    status: Literal["alive", "ready"]


def model_id(manifest: Manifest, number: int | None = None) -> ModelId:
    return ModelId(name=manifest.name, version=manifest.version, number=number)


def live_report(live: LiveShares | None) -> LivePriorReport | None:
    """Return what an answer says of the live prior; None if it did not use it."""
    return None if live is None else LivePriorReport.of(live)


def classified(
    filename: str | None,
    probabilities: Doubles,
    classes: Sequence[ClassInfo],
    top_k: int,
    views: int,
    reason: DecisionReason | None = None,
    members: Sequence[int] | None = None,
) -> ClassifiedImage:
    """Return the result for one image: its `top_k` most probable classes and its set.

    `probabilities` is [C]; `members` are the class indices of the set.
    """
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
        decision=reason.decision if reason else None,
        decision_reason=reason,
        set=None if members is None else [classes[index].label for index in members],
    )


def add_assigned(
    results: Iterable[ClassifiedImage | FailedImage],
    assigned: Iterable[Assigned | None],
    classes: Sequence[ClassInfo],
) -> None:
    """Add to each result the class that its image was assigned to; failed images have none."""
    for result, one in zip(results, assigned, strict=True):
        if one is not None and isinstance(result, ClassifiedImage):
            result.assigned = AssignedLabel(**AssignedClass.of(one, classes)._asdict())


def confidences(
    filename: str | None,
    probabilities: Doubles,
    manifest: Manifest,
    chosen: Sequence[int],
    views: int,
) -> ConfidenceOfImage:
    """Return one image's probabilities: those of the `chosen` classes and of every group.

    `probabilities` is [C].
    """
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
    answer: InferenceResponse, results: Iterable[ConfidenceOfImage | FailedImage]
) -> bytes:
    """Return the JSON of a `Confidence` with these `results`.

    Each result is written before the next is made: as objects they take many times the memory.
    """
    head = answer.model_dump_json().removesuffix("}").encode()
    texts = b",".join([result.model_dump_json().encode() for result in results])
    return b'%s,"results":[%s]}' % (head, texts)


def chosen_classes(labels: Sequence[str], manifest: Manifest) -> Sequence[int]:
    """Return the class indices of `labels`, each once; without labels, those of all classes.

    A label is found in any Unicode form.

    Raises `MalformedError` if a label is unknown.
    """
    indices = indices_by_name(manifest.labels)
    chosen = []
    for label in labels:
        if (index := index_of_name(label, indices)) is None:
            raise MalformedError(unknown_class(label, manifest.labels))
        chosen.append(index)
    return list(dict.fromkeys(chosen)) or range(len(manifest.labels))


def unknown_class(label: str, labels: Sequence[str]) -> str:
    """Return the error for an unknown label, with the nearest of `labels`."""
    near = nearest(label, labels)
    hint = f"did you mean `{near}`?" if near else "GET /classes lists them"
    return f"unknown class `{label[:80]}`: {hint}"


def model_summary(
    predictor: Predictor,
    device: Device,
    priors: Sequence[str],
    reason: str,
    number: int | None = None,
    labelling: bool = False,
    tail: float = 0.0,
    live: LiveShares | None = None,
) -> ModelSummary:
    """Return the summary of the served model; `reason` says why its precision was chosen.

    `labelling` says whether the service keeps photos for labelling, and `tail` is that of a request
    that names none. `live` is the live prior, if there is one.
    """
    manifest, variant = predictor.manifest, predictor.variant
    groups = Counter(info.group for info in manifest.classes)
    return ModelSummary(
        name=manifest.name,
        version=manifest.version,
        number=number,
        taillift_version=manifest.taillift_version,
        backbone=manifest.backbone,
        method=manifest.method,
        classes=len(manifest.classes),
        groups={group: groups[group] for group in GROUPS},
        preprocessing=manifest.preprocessing,
        calibrated=variant.calibration is not None,
        calibration=variant.calibration,
        exit=variant.exit,
        usual_ensemble=variant.usual_ensemble,
        usual_ensemble_reason=variant.usual_ensemble_reason,
        usual_tail=tail,
        sets=variant.sets,
        review=variant.review,
        evaluation=variant.evaluation,
        notes=list(variant.notes),
        priors=list(priors),
        live_prior=live_report(live),
        labelling=labelling,
        provider=device.provider,
        precision=predictor.precision,
        precision_reason=reason,
        made=variant.made,
    )
