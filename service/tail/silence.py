"""Few-shot classes whose own images seem to have stopped coming."""

from typing import Final

import numpy as np

from taillift.service.tail.distributions import Doubles, Flags, Indices, beta_binomial_at_most
from taillift.service.tail.drift import (
    CAP,
    LEVEL,
    TEST_SHARE,
    Drift,
    Evidence,
    Stakes,
    discoveries,
    steps_to_reach,
)
from taillift.service.tail.reference import Expected

# The loss of a class shows if it would leave less than this share of the lowest expected rate.
VISIBLE: Final = 0.9
# A lost class is assumed to keep at least this share, even if no other class is mistaken for it.
LEAST: Final = 1 / 16


class Silence:
    """One bet per few-shot class F: that only the mistakes on other classes still predict it.

    The bet is placed against the same band as the drift test's bets, and it gains if the rate is
    nearer to what a lost class leaves than to the band. At any look, the expected share of false
    ones among the classes called silent is at most `level`.
    """

    def __init__(self, expected: Expected, few: Flags, drift: Drift, level: float = LEVEL) -> None:
        """`few` [C] marks the classes to watch; the band is that of `drift`."""
        self.indices = np.flatnonzero(few)
        self._drift = drift
        self._rates = expected.classes
        self._mistakes = expected.mistakes[self.indices]
        self._level = TEST_SHARE * level
        self.evidence = Evidence(1, expected.classes.mean[self.indices], CAP * self.threshold)
        self._narrowest: Doubles | None = None
        self._follow_band()

    @property
    def threshold(self) -> float:
        """The e-value that is enough to call a class silent even if no other class is."""
        return max(len(self.indices), 1) / self._level

    @property
    def hidden(self) -> Flags:
        """[F], the classes whose loss would be hidden by the mistakes on other classes."""
        self._follow_band()
        flags: Flags = self._mistakes > VISIBLE * self._null
        return flags

    def update(self, counts: Indices | Doubles, predictions: Doubles | float) -> None:
        """Add the `counts` [C] of a batch of `predictions`, as `Drift.update` does.

        To be called before the drift test's `update`: this bet must not use a band that has
        already seen the batch.
        """
        hits = np.asarray(counts, np.float64)[self.indices]
        watched = np.broadcast_to(predictions, len(counts))[self.indices]
        self._follow_band()
        gains = self._stakes.gains(hits, watched)
        self.evidence.update(np.where(self.hidden, 0.0, gains)[None], watched)

    @property
    def found(self) -> Flags:
        """[C], the classes that are found to be silent."""
        found = np.zeros(len(self._rates.a), np.bool_)
        found[self.indices] = discoveries(self.evidence.e_values, self._level)
        return found

    def delay(self) -> Doubles:
        """Return the predictions [F] within which 95 of 100 losses from now on are found.

        Infinite for a class whose loss would be hidden.
        """
        self._follow_band()
        gain, spread = self._stakes.moments(np.minimum(self._mistakes, self._bet))
        nats = np.log(self.threshold) + self.evidence.start_cost(gain, self.evidence.predictions)
        return np.where(self.hidden, np.inf, steps_to_reach(nats, gain, spread))

    def chance(self, index: int, count: float, predictions: float) -> float:
        """Return P(at most `count` of `predictions` are the class `index`) under the reference.

        The probability is exact, includes what the held-out photos leave open, and holds for one
        look that was planned in advance. Alarms use the evidence, which allows any number of looks.
        """
        return beta_binomial_at_most(
            count, predictions, float(self._rates.a[index]), float(self._rates.b[index])
        )

    def _follow_band(self) -> None:
        """Place the bet against the lower end of the drift test's band, without the tolerance.

        The tolerance is not needed: this bet loses anyway if a rate is only slightly lower.
        """
        if self._narrowest is self._drift.band.narrowest:
            return
        self._narrowest = self._drift.band.narrowest
        self._null: Doubles = self._narrowest[0][self.indices]
        self._bet: Doubles = np.clip(self._mistakes, LEAST * self._null, VISIBLE * self._null)
        self._stakes = Stakes(self._null, self._bet)
