"""The live share of each group among the images, corrected for the model's confusions."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from taillift.models.bundle.schema import GROUPS
from taillift.service.tail.confusion import STRENGTH, Confusion
from taillift.service.tail.distributions import Doubles, Indices
from taillift.service.tail.reference import Reference, from_moments

# Images that the reference's own group shares count for.
PRIOR: Final = 2.0
# Relative variance of a class's share within its group, from the reference to live traffic.
MIX: Final = 0.25
STEPS: Final = 300
COVERAGE: Final = 0.95
# So that no share is quite 0 or 1.
FLOOR: Final = 1e-9
CLOSE: Final = 1e-7


@dataclass(frozen=True)
class Shares:
    """[G] each: the most likely share of the images, and its 95 % interval."""

    share: Doubles
    low: Doubles
    high: Doubles


class Prevalence:
    """Group shares from predictions, by maximum likelihood with a weak prior.

    Of predictions into groups, expectation maximisation (Saerens, Latinne and Decaestecker 2002,
    section 2.2, with the confusion matrix in the place of single posteriors, and pseudo-counts).
    Inverting the matrix instead (Lipton, Wang and Smola 2018) strays farther at small counts.
    The interval is a beta distribution's with the linearised variance, which takes in the noise of
    the counts, the few held-out photos behind the confusions, and that the mix within a group may
    differ from the reference's.
    """

    def __init__(self, confusion: Confusion, reference: Reference) -> None:
        """`matrix` holds P(predicted group | true group) of the groups that have classes."""
        group, prior = confusion.group, reference.prior
        sizes = np.bincount(group, minlength=len(GROUPS))
        totals = np.bincount(group, prior, len(GROUPS))
        even = 1 / sizes[group]
        within = np.divide(prior, totals[group], out=even, where=totals[group] > 0)
        self._present = np.flatnonzero(sizes)
        into = confusion.into_groups[:, self._present]
        self._start = (totals[self._present] + FLOOR) / (totals[self._present] + FLOOR).sum()
        members = [np.flatnonzero(group == place) for place in self._present]
        self.matrix = np.stack([within[one] @ into[one] for one in members])
        self._doubt = np.stack(
            [
                _doubt(into[one], within[one], confusion.held_out[one], row)
                for one, row in zip(members, self.matrix, strict=True)
            ]
        )

    def estimate(self, counts: Indices) -> Shares:
        """Of predictions [G] by group; a group without classes has the share 0."""
        seen = counts[self._present].astype(np.float64)
        share = self._most_likely(seen)
        variance = np.diagonal(self._covariance(share, float(seen.sum())))
        low, high = from_moments(share, variance).band(COVERAGE)
        return Shares(self._spread(share), self._spread(low), self._spread(high))

    def _most_likely(self, seen: Doubles) -> Doubles:
        share: Doubles = self._start
        for _ in range(STEPS):
            joint = share[:, None] * self.matrix
            origin = joint / joint.sum(0)
            images: Doubles = origin @ seen + PRIOR * self._start
            before, share = share, images / images.sum()
            if np.abs(share - before).max() < CLOSE:
                break
        return share

    def _covariance(self, share: Doubles, total: float) -> Doubles:
        """Of the shares, which sum to 1: everything happens in the plane of such differences."""
        size = len(share)
        if size == 1:
            return np.zeros((1, 1))
        plane = np.linalg.svd(np.ones((1, size)))[2][1:].T
        rate = share @ self.matrix
        precision = np.linalg.inv(plane.T @ (_multinomial(share) / PRIOR) @ plane)
        if total:
            noise = _multinomial(rate) / total + np.einsum("g,gij->ij", share**2, self._doubt)
            slope = plane.T @ self.matrix.T @ plane
            precision = precision + slope.T @ np.linalg.inv(plane.T @ noise @ plane) @ slope
        covariance: Doubles = plane @ np.linalg.inv(precision) @ plane.T
        return covariance

    def _spread(self, values: Doubles) -> Doubles:
        all_groups = np.zeros(len(GROUPS))
        all_groups[self._present] = values
        return all_groups


def _doubt(into: Doubles, within: Doubles, held_out: Doubles, row: Doubles) -> Doubles:
    """Covariance [G, G] of one group's row.

    Of its classes' own rows, of the pattern that they are shrunk towards, and of their mix.
    """
    squares, strength = within**2, held_out + STRENGTH
    known = squares / (strength + 1)
    own = np.diag(known @ into) - (into * known[:, None]).T @ into
    seen = float(np.sum(held_out * (STRENGTH + 1) / strength)) + STRENGTH
    pattern = _multinomial(row) * float(within @ (STRENGTH / strength)) ** 2 / seen
    apart = into - row
    mix = MIX * (apart * squares[:, None]).T @ apart
    doubt: Doubles = own + pattern + mix
    return doubt


def _multinomial(shares: Doubles) -> Doubles:
    inner = shares.clip(FLOOR)
    covariance: Doubles = np.diag(inner) - np.outer(inner, inner) * (1 - FLOOR)
    return covariance
