"""What photos say about a temperature: how surprised the model is at each, and what follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import logsumexp

from models.bundle.posterior import Doubles
from training.calibration.answers import Answers, effective

# Logarithms of temperatures, from 1/12 to 12: where losses are computed, and where compared.
GRID: Final = np.linspace(-2.5, 2.5, 41)
FINE: Final = np.linspace(-2.5, 2.5, 2001)
# Prior standard deviation of log T, around 0; it only counts where photos say next to nothing.
WIDE: Final = 1.0
# How far log T of one kind of answer is expected from all answers', before any photo: a tenth.
USUAL_SPREAD: Final = 0.1
ROUNDS: Final = 200
AT_ONCE: Final = 2**22


@dataclass(frozen=True)
class Belief:
    """Mean and variance of log T."""

    mean: float
    variance: float

    @property
    def temperature(self) -> float:
        return float(np.exp(self.mean))


def surprises(answers: Answers) -> Doubles:
    """-log p(label) [N, 41] at every log temperature of `GRID`, for equally frequent classes."""
    found = np.empty((len(answers), len(GRID)))
    step = max(1, AT_ONCE // answers.logits.shape[1])
    for start in range(0, len(answers), step):
        rows = slice(start, start + step)
        logits, labels = answers.logits[rows].astype(np.float64), answers.labels[rows, None]
        for place, log_t in enumerate(GRID):
            scores = logits * np.exp(-log_t)
            true = np.take_along_axis(scores, labels, axis=1)[:, 0]
            found[rows, place] = logsumexp(scores, axis=1) - true
    return found


def evidence(surprises: Doubles, weights: Doubles) -> Doubles | None:
    """-log likelihood [2001] along `FINE`, of as many photos as the weights are worth.

    None without photos.
    """
    if not len(surprises):
        return None
    mean = np.average(surprises, axis=0, weights=weights)
    curve: Doubles = effective(weights) * CubicSpline(GRID, mean)(FINE)
    return curve


def believe(evidence: Doubles | None, prior: Belief) -> Belief:
    """Bayes' rule along `FINE`, from a normal prior of log T."""
    if evidence is None:
        return prior
    surprise = evidence + (FINE - prior.mean) ** 2 / (2 * prior.variance)
    weights = np.exp(surprise.min() - surprise)
    weights /= weights.sum()
    mean = float(weights @ FINE)
    return Belief(mean, float(weights @ (FINE - mean) ** 2))


def believe_all(every: Sequence[Doubles | None], pooled: float) -> list[Belief]:
    """Of several kinds of answers, each drawn to `pooled` (log T) as far as its photos are few.

    A priori log T of kind k ~ N(pooled, s^2): with own estimate t and its variance v, it becomes
    (t s^2 + pooled v) / (s^2 + v). s^2 is estimated from all kinds by expectation maximisation
    (Efron and Morris 1973, for log T), with one kind's worth of `USUAL_SPREAD` as its own prior.
    """
    spread = USUAL_SPREAD**2
    for _ in range(ROUNDS):
        beliefs = [believe(one, Belief(pooled, spread)) for one in every]
        squares = sum((one.mean - pooled) ** 2 + one.variance for one in beliefs)
        before, spread = spread, (USUAL_SPREAD**2 + squares) / (1 + len(beliefs))
        if abs(spread - before) < 1e-3 * before:
            break
    return beliefs
