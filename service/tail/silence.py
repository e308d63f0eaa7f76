"""Few-shot classes whose own images seem to have stopped coming."""

from typing import Final

import numpy as np

from taillift.service.tail.distributions import Doubles, Flags, Indices, beta_binomial_at_most
from taillift.service.tail.drift import (
    CAP,
    LEVEL,
    TESTS,
    Drift,
    Evidence,
    Stakes,
    discoveries,
    time_to,
)
from taillift.service.tail.reference import Expected

# A class is watched where its loss would leave less than this share of the lowest expected rate.
VISIBLE: Final = 0.9
# Where nobody takes other classes for it, a few predictions may still come.
LEAST: Final = 1 / 16


class Silence:
    """One bet for each few-shot class: that only other classes' mistakes still name it.

    It is laid against the same band as the drift's bets, and pays where the rate is nearer to
    what a lost class leaves than to the band. The share of classes called silent wrongly among
    those called so is at most `level` in the mean, at any look.
    """

    def __init__(self, expected: Expected, few: Flags, drift: Drift, level: float = LEVEL) -> None:
        """`few` [C] marks the classes to watch; the band is that of `drift`."""
        self.places = np.flatnonzero(few)
        self._drift = drift
        self._rates = expected.classes
        self._mistakes = expected.mistakes[self.places]
        self._level = TESTS * level
        self.evidence = Evidence(1, expected.classes.mean[self.places], CAP * self.threshold)

    @property
    def threshold(self) -> float:
        return max(len(self.places), 1) / self._level

    @property
    def blind(self) -> Flags:
        """[F]: classes whose loss other classes' mistakes would hide."""
        flags: Flags = self._mistakes > VISIBLE * self._low
        return flags

    def look(self, counts: Indices, predictions: int) -> None:
        """Take in `counts` [C] of `predictions`, before the drift does: its band would know."""
        hits = counts[self.places].astype(np.float64)
        gains = Stakes(*self._bet()).gains(hits, predictions)
        self.evidence.update(np.where(self.blind, 0.0, gains)[None], predictions)

    @property
    def found(self) -> Flags:
        """[C]"""
        found = np.zeros(len(self._rates.a), np.bool_)
        found[self.places] = discoveries(self.evidence.values, self._level)
        return found

    def delay(self) -> Doubles:
        """[F]: predictions within which 95 of 100 losses from now on are found.

        Infinite for a class that cannot be seen to be lost.
        """
        null, bet = self._bet()
        gain, spread = Stakes(null, bet).at(np.minimum(self._mistakes, bet))
        nats = np.log(self.threshold) + self.evidence.cost(gain, self.evidence.predictions)
        return np.where(self.blind, np.inf, time_to(nats, gain, spread))

    def chance(self, place: int, count: int, predictions: int) -> float:
        """P(at most `count` of `predictions` name the class) as the reference has it.

        For one look that was planned before: exact, with what the held-out photos leave open.
        What alarms is the evidence, which may be looked at always.
        """
        return beta_binomial_at_most(
            count, predictions, float(self._rates.a[place]), float(self._rates.b[place])
        )

    @property
    def _low(self) -> Doubles:
        """Without the tolerance: this bet loses where a rate is only a little lower."""
        low: Doubles = self._drift.band.narrowest[0][self.places]
        return low

    def _bet(self) -> tuple[Doubles, Doubles]:
        low = self._low
        return low, np.clip(self._mistakes, LEAST * low, VISIBLE * low)
