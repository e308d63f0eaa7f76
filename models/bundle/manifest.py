"""A bundle's description of itself: `manifest.json`, schema versions 1 and 2."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

from pydantic import Field, field_validator, model_validator

from taillift.models.bundle.ensemble import Ensemble, ExitRule, MeanViews
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.prediction_sets import PredictionSets
from taillift.models.bundle.review import Review
from taillift.models.bundle.schema import (
    Count,
    Group,
    Percent,
    Precision,
    Preprocessing,
    SchemaModel,
)
from taillift.models.bundle.temperature import Calibration

# The logarithm of a smaller prior would drown the logits.
LEAST_PRIOR: Final = 1e-12
# The sum of priors is divided out; beyond this they are something other than shares.
LEAST_SUM, MOST_SUM = 0.5, 1.5

PriorName = Literal["uniform", "train", "other"]


class Thresholds(SchemaModel):
    """The numbers of training images that separate the groups (LIFT, section 5)."""

    many: Count = 100
    few: Count = 20

    @model_validator(mode="after")
    def _in_order(self) -> "Thresholds":
        if self.few > self.many:
            raise ValueError(f"few={self.few} is more than many={self.many}")
        return self

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

    single: Percent
    full: Percent


class ClassInfo(SchemaModel):
    label: str
    prompt: str
    count: Count = Field(gt=0, description="training images")
    group: Group
    prior: float = Field(
        ge=LEAST_PRIOR, le=1, description="the class's share in the prior that the logits carry"
    )
    accuracy: Accuracy | None = Field(None, description="absent without held-out images")


class BackboneInfo(SchemaModel):
    architecture: str
    pretrained: str
    sha256: str = Field(description="of the weights as loaded")


class Method(SchemaModel):
    name: str = Field(description="the recipe's name")
    tuners: tuple[str, ...] = Field((), description="what was trained inside the tower")
    rank: Count | None = Field(None, description="hidden units of the first tuner that has any")
    trainable_parameters: Count
    loss: str
    prior: PriorName = Field(
        "uniform", description="the prior that the logits carry and that other priors replace"
    )
    tau: float | None = Field(
        None, ge=0, description="chosen after training with 1; the priors hold the shift"
    )


class Scores(SchemaModel):
    """Accuracies in per cent; a group without test images has none.

    Bundles and outcomes of 0.1.0 lack the last two.
    """

    overall: Percent
    mean_class: Percent
    many: Percent | None
    medium: Percent | None
    few: Percent | None
    worst_class: Percent
    harmonic_mean: Percent
    geometric_mean: Percent | None = Field(
        None, description="of the classes' accuracies; 0 if a class is never recognised"
    )
    macro_f1: Percent | None = Field(None, description="mean over classes of F1")


class Evaluation(SchemaModel):
    """Accuracy on held-out images, measured through the code that serves."""

    data: str
    images: Count
    single: Scores = Field(description="ensemble=off, the centre view")
    full: Scores = Field(description="ensemble=full, five views")
    adaptive: Scores | None = Field(None, description="absent without an exit rule")
    adaptive_views: MeanViews | None = Field(None, description="mean number of views it took")


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
    size: Count


class Manifest(SchemaModel):
    """The content of `manifest.json`.

    In schema 2 the version covers the whole manifest, in schema 1 only the files that it lists.
    """

    schema_version: Literal[1, 2] = 2
    name: str
    version: str = Field(
        "", description="first 12 hex digits of a hash; empty until the bundle is complete"
    )
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

    @field_validator("classes")
    @classmethod
    def _priors_are_shares(cls, classes: tuple[ClassInfo, ...]) -> tuple[ClassInfo, ...]:
        total = sum(info.prior for info in classes)
        if not LEAST_SUM <= total <= MOST_SUM:
            raise ValueError(f"the priors add up to {total:.6g} instead of 1")
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
