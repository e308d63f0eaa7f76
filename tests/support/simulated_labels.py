"""A stream of photos whose posteriors are right, and three ways to choose some for labelling."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Doubles
from taillift.service.tail.distributions import Flags, Indices

PHOTOS: Final = 5_000
# Classes with many, medium and few photos, and how often each comes.
RATES: Final = np.repeat([0.17, 0.0275, 0.0075], [4, 10, 6])
FEW: Final = np.arange(14, 20)
# How far a class stands out from the noise.
CONTRAST: Final = 2.2
LEAST: Final = 0.02


@dataclass(frozen=True)
class SimulatedStream:
    """Photos with their true classes [N], and what a calibrated model says about them [N, C]."""

    truths: Indices
    posteriors: Doubles

    @property
    def right(self) -> Flags:
        """[N], the photos that the model answers with their class."""
        flags: Flags = self.posteriors.argmax(1) == self.truths
        return flags

    @property
    def rare(self) -> Flags:
        """[N], the photos of few-shot classes."""
        return np.isin(self.truths, FEW)

    def probabilities(self, rule: str, labels: int) -> Doubles:
        """Return the probability with which each photo is chosen [N]; they sum to `labels`."""
        match rule:
            case "random":
                wanted = np.ones(PHOTOS)
            case "least margin":
                best = np.sort(self.posteriors, 1)
                wanted = LEAST + 1 - (best[:, -1] - best[:, -2])
            case "tail mass":
                wanted = LEAST + self.posteriors[:, FEW].sum(1)
            case _:
                raise ValueError(rule)
        scale = labels / wanted.sum()
        for _ in range(30):
            scale *= labels / np.minimum(1, scale * wanted).sum()
        chosen: Doubles = np.minimum(1, scale * wanted)
        return chosen


def simulated_stream(seed: int) -> SimulatedStream:
    """Return photos whose classes are seen through normal noise: Bayes' rule gives the truth."""
    rng = np.random.default_rng(seed)
    rates = RATES / RATES.sum()
    truths = rng.choice(len(rates), PHOTOS, p=rates)
    seen = rng.normal(size=(PHOTOS, len(rates)))
    seen[np.arange(PHOTOS), truths] += CONTRAST
    logits = CONTRAST * seen + np.log(rates)
    posteriors = np.exp(logits - logits.max(1, keepdims=True))
    return SimulatedStream(truths, posteriors / posteriors.sum(1, keepdims=True))
