"""What a bundle says of itself: `manifest.json`, schema version 1."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from models.bundle.record import Group, Record


class Thresholds(Record):
    """Which group a class is in, by its number of training images (LIFT, section 5)."""

    many: int = 100
    few: int = 20

    def group(self, count: int) -> Group:
        """`many` above `self.many` training images, `few` under `self.few`, else `medium`."""
        if count > self.many:
            return "many"
        return "few" if count < self.few else "medium"

    def groups(self, counts: Sequence[int]) -> list[Group]:
        """The group of each class, of its training images."""
        return [self.group(count) for count in counts]


class Accuracy(Record):
    """Share of one class's held-out images that were recognised, in per cent."""

    single: float
    full: float


class ClassInfo(Record):
    label: str
    prompt: str
    count: int = Field(gt=0, description="training images")
    group: Group
    accuracy: Accuracy | None = Field(None, description="absent without held-out images")


class Backbone(Record):
    architecture: str
    pretrained: str
    sha256: str = Field(description="of the weights as loaded")


class Method(Record):
    name: str = Field(description="the recipe's")
    tuners: tuple[str, ...] = Field((), description="what was trained inside the tower")
    rank: int | None = Field(None, description="hidden units that the first tuner with any has")
    trainable_parameters: int
    loss: str = Field(description="with logit-adjusted, logits carry no training prior")


class Preprocessing(Record):
    """How an image becomes a canvas and a canvas becomes views.

    `size` S and `expand` are in pixels; `mean` and `std` are per RGB channel on a 0 to 1 scale
    and are applied inside the graph.
    """

    size: int = Field(gt=0)
    expand: int = Field(ge=0)
    interpolation: Literal["bilinear", "bicubic"]
    antialias: Literal[True] = True
    resize_mode: Literal["shortest", "squash"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Scores(Record):
    """Accuracies in per cent; a group without test images has none."""

    overall: float
    mean_class: float
    many: float | None
    medium: float | None
    few: float | None
    worst_class: float
    harmonic_mean: float


class Evaluation(Record):
    """Measured on held-out images through the code that serves."""

    data: str
    images: int
    single: Scores = Field(description="ensemble=off, the centre view")
    full: Scores = Field(description="ensemble=full, five views")


class Calibration(Record):
    """Softmax temperature for one view and for all."""

    single: float = Field(gt=0)
    full: float = Field(gt=0)
    data: str = Field(description="what it was fitted on")


class FileRecord(Record):
    sha256: str
    size: int


class Manifest(Record):
    schema_version: Literal[1] = 1
    name: str
    version: str = Field(description="first 12 hex digits of the hash over all files' hashes")
    taillift_version: str
    backbone: Backbone
    method: Method
    classes: tuple[ClassInfo, ...] = Field(min_length=2)
    thresholds: Thresholds
    preprocessing: Preprocessing
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    files: dict[str, FileRecord]

    @field_validator("classes")
    @classmethod
    def _labels_differ(cls, classes: tuple[ClassInfo, ...]) -> tuple[ClassInfo, ...]:
        twice = [label for label, count in Counter(c.label for c in classes).items() if count > 1]
        if twice:
            raise ValueError(f"two classes have the label {twice[0]!r}")
        return classes

    @property
    def labels(self) -> list[str]:
        return [one.label for one in self.classes]

    @property
    def counts(self) -> list[int]:
        return [one.count for one in self.classes]


def classes_from(
    labels: Sequence[str],
    prompts: Sequence[str],
    counts: Sequence[int],
    thresholds: Thresholds,
    accuracies: Sequence[Accuracy | None],
) -> tuple[ClassInfo, ...]:
    """One `ClassInfo` a class, in the order of the logits."""
    rows = zip(labels, prompts, counts, thresholds.groups(counts), accuracies, strict=True)
    return tuple(
        ClassInfo(label=label, prompt=prompt, count=count, group=group, accuracy=accuracy)
        for label, prompt, count, group, accuracy in rows
    )
