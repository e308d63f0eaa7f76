"""A bundle's description of itself: `manifest.json`, schema version 1."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from taillift.models.bundle.ensemble import Ensemble, ExitRule
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.prediction_sets import PredictionSets
from taillift.models.bundle.review import Review
from taillift.models.bundle.schema import Group, Precision, Preprocessing, SchemaModel
from taillift.models.bundle.temperature import Calibration

PriorName = Literal["uniform", "train", "other"]


class Thresholds(SchemaModel):
    """The numbers of training images that separate the groups (LIFT, section 5)."""

    many: int = 100
    few: int = 20

    def group(self, count: int) -> Group:
        """Return `many` above `self.many` images, `few` below `self.few`, otherwise `medium`."""
        if count > self.many:
            return "many"
        return "few" if count < self.few else "medium"

    def groups(self, counts: Sequence[int]) -> list[Group]:
        """Return the group of each class, given the classes' training images."""
        return [self.group(count) for count in counts]


class Accuracy(SchemaModel):
    """The share of one class's held-out images that were recognised, in per cent."""

    single: float
    full: float


class ClassInfo(SchemaModel):
    label: str
    prompt: str
    count: int = Field(gt=0, description="training images")
    group: Group
    prior: float = Field(gt=0, description="the class's share in the prior that the logits carry")
    accuracy: Accuracy | None = Field(None, description="absent without held-out images")


class BackboneInfo(SchemaModel):
    architecture: str
    pretrained: str
    sha256: str = Field(description="of the weights as loaded")


class Method(SchemaModel):
    name: str = Field(description="the recipe's name")
    tuners: tuple[str, ...] = Field((), description="what was trained inside the tower")
    rank: int | None = Field(None, description="hidden units of the first tuner that has any")
    trainable_parameters: int
    loss: str
    prior: PriorName = Field(
        "uniform", description="the prior that the logits carry and that other priors replace"
    )


class Scores(SchemaModel):
    """Accuracies in per cent; a group without test images has none."""

    overall: float
    mean_class: float
    many: float | None
    medium: float | None
    few: float | None
    worst_class: float
    harmonic_mean: float


class Evaluation(SchemaModel):
    """Accuracy on held-out images, measured through the code that serves."""

    data: str
    images: int
    single: Scores = Field(description="ensemble=off, the centre view")
    full: Scores = Field(description="ensemble=full, five views")
    adaptive: Scores | None = Field(None, description="absent without an exit rule")
    adaptive_views: float | None = Field(None, description="mean number of views it took")


class Variant(SchemaModel):
    """One graph of the bundle, and how its logits become answers."""

    made: str | None = Field(
        None, description="how its graph was made and how near it is to fp32's; absent for fp32"
    )
    evaluation: Evaluation | None = None
    exit: ExitRule | None = Field(
        None, description="the rule of ensemble=adaptive; absent: there is none"
    )
    calibration: Calibration | None = None
    sets: PredictionSets | None = Field(None, description="what coverage= is answered from")
    review: Review | None = None
    notes: tuple[str, ...] = Field((), description="why the parts that are absent are")

    @property
    def usual_ensemble(self) -> Ensemble:
        """The ensemble of a request that names none."""
        return Ensemble.ADAPTIVE if self.exit and self.exit.saves_enough else Ensemble.FULL

    @property
    def usual_ensemble_reason(self) -> str:
        """Why this ensemble is the usual one, in a sentence that begins with its name."""
        if self.exit is None:
            return "full: there is no exit rule for adaptive"
        mean = f"{self.exit.mean_views:.2f} of {VIEWS} views on average"
        if self.exit.saves_enough:
            return f"adaptive: it takes {mean}, and so saves at least a quarter"
        return f"full: adaptive takes {mean}, and so does not save a quarter"


class FileRecord(SchemaModel):
    sha256: str
    size: int


class Manifest(SchemaModel):
    schema_version: Literal[1] = 1
    name: str
    version: str = Field(description="first 12 hex digits of the hash over all files' hashes")
    taillift_version: str
    backbone: BackboneInfo
    method: Method
    classes: tuple[ClassInfo, ...] = Field(min_length=2)
    thresholds: Thresholds
    preprocessing: Preprocessing
    variants: dict[Precision, Variant] = Field(description="fp32 and what was made of it")
    files: dict[str, FileRecord]

    @field_validator("classes")
    @classmethod
    def _labels_differ(cls, classes: tuple[ClassInfo, ...]) -> tuple[ClassInfo, ...]:
        counts = Counter(info.label for info in classes)
        twice = [label for label, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"two classes have the label {twice[0]!r}")
        return classes

    @field_validator("variants")
    @classmethod
    def _fp32_is_there(cls, variants: dict[Precision, Variant]) -> dict[Precision, Variant]:
        if Precision.FP32 not in variants:
            raise ValueError("there is no fp32")
        return variants

    @property
    def labels(self) -> list[str]:
        return [info.label for info in self.classes]

    @property
    def counts(self) -> list[int]:
        """The training images of each class."""
        return [info.count for info in self.classes]


def classes_from(
    labels: Sequence[str],
    prompts: Sequence[str],
    counts: Sequence[int],
    thresholds: Thresholds,
    accuracies: Sequence[Accuracy | None],
    priors: Sequence[float] | None = None,
    groups: Sequence[Group] | None = None,
) -> tuple[ClassInfo, ...]:
    """Return one `ClassInfo` for each class, in the order of the logits.

    `priors` are the classes' shares in the prior that the logits carry; None: they carry none.
    """
    priors = priors or [1 / len(labels)] * len(labels)
    groups = groups or thresholds.groups(counts)
    rows = zip(labels, prompts, counts, groups, priors, accuracies, strict=True)
    return tuple(
        ClassInfo(
            label=label, prompt=prompt, count=count, group=group, prior=prior, accuracy=accuracy
        )
        for label, prompt, count, group, prior, accuracy in rows
    )
