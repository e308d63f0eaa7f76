"""Evidence that confidences are no longer right: an e-process for each group of answers."""

from typing import Final

import numpy as np

from taillift.models.bundle.schema import GROUPS
from taillift.service.tail.distributions import Doubles, Indices

# Each bet stakes at most half of its wealth on a label. Smaller bets find small errors, and weigh
# the labels of photos that were chosen with a small probability as much as they stand for.
STAKES: Final = 2.0 ** -np.arange(1, 13)
MOST: Final = 0.5


class CalibrationEvidence:
    """For each group, the wealth of bets that confidences are too high, or that they are too low.

    A label multiplies the wealth by 1 + s (correct - confidence), which is 1 on average as long as
    the confidence is right (Waudby-Smith and Ramdas 2024, section 4). The stake s of a bet is
    divided by the probability with which the photo was chosen, up to a half. Half of the wealth is
    on all labels; the other half is divided over the days of the window, and what belongs to a day
    is bet from that day on, so that a change is found after a long good time, too. The mean of an
    e-value is at most 1 as long as all confidences are right: it reaches 1/x with a chance of at
    most x, however often one looks (Ville).
    """

    def __init__(self, days: int) -> None:
        """`days` is the length of the window of the predictions."""
        self._days = days
        # By day, the logarithms of the factors of each group's bets: [G, 2 B].
        self._logs: dict[int, Doubles] = {}

    def add(
        self,
        days: Indices,
        groups: Indices,
        confidences: Doubles,
        correct: Doubles,
        probabilities: Doubles,
        sign: int = 1,
    ) -> None:
        """Add labels [N], or with the sign -1 take them away again.

        `days` are those of the predictions, `groups` the indices of the answers' groups, `correct`
        is 1 or 0.
        """
        stakes = np.minimum(MOST, STAKES / probabilities[:, None])
        gains = stakes * (correct - confidences)[:, None]
        logs = np.concatenate([np.log1p(gains), np.log1p(-gains)], 1) * sign
        for day in np.unique(days).tolist():
            of_day = days == day
            sums = self._logs.setdefault(day, np.zeros((len(GROUPS), 2 * len(STAKES))))
            np.add.at(sums, groups[of_day], logs[of_day])

    def log_e_values(self) -> Doubles:
        """Return the logarithms to base 10 of the groups' e-values [G]."""
        if not self._logs:
            return np.zeros(len(GROUPS))
        by_day = np.stack([self._logs[day] for day in sorted(self._logs)])
        # From each day on: [days, G, 2 B]. A window may hold a day more than its length.
        since = np.cumsum(by_day[::-1], 0)[::-1]
        wealth = np.logaddexp.reduce(since, -1) - np.log(since.shape[-1])
        shares = np.full(len(wealth), 0.5 / (self._days + 1))
        shares[0] += 0.5
        unspent = 1 - shares.sum()
        staked = np.logaddexp.reduce(wealth + np.log(shares)[:, None], 0)
        values: Doubles = np.logaddexp(staked, np.log(max(unspent, 1e-300))) / np.log(10)
        return values
