"""What a way to stop early does to held-out photos."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from models.bundle.ensemble import Floats, combine
from models.bundle.exit import Counts, ExitRule, Loss, Stages, lead
from models.bundle.images import VIEWS
from models.bundle.posterior import Doubles
from models.bundle.record import GROUPS, Group
from training.calibration.bounds import (
    Losses,
    Weights,
    class_weights,
    measured,
    photo_weights,
    upper_bound,
)
from training.calibration.exit_notes import notes_on
from training.calibration.expected import drawn, view_posterior
from training.calibration.held_out import HeldOut

STAGES: Final = (1, 2, 3, VIEWS)
# Standard errors over the tolerance at which labels contradict what is expected.
CONTRADICTION: Final = 2
POINTS: Final = 100
# An answer: what Jeffreys' prior of a share adds to the photos that have been counted.
HALF: Final = 0.5


class Photos:
    """Held-out photos, and their answers after each number of views."""

    def __init__(self, held: HeldOut) -> None:
        self.held = held
        flat = self.held.view_logits
        means = {k: combine(flat[:, :k].reshape(-1, flat.shape[-1]), k) for k in STAGES}
        self.leads: dict[int, Floats] = {k: lead(one) for k, one in means.items()}
        self.answers: dict[int, Counts] = {k: one.argmax(axis=1) for k, one in means.items()}
        self.changes = _changes(means)

    def __len__(self) -> int:
        return len(self.held)

    @property
    def full(self) -> Counts:
        return self.answers[VIEWS]

    @cached_property
    def posterior(self) -> Doubles:
        return view_posterior(self.held)

    @cached_property
    def members(self) -> dict[Group, Counts]:
        """The photos of each group that has classes."""
        groups = np.array(self.held.groups)[self.held.labels]
        return {one: np.flatnonzero(groups == one) for one in GROUPS if one in self.held.groups}


@dataclass(frozen=True)
class Trial:
    """One candidate on the held-out photos."""

    photos: Photos
    stages: Stages
    tolerance: float

    def rule(self, *remarks: str) -> ExitRule:
        """`remarks` come after the other notes."""
        held = self.photos.held
        changed = self.answers != self.photos.full
        rule = ExitRule(
            stages=self.stages.stages,
            leads=self.stages.leads,
            tolerance=self.tolerance,
            data=held.data,
            source=held.source,
            images=len(held),
            overall=self.overall,
            groups=self.groups,
            disagreement=POINTS * float(changed.mean()) if len(held) else None,
            mean_views=self.mean_views,
            certified=self.certified,
        )
        notes = (*notes_on(rule, held), *remarks)
        return rule.model_copy(update={"notes": notes})

    @property
    def certified(self) -> bool:
        return all(one.bound <= self.tolerance for one in (self.overall, *self.groups.values()))

    @property
    def hoped(self) -> bool:
        return all(_hoped(one, self.tolerance) for one in (self.overall, *self.groups.values()))

    @property
    def mean_views(self) -> float:
        return float(self.taken.mean()) if len(self.photos) else float(VIEWS)

    @cached_property
    def taken(self) -> Counts:
        """[N], views."""
        views = np.full(len(self.photos), VIEWS)
        stops = zip(self.stages.stages, self.stages.leads, strict=False)
        for k, least in reversed([*stops]):
            views[self.photos.leads[k] >= least] = k
        return views

    @cached_property
    def answers(self) -> Counts:
        places = np.searchsorted(STAGES, self.taken)
        found: Counts = np.choose(places, [self.photos.answers[k] for k in STAGES])
        return found

    @cached_property
    def losses(self) -> Losses:
        """[N]: -1 where the answer is right and full's is not, 1 the other way round."""
        labels = self.photos.held.labels
        right = np.stack([self.photos.full == labels, self.answers == labels]).astype(np.int64)
        found: Losses = right[0] - right[1]
        return found

    @cached_property
    def overall(self) -> Loss:
        return self._loss(np.arange(len(self.photos)), photo_weights(len(self.photos)), self._prior)

    @cached_property
    def groups(self) -> dict[Group, Loss]:
        prior = self.overall.expected or 0.0
        return {
            group: self._loss(rows, class_weights(self.photos.held.labels[rows]), prior)
            for group, rows in self.photos.members.items()
        }

    @property
    def _prior(self) -> float:
        """By the posterior alone, in points, as if half an answer more were lost.

        So little is never known from a few photos: without it they would allow most.
        """
        changed = np.flatnonzero(self.answers != self.photos.full)
        lost = HALF
        if len(changed):
            posterior = self.photos.posterior[changed]
            full = np.take_along_axis(posterior, self.photos.full[changed, None], axis=1)
            cheaper = np.take_along_axis(posterior, self.answers[changed, None], axis=1)
            lost += float((full - cheaper).sum())
        return POINTS * lost / max(1, len(self.photos))

    def _loss(self, rows: Counts, weights: Weights, prior: float) -> Loss:
        """Of the photos at `rows`; a posterior is trusted to within the tolerance."""
        if not self.stages.leads:
            return Loss(photos=len(rows), estimate=0, error=0, expected=0, bound=0)
        if not len(rows):
            return Loss(photos=0, estimate=None, error=None, expected=None, bound=POINTS)
        losses = self.losses[rows]
        estimate, error = measured(losses, weights)
        return Loss(
            photos=len(rows),
            estimate=POINTS * estimate,
            error=POINTS * error,
            expected=drawn(prior, self.tolerance, POINTS * estimate, POINTS * error),
            bound=POINTS * upper_bound(losses, weights),
        )


def _changes(means: dict[int, Floats]) -> dict[int, float]:
    """By the number of views, how far the rest of them moves a logit: a root mean square.

    What moves all logits of a photo alike does not count. Where no view differs from another it is
    as if they erred independently.
    """
    found = {k: _deviation(means[k] - means[VIEWS]) for k in STAGES[:-1]}
    return found if found[1] else {k: float(np.sqrt(1 / k - 1 / VIEWS)) for k in STAGES[:-1]}


def _deviation(moves: Floats) -> float:
    """Of moves [N, C] around the mean of each photo."""
    return float(np.sqrt(moves.var(axis=1).mean())) if len(moves) else 0.0


def _hoped(loss: Loss, tolerance: float) -> bool:
    """The loss is expected to be tolerable, and the labels do not contradict."""
    if loss.expected is None or loss.estimate is None or loss.error is None:
        return False
    return max(loss.expected, loss.estimate - CONTRADICTION * loss.error) <= tolerance
