"""What accuracy a cheaper answer is expected to lose, by more than the labels."""

from typing import Final

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from models.bundle.posterior import Doubles
from training.calibration.held_out import HeldOut

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


def drawn(prior: float, spread: float, estimate: float, error: float) -> float:
    """A measured loss, drawn to what was expected before as far as its error is large.

    The mean of N(prior, spread^2) after a measurement with a normal error, all in points.
    """
    trust = spread**2 / (spread**2 + error**2)
    return trust * estimate + (1 - trust) * prior
