"""The prior that follows the live shares of the groups, as far as they are certain.

It gives each group a share, and the classes of a group equally much. It stands still while the
predictions that it rests on are in doubt (`LivePrior.look`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from taillift.models.bundle.posterior import group_prior, shares_text
from taillift.models.bundle.schema import GROUPS, Group
from taillift.models.errors import UserError
from taillift.service.tail.confusion import Confusion
from taillift.service.tail.distributions import Doubles, Flags, Indices
from taillift.service.tail.prevalence import Prevalence
from taillift.service.tail.reference import Reference, Source, expect

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
