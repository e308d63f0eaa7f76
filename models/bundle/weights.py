"""Weights of photos, what weighted photos are worth, and estimates shrunk by their error."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float64]
Estimate = TypeVar("Estimate", float, Weights)


def photo_weights(count: int) -> Weights:
    """Return ones [N]: every photo counts the same."""
    return np.ones(count)


def class_weights(labels: npt.NDArray[np.int64]) -> Weights:
    """Return weights [N] of mean 1 that turn a mean over photos into a mean over classes.

    With them the weighted mean over photos is the mean of the classes' own means.
    """
    _, class_indices, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights: Weights = len(labels) / (len(counts) * counts[class_indices])
    return weights


def effective_counts(weights: Weights) -> Weights:
    """Return how many equally weighted photos say as much as the first n do, [N].

    Kish's effective sample size (1965), (sum w)^2 / sum w^2, of positive weights [N].
    """
    counts: Weights = np.cumsum(weights) ** 2 / np.cumsum(weights**2)
    return counts


def effective_count(weights: Weights) -> float:
    """Return the last of `effective_counts`, and 0 without photos."""
    # Rounded so that N equal weights are worth exactly N.
    return round(float(effective_counts(weights)[-1]), 6) if len(weights) else 0.0


def shrink(estimate: Estimate, error: Estimate, toward: Estimate, spread: float) -> Estimate:
    """Return `estimate` shrunk toward a prior value, the more so the larger its `error` is.

    This is the mean of N(toward, spread^2) after a measurement with a normal error, all in one
    unit.
    """
    trust = spread**2 / (spread**2 + error**2)
    return trust * estimate + (1 - trust) * toward
