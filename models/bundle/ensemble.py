"""Test-time ensembling: several views of one image, combined into one row of logits."""

from collections.abc import Callable
from enum import StrEnum
from functools import cache
from itertools import pairwise
from typing import Annotated, Final, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from taillift.models.bundle.arrays import Counts, Floats
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.schema import (
    Amount,
    Count,
    Group,
    Percent,
    PercentChange,
    SchemaModel,
)

Fill = Callable[[Counts, int, int], None]
Views = Annotated[int, Field(ge=1, le=VIEWS)]
MeanViews = Annotated[float, Field(ge=1, le=VIEWS)]


# The share of the views that an exit rule has to save to be used without being asked for.
WORTHWHILE: Final = 0.25


class Ensemble(StrEnum):
    """How many views of an image are combined.

    `off`: the centre view. `full`: the mean of all five views' logits (LIFT, section 3.4).
    `adaptive`: the centre view, and more views only while the answer is in doubt (`ExitRule`).
    """

    OFF = "off"
    FULL = "full"
    ADAPTIVE = "adaptive"

    @property
    def views(self) -> int:
        """The largest number of views that an image may take."""
        return 1 if self is Ensemble.OFF else VIEWS


class Stages(SchemaModel):
    """After how many views an image may stop, and the margin that it needs to do so.

    An image's logits after k views are the mean over its first k views. Its margin is the distance
    between the two largest of them. It stops after `stages[i]` views if its margin is at least
    `leads[i]`, and at the last stage in any case.
    """

    stages: tuple[int, ...] = Field(min_length=1, description="numbers of views, rising")
    leads: tuple[Amount, ...] = Field(
        description="margins in logits, one for each stage but the last"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> "Stages":
        if list(self.stages) != sorted(set(self.stages) & set(range(1, VIEWS + 1))):
            raise ValueError(f"stages {self.stages} do not rise between 1 and {VIEWS}")
        if len(self.leads) != len(self.stages) - 1:
            raise ValueError(f"{len(self.stages)} stages need {len(self.stages) - 1} leads")
        return self

    def next(self, logits: Floats, views: int) -> Counts:
        """Return how many views each image must have seen before the next decision, int64 [N].

        That is `views` for an image that stops. `logits` [N, C] are the means over the first
        `views` views, which is 0 (with logits that do not matter) for images that have not begun.
        Only the two largest logits of an image count, so C may be 2.

        Raises `ValueError` if `views` is neither 0 nor a stage.
        """
        if views == 0:
            return np.full(len(logits), self.stages[0], np.int64)
        stage = self.stages.index(views)
        if stage == len(self.leads):
            return np.full(len(logits), views, np.int64)
        stopped = margin(logits) >= self.leads[stage]
        return np.where(stopped, views, self.stages[stage + 1])


@cache
def all_views(count: int) -> Stages:
    """Return the rule by which every image takes `count` views."""
    return Stages(stages=(count,), leads=())


class Loss(SchemaModel):
    """Accuracy lost against all five views, in points; a negative loss is a gain.

    Overall it is taken over photos. For a group it is the mean over its classes of the class means.
    Without photos only the bound is there, and it says nothing.
    """

    photos: Count
    estimate: PercentChange | None = Field(description="by the photos' labels")
    error: Amount | None = Field(description="standard error of the estimate")
    expected: PercentChange | None = Field(
        description="the estimate, shrunk toward what a posterior expects"
    )
    bound: PercentChange = Field(
        description="upper bound with 95 % confidence, one-sided and paired"
    )


class ExitRule(Stages):
    """Stages, and the loss of accuracy that was measured for them on held-out photos."""

    tolerance: float = Field(gt=0, description="points of accuracy, overall and in every group")
    data: str = Field(description="what it was fitted on")
    source: Literal["validation", "cross-fitting"]
    images: Count
    overall: Loss
    groups: dict[Group, Loss]
    disagreement: Percent | None = Field(description="answers that differ from full's, in per cent")
    mean_views: MeanViews
    certified: bool = Field(description="every bound is within the tolerance")
    notes: tuple[str, ...] = Field((), description="what the photos could show and what not")

    @property
    def saves_enough(self) -> bool:
        """Whether it saves so many views that it is the usual ensemble."""
        return self.mean_views <= (1 - WORTHWHILE) * VIEWS


class ImageOutputs(NamedTuple):
    """One image's logits float32 [C] and features float32 [D], means over its first `views` views.

    The logits carry no prior. Each view's features have unit length, so their mean is shorter if
    the views differ.
    """

    logits: Floats
    features: Floats
    views: int


class MeanLogits(NamedTuple):
    """Mean logits of each image over its views, float32 [N, C], and its views, int64 [N]."""

    logits: Floats
    views: Counts


def margin(logits: Floats) -> Floats:
    """Return by how much the best class leads the second, [N], of logits [N, C], C at least 2."""
    best = np.partition(logits, -2, axis=1)
    ahead: Floats = best[:, -1] - best[:, -2]
    return ahead


def mean_over_views(rows: Floats, views: int) -> Floats:
    """Return the mean over each image's views: rows [images * views, C] to [images, C].

    Raises `ValueError` if the number of rows is not a multiple of `views`.
    """
    mean: Floats = rows.reshape(-1, views, rows.shape[-1]).mean(axis=1, dtype=np.float32)
    return mean


def run_stages(rule: Stages, view_logits: Floats, fill: Fill | None = None) -> MeanLogits:
    """Apply `rule` to logits [N, V, C] of the images' views.

    With `fill`, `view_logits` may start empty: `fill(rows, first, last)` is called to write views
    `first` to `last` (not included) of the images at `rows` as soon as the rule needs them.
    """
    count, _, classes = view_logits.shape
    mean_logits = np.empty((count, classes), np.float32)
    goals = rule.next(mean_logits, 0)
    for before, views in pairwise((0, *rule.stages)):
        left = np.flatnonzero(goals == views)
        if fill and len(left):
            fill(left, before, views)
        logits = mean_over_views(view_logits[left, :views].reshape(-1, classes), views)
        goals[left] = rule.next(logits, views)
        stopped = goals[left] == views
        mean_logits[left[stopped]] = logits[stopped]
    return MeanLogits(mean_logits, goals)
