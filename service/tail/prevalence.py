"""The live share of each group among the images, and the prior that follows it.

The shares are corrected for the model's confusions. The prior gives each group its share, as far as
that is certain, and the classes of a group equally much.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from taillift.models.bundle.posterior import group_prior, shares_text
from taillift.models.bundle.schema import GROUPS, Group
from taillift.models.errors import UserError
from taillift.service.tail.confusion import STRENGTH, Confusion
from taillift.service.tail.distributions import Doubles, Flags, Indices
from taillift.service.tail.reference import Rates, Reference, Source, expect

# The weight of the reference's own group shares, in images.
PRIOR: Final = 2.0
# Relative variance of a class's share within its group, between the reference and live traffic.
MIX: Final = 0.25
COVERAGE: Final = 0.95

MAX_STEPS: Final = 300
CONVERGED: Final = 1e-7
# Keeps every share slightly away from 0 and 1.
FLOOR: Final = 1e-9

# Predictions from one look at the shares to the next.
LOOK: Final = 100
# A group's confusions are known from so many held-out photos at least.
HELD_OUT: Final = 5
# The classes of a group may come so many times more or less often than equally often.
UNEVEN: Final = 3.0
# Standard errors by which a class is beyond that: any class, and one that is found to drift.
SURE, SUSPECTED = 3.0, 2.0
# No group's share is less, because classes of the share 0 could not be answered at all.
LEAST: Final = 1e-6
# Halvings of an interval of length 2.
HALVINGS: Final = 50


@dataclass(frozen=True)
class Shares:
    """The most likely share of each group among the images [G], and its 95 % interval [G]."""

    share: Doubles
    low: Doubles
    high: Doubles


class Prevalence:
    """Group shares from predictions, by maximum likelihood with a weak prior.

    The shares are estimated from predictions into groups by expectation maximisation (Saerens,
    Latinne and Decaestecker 2002, section 2.2, with the confusion matrix in place of the posterior
    of each image, and with pseudo-counts). Inverting the matrix instead (Lipton, Wang and Smola
    2018) has larger errors at small counts. The interval is that of a beta distribution with the
    linearised variance. The variance includes the noise of the counts, the few held-out photos
    behind the confusions, and that the mix within a group may differ from the reference's.
    """

    def __init__(self, confusion: Confusion, reference: Reference) -> None:
        """`matrix` becomes P(predicted group | true group) of the groups that have classes."""
        group, prior = confusion.group, reference.prior
        sizes = np.bincount(group, minlength=len(GROUPS))
        totals = np.bincount(group, prior, len(GROUPS))
        within = np.divide(prior, totals[group], out=1 / sizes[group], where=totals[group] > 0)
        self._present = np.flatnonzero(sizes)
        into = confusion.into_groups[:, self._present]
        self._start = (totals[self._present] + FLOOR) / (totals[self._present] + FLOOR).sum()
        members = [np.flatnonzero(group == index) for index in self._present]
        self.matrix = np.stack([within[classes] @ into[classes] for classes in members])
        self._row_covariances = np.stack(
            [
                row_covariance(into[classes], within[classes], confusion.held_out[classes], row)
                for classes, row in zip(members, self.matrix, strict=True)
            ]
        )

    def estimate(self, counts: Indices | Doubles) -> Shares:
        """Estimate the shares from predictions by group [G]; a group without classes has none."""
        predicted = np.asarray(counts, np.float64)[self._present]
        share: Doubles = self._start
        for _ in range(MAX_STEPS):
            joint = share[:, None] * self.matrix
            origin = joint / joint.sum(0)
            images: Doubles = origin @ predicted + PRIOR * self._start
            before, share = share, images / images.sum()
            if np.abs(share - before).max() < CONVERGED:
                break
        variance = np.diagonal(self._covariance(share, float(predicted.sum())))
        low, high = Rates.from_moments(share, variance).interval(COVERAGE)
        estimates = np.zeros((3, len(GROUPS)))
        estimates[:, self._present] = share, low, high
        return Shares(*estimates)

    def _covariance(self, share: Doubles, total: float) -> Doubles:
        """Return the covariance of the estimated shares.

        Shares sum to 1, so their differences lie in a plane; the matrices are inverted there.
        """
        size = len(share)
        if size == 1:
            return np.zeros((1, 1))
        plane = np.linalg.svd(np.ones((1, size)))[2][1:].T
        rate = share @ self.matrix
        precision = np.linalg.inv(plane.T @ (multinomial_covariance(share) / PRIOR) @ plane)
        if total:
            from_rows = np.einsum("g,gij->ij", share**2, self._row_covariances)
            noise = multinomial_covariance(rate) / total + from_rows
            slope = plane.T @ self.matrix.T @ plane
            precision = precision + slope.T @ np.linalg.inv(plane.T @ noise @ plane) @ slope
        covariance: Doubles = plane @ np.linalg.inv(precision) @ plane.T
        return covariance


@dataclass(frozen=True)
class LiveRules:
    """The `images` before the prior first moves, and the half-life of a count, in images."""

    images: int = 200
    half_life: float = 1000.0


@dataclass(frozen=True)
class LiveShares:
    """The prior at one time: it is the same as long as `shares` are.

    `shares` are those of the groups that have classes, and `log_prior` [C] what they make of the
    classes. `as_of` is when they were estimated, in seconds since 1970; None before any estimate,
    when all classes are equally likely. `frozen` is why they stand still, "" if they do not.
    """

    shares: Mapping[Group, float]
    log_prior: Doubles
    as_of: float | None = None
    frozen: str = ""

    @property
    def text(self) -> str:
        """The shares as a request may name them as its prior."""
        return shares_text(self.shares)


class LivePrior:
    """Shares of the groups from decayed counts of predictions, shrunk by their own interval.

    The shares are those of `Prevalence` under classes that come equally often within each group,
    which is what the prior says of them. Of all shares in their 95 % interval the nearest to
    those of equally frequent classes are taken, so that weak evidence changes nothing.
    """

    def __init__(self, confusion: Confusion, labels: tuple[str, ...], rules: LiveRules) -> None:
        """Raises `UserError` if a group has too few held-out photos to know its confusions."""
        self.rules = rules
        self._confusion, self._labels, self._group = confusion, labels, confusion.group
        self._sizes = np.bincount(self._group, minlength=len(GROUPS))
        held_out = np.bincount(self._group, confusion.held_out, len(GROUPS))
        for name, photos, size in zip(GROUPS, held_out.astype(int), self._sizes, strict=True):
            if size and photos < HELD_OUT:
                raise UserError(
                    f"live_prior: the bundle has {photos} held-out photos of the group {name!r}, "
                    f"and its confusions are known from {HELD_OUT}: export it with more val/ "
                    "photos, or serve it without live_prior"
                )
        even = np.full(len(labels), 1 / len(labels))
        self._prevalence = Prevalence(confusion, Reference(Source.UNIFORM, even))
        self._even = self._sizes / len(labels)
        self.reset()

    def reset(self) -> None:
        """Begin anew, from equally frequent classes."""
        # What the shares rest on, decayed, and of how many images; what came since the last look.
        self.counts, self.images = np.zeros(len(self._labels)), 0
        self.recent = np.zeros(len(self._labels), np.int64)
        self.current = self.shares_of(self._even, None)

    def shares_of(self, shares: Doubles, as_of: float | None) -> LiveShares:
        """Return shares [G] with six decimals, so that a request can name them exactly."""
        rounded = {
            name: max(round(float(share), 6), LEAST)
            for name, share, size in zip(GROUPS, shares, self._sizes, strict=True)
            if size
        }
        names = [GROUPS[index] for index in self._group]
        return LiveShares(rounded, group_prior(rounded, names), as_of)

    def restore(
        self, counts: Doubles, images: int, recent: Indices, shares: Doubles, as_of: float
    ) -> None:
        """Continue from what was saved; `as_of` is NaN before the first estimate."""
        self.counts, self.images, self.recent = counts.copy(), images, recent.copy()
        self.current = self.shares_of(shares, None if np.isnan(as_of) else as_of)

    @property
    def missing(self) -> int:
        """How many more predictions it takes until it is time to look; 0 or less: it is."""
        return max(LOOK, self.rules.images - self.images) - int(self.recent.sum())

    def add(self, labels: Indices) -> None:
        """Count predictions under the uniform prior."""
        self.recent += np.bincount(labels, minlength=len(self.recent))

    def look(self, fading: str, found: Flags, effect: float, now: float) -> None:
        """Estimate the shares anew; if they are in doubt, leave them, and forget what is recent.

        Predictions cannot tell rare photos that no longer come from such that are no longer
        recognised, and a prior that followed the latter would hide them the more. So the shares
        stand still while few-shot classes are found to be predicted less than expected: `fading`
        says so in words. Other alarms (`found` [C]) may only say that the groups are mixed in
        another way than expected, which is what the prior is for. They count unless the shares
        explain them: if the class is predicted `UNEVEN` times more or less often than they say.
        That also holds without an alarm, because then a group's share says little about its
        classes. `effect` is the design effect of the predictions.
        """
        keep, recent = 0.5 ** (1 / self.rules.half_life), int(self.recent.sum())
        counts, images = self.counts * keep**recent + self.recent, self.images + recent
        # So many independent predictions without decay would be as good.
        worth = (1 + keep) / (1 - keep) * np.tanh(-images * np.log(keep) / 2) / effect
        weighed = counts * (worth / counts.sum())
        shares = self._prevalence.estimate(np.bincount(self._group, weighed, len(GROUPS)))
        frozen = fading or self._unexplained(weighed, shares.share, found)
        if frozen:
            self.current = replace(self.current, frozen=frozen)
        else:
            self.counts, self.images = counts, images
            self.current = self.shares_of(nearest(self._even, shares.low, shares.high), now)
        self.recent = np.zeros_like(self.recent)

    def _unexplained(self, counts: Doubles, shares: Doubles, found: Flags) -> str:
        """Return which class is predicted more or less often than the shares [G] explain."""
        prior = np.divide(shares, self._sizes, out=np.zeros(len(shares)), where=self._sizes > 0)
        prior = prior[self._group]
        rates = expect(Reference(Source.OWN, prior), self._confusion).classes
        own, total = prior * self._confusion.recall, counts.sum()
        limit = np.where(found, SUSPECTED, SURE)
        for factor, side in ((UNEVEN, 1), (1 / UNEVEN, -1)):
            bound = (rates.mean + (factor - 1) * own).clip(1e-9, 1 - 1e-9)
            variance = bound * (1 - bound) / total + rates.variance * max(factor, 1) ** 2
            beyond = side * (counts / total - bound) / np.sqrt(variance)
            if (beyond > limit).any():
                index = int((beyond - limit).argmax())
                return (
                    f"the class {self._labels[index]!r} has {counts[index] / total:.1%} of the "
                    f"predictions, and the groups explain {rates.mean[index]:.1%}"
                )
        return ""


def row_covariance(into: Doubles, within: Doubles, held_out: Doubles, row: Doubles) -> Doubles:
    """Return the covariance [G, G] of one group's `row` of the group matrix.

    It is the sum of three parts: the rows `into` [K, G] of the group's own classes, known from
    `held_out` [K] photos; the pattern that they are shrunk toward; and the mix `within` [K] of the
    classes in the group.
    """
    squares, strength = within**2, held_out + STRENGTH
    weights = squares / (strength + 1)
    own = np.diag(weights @ into) - (into * weights[:, None]).T @ into
    pattern_photos = float(np.sum(held_out * (STRENGTH + 1) / strength)) + STRENGTH
    pattern_share = float(within @ (STRENGTH / strength))
    pattern = multinomial_covariance(row) * pattern_share**2 / pattern_photos
    deviations = into - row
    mix = MIX * (deviations * squares[:, None]).T @ deviations
    covariance: Doubles = own + pattern + mix
    return covariance


def multinomial_covariance(shares: Doubles) -> Doubles:
    """Return the covariance of one draw from `shares`, kept slightly away from singular."""
    inner = shares.clip(FLOOR)
    covariance: Doubles = np.diag(inner) - np.outer(inner, inner) * (1 - FLOOR)
    return covariance


def nearest(point: Doubles, low: Doubles, high: Doubles) -> Doubles:
    """Return the shares [G] from `low` to `high`, with the sum 1, that are nearest to `point`.

    They are `point` moved by one number and cut off at the bounds (Euclidean distance).
    """
    down, up = -1.0, 1.0
    for _ in range(HALVINGS):
        middle = (down + up) / 2
        if np.clip(point + middle, low, high).sum() < 1:
            down = middle
        else:
            up = middle
    cut = np.clip(point + up, low, high)
    shares: Doubles = cut / cut.sum()
    return shares
