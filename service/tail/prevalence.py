"""The live share of each group among the images, corrected for the model's confusions."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from taillift.models.bundle.schema import GROUPS
from taillift.service.tail.confusion import STRENGTH, Confusion
from taillift.service.tail.distributions import Doubles, Indices
from taillift.service.tail.reference import Rates, Reference

# The weight of the reference's own group shares, in images.
PRIOR: Final = 2.0
# Relative variance of a class's share within its group, between the reference and live traffic.
MIX: Final = 0.25
COVERAGE: Final = 0.95

MAX_STEPS: Final = 300
CONVERGED: Final = 1e-7
# Keeps every share slightly away from 0 and 1.
FLOOR: Final = 1e-9


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
