"""Test-time ensembling: several views of one image, one row of logits."""

from collections.abc import Callable
from enum import StrEnum
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from taillift.models.bundle.arrays import Counts, Flags, Floats
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.schema import Group, SchemaModel


class Ensemble(StrEnum):
    """`off`: the centre view. `full`: the mean of all five views' logits (LIFT, section 3.4).

    `adaptive`: the centre view, and the others only where they are worth their cost (`exit`).
    """

    OFF = "off"
    FULL = "full"
    ADAPTIVE = "adaptive"

    @property
    def views(self) -> int:
        """The most views that an image may take."""
        return 1 if self is Ensemble.OFF else VIEWS


def mean_over_views(logits: Floats, views: int) -> Floats:
    """Mean logits over each image's views: [images * views, C] to [images, C].

    Raises `ValueError` where the rows are no multiple of `views`.
    """
    mean: Floats = logits.reshape(-1, views, logits.shape[-1]).mean(axis=1, dtype=np.float32)
    return mean


Fill = Callable[[Counts, int, int], None]


class Stages(SchemaModel):
    """After how many views an image may stop, and how far its best class must then be ahead.

    An image's logits after k views are the mean over its first k; it stops after `stages[i]` views
    where the best class leads the second by `leads[i]` or more, in logits, and at the last stage
    in any case.
    """

    stages: tuple[int, ...] = Field(min_length=1, description="numbers of views, rising")
    leads: tuple[float, ...] = Field(description="in logits, for each stage but the last")

    @model_validator(mode="after")
    def _fit_together(self) -> "Stages":
        if list(self.stages) != sorted(set(self.stages) & set(range(1, VIEWS + 1))):
            raise ValueError(f"stages {self.stages} do not rise between 1 and {VIEWS}")
        if len(self.leads) != len(self.stages) - 1:
            raise ValueError(f"{len(self.stages)} stages need {len(self.stages) - 1} leads")
        return self

    def stops(self, logits: Floats, views: int) -> Flags:
        """[N]: which images need no more views, of their mean logits [N, C] over `views` views.

        Raises `ValueError` where `views` is no stage of this rule.
        """
        stage = self.stages.index(views)
        if stage == len(self.leads):
            return np.ones(len(logits), np.bool_)
        stopped: Flags = margin(logits) >= self.leads[stage]
        return stopped


class Loss(SchemaModel):
    """Accuracy lost against all five views, in points; what is negative is won.

    Over photos for all classes together, and for a group the mean over its classes of the class
    means. Without photos only the bound is there, and says nothing.
    """

    photos: int = Field(ge=0)
    estimate: float | None = Field(description="by the photos' labels")
    error: float | None = Field(description="standard error of the estimate")
    expected: float | None = Field(description="the estimate, drawn to what a posterior expects")
    bound: float = Field(description="at most so much with 95 % confidence, one-sided and paired")


class ExitRule(Stages):
    """Stages, and what they were measured to cost on held-out photos."""

    tolerance: float = Field(gt=0, description="points of accuracy, overall and in every group")
    data: str = Field(description="what it was fitted on")
    source: Literal["validation", "cross-fitting"]
    images: int = Field(ge=0)
    overall: Loss
    groups: dict[Group, Loss]
    disagreement: float | None = Field(description="answers that are not full's, in per cent")
    mean_views: float
    certified: bool = Field(description="every bound is within the tolerance")
    notes: tuple[str, ...] = Field((), description="what the photos could show and what not")


def margin(logits: Floats) -> Floats:
    """[N]: by how much the best class is ahead of the second, of logits [N, C], C at least 2."""
    best = np.partition(logits, -2, axis=1)
    ahead: Floats = best[:, -1] - best[:, -2]
    return ahead


class MeanLogits(NamedTuple):
    """Each image's mean logits over its views, float32 [N, C], and how many it took, int64 [N]."""

    logits: Floats
    views: Counts


def run_stages(rule: Stages, view_logits: Floats, fill: Fill | None = None) -> MeanLogits:
    """What becomes of logits [N, V, C].

    With `fill`, `view_logits` may start empty: `fill(rows, first, last)` is called to write views
    `first` to `last` (not included) of the images at `rows`, once they turn out to be needed.
    """
    count, _, classes = view_logits.shape
    mean_logits = np.empty((count, classes), np.float32)
    taken = np.zeros(count, np.int64)
    for before, views in pairwise((0, *rule.stages)):
        left = np.flatnonzero(taken == 0)
        if fill and len(left):
            fill(left, before, views)
        logits = mean_over_views(view_logits[left, :views].reshape(-1, classes), views)
        stopped = rule.stops(logits, views)
        mean_logits[left[stopped]] = logits[stopped]
        taken[left[stopped]] = views
    return MeanLogits(mean_logits, taken)
