"""What a client asks (query) and gets (JSON)."""

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.bundle.classifier import top
from models.bundle.device import Device, Provider
from models.bundle.ensemble import Ensemble
from models.bundle.manifest import (
    Accuracy,
    Backbone,
    ClassInfo,
    Evaluation,
    Manifest,
    Method,
)
from models.bundle.posterior import Doubles, Prior, group_confidence
from models.bundle.precision import Precision
from models.bundle.preprocessing import Preprocessing
from models.bundle.record import GROUPS, Group
from models.bundle.temperature import Calibration
from service.errors import MalformedError, ProblemDocument

CONFIDENCE: Final = "probability, 0 to 1; calibrated where GET /model says so"


class InferenceQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ensemble: Ensemble = Field(
        Ensemble.FULL, description="full: the mean of five views; off: the centre view only"
    )
    prior: Prior = Field(
        Prior.UNIFORM,
        description="how often the classes are expected: equally, or as in the training images",
    )


class ClassifyQuery(InferenceQuery):
    top_k: int = Field(5, ge=1, description="how many classes to name, the surest first")


class ConfidenceQuery(InferenceQuery):
    classes: list[str] = Field([], description="labels to answer for; none: all")


class ModelId(BaseModel):
    name: str
    version: str


class Prediction(BaseModel):
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
    predictions: list[Prediction]


class ClassConfidence(BaseModel):
    label: str
    group: Group
    confidence: float = Field(description=CONFIDENCE)


class ConfidenceOfImage(ImageResult):
    views: int = Field(description="views that the answer took")
    classes: list[ClassConfidence]
    groups: dict[Group, float] = Field(description="sums over all classes of each group")


class Answer(BaseModel):
    model: ModelId
    ensemble: Ensemble
    prior: Prior


class Classification(Answer):
    """`results` are in the order of the images."""

    results: list[ClassifiedImage | FailedImage]


class Confidence(Answer):
    """`results` are in the order of the images."""

    results: list[ConfidenceOfImage | FailedImage]


class ClassSummary(BaseModel):
    label: str
    group: Group
    count: int = Field(description="training images")
    accuracy: Accuracy | None = Field(description="on held-out images, in per cent")


class Classes(BaseModel):
    model: ModelId
    classes: list[ClassSummary]


class ModelSummary(BaseModel):
    """The manifest in short, and what runs it."""

    name: str
    version: str
    taillift_version: str
    backbone: Backbone
    method: Method
    classes: int
    groups: dict[Group, int] = Field(description="classes in each group")
    preprocessing: Preprocessing
    calibrated: bool
    calibration: Calibration | None
    evaluation: Evaluation | None
    provider: Provider
    precision: Precision


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
) -> ClassifiedImage:
    """The `top_k` surest of one image's probabilities [C]."""
    predictions = [
        Prediction(
            label=classes[index].label,
            group=classes[index].group,
            confidence=float(probabilities[index]),
            count=classes[index].count,
        )
        for index in top(probabilities, top_k)
    ]
    return ClassifiedImage(filename=filename, views=views, predictions=predictions)


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


def chosen_classes(labels: Sequence[str], manifest: Manifest) -> Sequence[int]:
    """Indices of `labels`, of every class where there are none.

    Raises `MalformedError` with the nearest label where a class is not known.
    """
    known = {label: index for index, label in enumerate(manifest.labels)}
    for label in labels:
        if label not in known:
            raise MalformedError(_unknown_class(label, manifest.labels))
    return [known[label] for label in labels] or range(len(known))


def _unknown_class(label: str, labels: Sequence[str]) -> str:
    near = get_close_matches(label, labels, n=1)
    hint = f"did you mean `{near[0]}`?" if near else "GET /classes lists them"
    return f"unknown class `{label[:80]}`: {hint}"


def class_list(manifest: Manifest) -> Classes:
    return Classes(
        model=model_id(manifest),
        classes=[
            ClassSummary.model_validate(info, from_attributes=True) for info in manifest.classes
        ],
    )


def model_summary(manifest: Manifest, device: Device) -> ModelSummary:
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
        calibrated=manifest.variants[Precision.FP32].calibration is not None,
        calibration=manifest.variants[Precision.FP32].calibration,
        evaluation=manifest.variants[Precision.FP32].evaluation,
        provider=device.provider,
        precision=device.precision,
    )
