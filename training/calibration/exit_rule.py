"""What accuracy a cheaper answer is expected to lose, by more than the labels."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Final

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from taillift.models.bundle.arrays import Counts, Doubles, Floats
from taillift.models.bundle.ensemble import ExitRule, Loss, Stages, mean_over_views
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.betting import (
    Losses,
    Weights,
    class_weights,
    measured,
    photo_weights,
    upper_bound,
)
from taillift.training.calibration.held_out import HeldOut

# How far the two weights of a posterior may be from (0, 1) before photos speak: what the centre
# view has as one of five. A few dozen photos prefer one view or five by chance.
SPREAD: Final = 0.2


def view_posterior(held: HeldOut) -> Doubles:
    """[N, C]: how probable each class is, given the centre view and all views together.

    softmax(a centre + b mean + log frequency), a and b not negative and of highest posterior
    density, from a normal prior around the mean alone. Where the centre view knows something that
    the mean over views dilutes, as with photos of one object, a is large, and five views are
    rightly expected to win little.
    """
    centre, mean = held.view_logits[:, 0], held.view_logits.mean(axis=1)
    counts = np.bincount(held.labels, minlength=centre.shape[1])
    log_frequency = np.log(np.maximum(counts, 0.5) / counts.sum())
    rows = np.arange(len(held))

    def scores(weights: Doubles) -> Doubles:
        a, b = weights
        found: Doubles = log_softmax(a * centre + b * mean + log_frequency, axis=1)
        return found

    def surprise(weights: Doubles) -> tuple[float, Doubles]:
        logs = scores(weights)
        away = (weights - (0, 1)) / SPREAD
        slopes = [
            (np.einsum("nc,nc->", np.exp(logs), one) - one[rows, held.labels].sum(dtype=np.float64))
            for one in (centre, mean)
        ]
        value = -logs[rows, held.labels].sum() + 0.5 * (away**2).sum()
        return float(value), np.array(slopes) + away / SPREAD

    found = minimize(surprise, (0.0, 1.0), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 2)
    shares: Doubles = np.exp(scores(found.x))
    return shares


def shrink(prior: float, spread: float, estimate: float, error: float) -> float:
    """A measured loss, drawn to what was expected before as far as its error is large.

    The mean of N(prior, spread^2) after a measurement with a normal error, all in points.
    """
    trust = spread**2 / (spread**2 + error**2)
    return trust * estimate + (1 - trust) * prior


def notes_on(rule: ExitRule, held: HeldOut) -> Iterator[str]:
    if not len(held):
        yield "there are no held-out photos: every image takes all five views"
        return
    yield from held.cautions
    if missing := len(held.groups) - len(np.unique(held.labels)):
        yield f"{missing} of {len(held.groups)} classes have no photo: what they lose is unknown"
    if rule.certified and rule.leads:
        yield (
            f"certified: with 95 % confidence it loses at most {rule.tolerance:g} points overall "
            "and in every group"
        )
    else:
        yield from _on_doubts(rule, held)


def _on_doubts(rule: ExitRule, held: HeldOut) -> Iterator[str]:
    if rule.leads:
        yield (
            "not certified: it is the most economical rule that is expected to lose at most "
            f"{rule.tolerance:g} points overall and in every group"
        )
    else:
        yield (
            "every image takes all five views: the photos support no rule that saves any and "
            f"loses at most {rule.tolerance:g} points overall and in every group"
        )
    for place, loss in (("overall", rule.overall), *rule.groups.items()):
        if rule.leads and loss.estimate is not None and loss.estimate > rule.tolerance:
            yield (
                f"{place}: {loss.photos} photos lost {loss.estimate:.1f} points, more than "
                f"tolerated, but give or take {loss.error:.1f}: that few are also lost by chance"
            )
    yield from _at_best("overall", photo_weights(len(held)), rule.tolerance)
    groups = np.array(held.groups)[held.labels]
    for group in rule.groups:
        labels = held.labels[groups == group]
        if len(labels):
            yield from _at_best(group, class_weights(labels), rule.tolerance)
        else:
            yield f"{group}: no photos, so what it would lose with fewer views is unknown"


def _at_best(where: str, weights: Weights, tolerance: float) -> Iterator[str]:
    """Too few photos are those whose bound is over the tolerance before any answer changes."""
    bound = 100 * upper_bound(np.zeros(len(weights), np.int64), weights)
    if bound > tolerance:
        yield (
            f"{where}: {len(weights)} photos, with which even without a single changed answer the "
            f"bound is {bound:.1f} points"
        )


STAGES: Final = (1, 2, 3, VIEWS)
# Standard errors over the tolerance at which labels contradict what is expected.
MAX_SIGMAS: Final = 2
POINTS: Final = 100
# An answer: what Jeffreys' prior of a share adds to the photos that have been counted.
PRIOR_LOST_ANSWERS: Final = 0.5


class HeldOutViews:
    """Held-out photos, and their answers after each number of views."""

    def __init__(self, held: HeldOut) -> None:
        self.held = held
        flat = self.held.view_logits
        means = {k: mean_over_views(flat[:, :k].reshape(-1, flat.shape[-1]), k) for k in STAGES}
        # All that an exit rule looks at, kept because every candidate needs it.
        self.best_two: dict[int, Floats] = {
            k: np.partition(one, -2, axis=1)[:, -2:] for k, one in means.items()
        }
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
class Candidate:
    """One candidate on the held-out photos."""

    photos: HeldOutViews
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
    def plausible(self) -> bool:
        return all(_hoped(one, self.tolerance) for one in (self.overall, *self.groups.values()))

    @property
    def mean_views(self) -> float:
        return float(self.taken.mean()) if len(self.photos) else float(VIEWS)

    @cached_property
    def taken(self) -> Counts:
        """[N], views."""
        views = self.stages.next(self.photos.best_two[VIEWS], 0)
        for k in self.stages.stages:
            rows = np.flatnonzero(views == k)
            views[rows] = self.stages.next(self.photos.best_two[k][rows], k)
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
        lost = PRIOR_LOST_ANSWERS
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
            expected=shrink(prior, self.tolerance, POINTS * estimate, POINTS * error),
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
    return max(loss.expected, loss.estimate - MAX_SIGMAS * loss.error) <= tolerance


# Leads after one view, in logits, from what hardly an image has to nothing.
LEADS: Final = (*np.geomspace(16, 0.05, 60).tolist(), 0.0)
ALWAYS_ALL: Final = Stages(stages=(VIEWS,), leads=())


def candidates(photos: HeldOutViews) -> Iterator[Stages]:
    """From all views for every image to one view for every image.

    The leads after one view and after more are in proportion to what the rest of the views still
    changes in the logits, as the photos measure it.
    """
    yield ALWAYS_ALL
    shape = [change / photos.changes[1] for change in photos.changes.values()]
    for first in LEADS:
        yield Stages(stages=STAGES, leads=tuple(round(float(first * one), 4) for one in shape))


def fit_exit(held: HeldOut, tolerance: float = 0.5) -> ExitRule:
    """The rule that loses at most `tolerance` points against all views, overall and in each group.

    It is the most economical one that the photos certify: rules are tested from the most cautious
    on, until one's bound exceeds the tolerance, so that with 95 % confidence all before it hold
    (fixed sequence testing: Angelopoulos et al. 2021, "Learn then Test", section 4). Where none of
    them saves a view, it is the last before the first that is expected to lose more, or by two
    standard errors of the labels: not the luckiest of all. The first takes all views always.
    """
    photos = HeldOutViews(held)
    trials = [Candidate(photos, stages, tolerance) for stages in candidates(photos)]
    *_, certified = takewhile(lambda one: one.certified, trials)
    *_, plausible = takewhile(lambda one: one.plausible, trials)
    if certified.mean_views == VIEWS:
        return plausible.rule()
    return certified.rule(
        f"expected to lose no more, but not certified: stopping after "
        f"{plausible.mean_views:.2f} views "
        f"on average instead of {certified.mean_views:.2f}"
    )
