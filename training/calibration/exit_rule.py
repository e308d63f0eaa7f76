"""The exit rule: after how many views an image may stop, fitted on held-out photos."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Final

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from taillift.models.bundle.arrays import Counts, Doubles, Floats
from taillift.models.bundle.calibration_error import Weights, class_weights
from taillift.models.bundle.ensemble import ExitRule, Loss, Stages, mean_over_views
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.betting import Losses, mean_loss, upper_bound
from taillift.training.calibration.held_out import HeldOut, photo_weights, shrink

POINTS: Final = 100
STAGES: Final = (1, 2, 3, VIEWS)
ALWAYS_ALL: Final = Stages(stages=(VIEWS,), leads=())
# Margins after one view, in logits, from one that hardly any image has down to zero.
MARGINS: Final = (*np.geomspace(16, 0.05, 60).tolist(), 0.0)
# Labels contradict a rule if its loss exceeds the tolerance by more standard errors than this.
MAX_SIGMAS: Final = 2
# Lost answers that are added to the photos counted, as Jeffreys' prior of a proportion does.
PRIOR_LOST_ANSWERS: Final = 0.5
# The prior standard deviation of the two weights in `view_posterior` around (0, 1): the weight of
# the centre view as one of five. A few dozen photos prefer one view or five by chance.
WEIGHT_SPREAD: Final = 0.2


def fit_exit(held: HeldOut, tolerance: float = 0.5) -> ExitRule:
    """Return the rule that loses at most `tolerance` points against all views.

    The tolerance applies overall and in each group. Candidates are tested from the most cautious
    on. The result is the most economical one that the photos certify: the last one before the first
    whose bound exceeds the tolerance, so that with 95 % confidence all up to it hold (fixed
    sequence testing: Angelopoulos et al. 2021, "Learn then Test", section 4). If no certified rule
    saves a view, it is the last one before the first that is not plausible, and not the luckiest of
    all. The first candidate always takes all views.
    """
    photos = HeldOutViews(held)
    candidates = [Candidate(photos, stages, tolerance) for stages in candidate_stages(photos)]
    *_, certified = takewhile(lambda candidate: candidate.certified, candidates)
    *_, plausible = takewhile(lambda candidate: candidate.plausible, candidates)
    if certified.mean_views == VIEWS:
        return plausible.rule()
    return certified.rule(
        "expected to stay within the tolerance, but not certified: stopping after "
        f"{plausible.mean_views:.2f} views on average instead of {certified.mean_views:.2f}"
    )


def candidate_stages(photos: "HeldOutViews") -> Iterator[Stages]:
    """Yield stages from all views for every image to one view for every image.

    The margins after one view and after more are proportional to the change that the remaining
    views still make to the logits, as measured on the photos.
    """
    yield ALWAYS_ALL
    shape = [change / photos.changes[1] for change in photos.changes.values()]
    for first in MARGINS:
        yield Stages(stages=STAGES, leads=tuple(round(float(first * part), 4) for part in shape))


class HeldOutViews:
    """Held-out photos, with their margins and answers after each number of views."""

    def __init__(self, held: HeldOut) -> None:
        self.held = held
        logits = held.view_logits
        means = {k: mean_over_views(logits[:, :k].reshape(-1, logits.shape[-1]), k) for k in STAGES}
        # An exit rule looks at the two best classes alone; every candidate needs them.
        self.best_two: dict[int, Floats] = {
            k: np.partition(mean, -2, axis=1)[:, -2:] for k, mean in means.items()
        }
        self.answers: dict[int, Counts] = {k: mean.argmax(axis=1) for k, mean in means.items()}
        self.changes = remaining_changes(means)

    def __len__(self) -> int:
        return len(self.held)

    @property
    def full(self) -> Counts:
        """The answers [N] after all views."""
        return self.answers[VIEWS]

    @cached_property
    def posterior(self) -> Doubles:
        """The probability [N, C] of each class, given the views."""
        return view_posterior(self.held)

    @cached_property
    def members(self) -> dict[Group, Counts]:
        """The indices of the photos of each group that has classes."""
        groups = np.array(self.held.groups)[self.held.labels]
        return {
            group: np.flatnonzero(groups == group) for group in GROUPS if group in self.held.groups
        }


def remaining_changes(means: dict[int, Floats]) -> dict[int, float]:
    """Return, by the number of views, how far the remaining views move a logit.

    It is a root mean square over logits [N, C]; a move that all logits of a photo share does not
    count. If no view differs from another, the views are taken to err independently.
    """
    changes = {}
    for k in STAGES[:-1]:
        moves = means[k] - means[VIEWS]
        changes[k] = float(np.sqrt(moves.var(axis=1).mean())) if len(moves) else 0.0
    return changes if changes[1] else {k: float(np.sqrt(1 / k - 1 / VIEWS)) for k in STAGES[:-1]}


@dataclass(frozen=True)
class Candidate:
    """Stages, and what they lose on the held-out photos."""

    photos: HeldOutViews
    stages: Stages
    tolerance: float

    def rule(self, *remarks: str) -> ExitRule:
        """Return the stages with their measurements and notes; `remarks` come last."""
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
        notes = (*exit_notes(rule, held), *remarks)
        return rule.model_copy(update={"notes": notes})

    @property
    def certified(self) -> bool:
        """Whether every bound is within the tolerance."""
        return all(loss.bound <= self.tolerance for loss in (self.overall, *self.groups.values()))

    @property
    def plausible(self) -> bool:
        """Whether every loss is expected to be tolerable, and the labels do not contradict it."""
        return all(
            loss.expected is not None
            and loss.estimate is not None
            and loss.error is not None
            and loss.expected <= self.tolerance
            and loss.estimate - MAX_SIGMAS * loss.error <= self.tolerance
            for loss in (self.overall, *self.groups.values())
        )

    @property
    def mean_views(self) -> float:
        """The mean number of views that a photo takes."""
        return float(self.taken.mean()) if len(self.photos) else float(VIEWS)

    @cached_property
    def taken(self) -> Counts:
        """The number of views that each photo takes, [N]."""
        views = self.stages.next(self.photos.best_two[VIEWS], 0)
        for k in self.stages.stages:
            rows = np.flatnonzero(views == k)
            views[rows] = self.stages.next(self.photos.best_two[k][rows], k)
        return views

    @cached_property
    def answers(self) -> Counts:
        """The class [N] that each photo is answered with when it stops."""
        stages = np.searchsorted(STAGES, self.taken)
        answers: Counts = np.choose(stages, [self.photos.answers[k] for k in STAGES])
        return answers

    @cached_property
    def losses(self) -> Losses:
        """For each photo [N]: -1 if only this answer is right, 1 if only full's is, else 0."""
        labels = self.photos.held.labels
        full, own = (
            (answers == labels).astype(np.int64) for answers in (self.photos.full, self.answers)
        )
        losses: Losses = full - own
        return losses

    @cached_property
    def overall(self) -> Loss:
        """The loss over all photos."""
        rows = np.arange(len(self.photos))
        return self._loss(rows, photo_weights(len(rows)), self.prior_loss)

    @cached_property
    def groups(self) -> dict[Group, Loss]:
        """The loss of each group: the mean over its classes."""
        prior = self.overall.expected or 0.0
        return {
            group: self._loss(rows, class_weights(self.photos.held.labels[rows]), prior)
            for group, rows in self.photos.members.items()
        }

    @property
    def prior_loss(self) -> float:
        """The loss in points that the posterior alone expects, plus `PRIOR_LOST_ANSWERS`.

        A few photos never support a loss near 0. Without this addition they would allow the most.
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
        """Return the loss of the photos at `rows`, with `prior` trusted to within the tolerance."""
        if not self.stages.leads:
            return Loss(photos=len(rows), estimate=0, error=0, expected=0, bound=0)
        if not len(rows):
            return Loss(photos=0, estimate=None, error=None, expected=None, bound=POINTS)
        losses = self.losses[rows]
        estimate, error = mean_loss(losses, weights)
        return Loss(
            photos=len(rows),
            estimate=POINTS * estimate,
            error=POINTS * error,
            expected=shrink(POINTS * estimate, POINTS * error, prior, self.tolerance),
            bound=POINTS * upper_bound(losses, weights),
        )


def view_posterior(held: HeldOut) -> Doubles:
    """Return the probability [N, C] of each class, given the centre view and all views together.

    It is softmax(a centre + b mean + log frequency). The weights a and b are not negative and have
    the highest posterior density, from a normal prior around the mean alone. If the centre view
    knows something that the mean over views dilutes, as with photos of one object, a is large and
    five views are rightly expected to gain little.
    """
    centre, mean = held.view_logits[:, 0], held.view_logits.mean(axis=1)
    counts = np.bincount(held.labels, minlength=centre.shape[1])
    log_frequency = np.log(np.maximum(counts, 0.5) / counts.sum())
    rows = np.arange(len(held))

    def log_probabilities(weights: Doubles) -> Doubles:
        a, b = weights
        logs: Doubles = log_softmax(a * centre + b * mean + log_frequency, axis=1)
        return logs

    def nll_and_gradient(weights: Doubles) -> tuple[float, Doubles]:
        logs = log_probabilities(weights)
        away = (weights - (0, 1)) / WEIGHT_SPREAD
        slopes = [
            np.einsum("nc,nc->", np.exp(logs), logits)
            - logits[rows, held.labels].sum(dtype=np.float64)
            for logits in (centre, mean)
        ]
        nll = -logs[rows, held.labels].sum() + 0.5 * (away**2).sum()
        return float(nll), np.array(slopes) + away / WEIGHT_SPREAD

    optimum = minimize(
        nll_and_gradient, (0.0, 1.0), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 2
    )
    probabilities: Doubles = np.exp(log_probabilities(optimum.x))
    return probabilities


def exit_notes(rule: ExitRule, held: HeldOut) -> Iterator[str]:
    """Yield what the photos could and could not show about the rule."""
    if not len(held):
        yield "there are no held-out photos: every image takes all five views"
        return
    yield from held.cautions
    if missing := len(held.groups) - len(np.unique(held.labels)):
        yield f"{missing} of {len(held.groups)} classes have no photo: what they lose is unknown"
    tolerable = f"at most {rule.tolerance:g} points overall and in every group"
    if rule.certified and rule.leads:
        yield f"certified: with 95 % confidence it loses {tolerable}"
        return
    if rule.leads:
        yield (
            f"not certified: it is the most economical rule that is expected to lose {tolerable}"
        )
    else:
        yield (
            "every image takes all five views: the photos support no rule that saves any and "
            f"loses {tolerable}"
        )
    for part, loss in (("overall", rule.overall), *rule.groups.items()):
        if rule.leads and loss.estimate is not None and loss.estimate > rule.tolerance:
            yield (
                f"{part}: {loss.photos} photos lost {loss.estimate:.1f} points, more than "
                f"tolerated, but the standard error is {loss.error:.1f}: this can be chance"
            )
    groups = np.array(held.groups)[held.labels]
    weights = {"overall": photo_weights(len(held))}
    weights |= {group: class_weights(held.labels[groups == group]) for group in rule.groups}
    for part, of_photos in weights.items():
        if not len(of_photos):
            yield f"{part}: no photos, so what it would lose with fewer views is unknown"
            continue
        # There are too few photos if the bound exceeds the tolerance before any answer changes.
        bound = POINTS * upper_bound(np.zeros(len(of_photos), np.int64), of_photos)
        if bound > rule.tolerance:
            yield (
                f"{part}: {len(of_photos)} photos are too few to certify: even without a single "
                f"changed answer the bound is {bound:.1f} points"
            )
