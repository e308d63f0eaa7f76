"""Whether answers are right as often as their confidence says."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.schema import GROUPS
from taillift.models.bundle.temperature import (
    Calibration,
    CalibrationErrors,
    ErrorChange,
    ErrorChanges,
)
from taillift.training.calibration.predictions import Predictions, ScoredPredictions, effective

BINS: Final = 15
# In a bin; of fewer photos there are fewer bins.
FEWEST_IN_BIN: Final = 20
# For any statement.
FEWEST: Final = 100
# One-sided 95 %.
SURE: Final = 1.645


@dataclass(frozen=True)
class Bin:
    """Means over the photos of a bin; `share` of the whole, `photos` as equally weighted ones."""

    confidence: float
    accuracy: float
    share: float
    photos: float
    chance: float

    @property
    def noise(self) -> float:
        """Variance of the accuracy; the sample variance (Kumar et al. 2019, section 5)."""
        return self.accuracy * (1 - self.accuracy) / max(1.0, self.photos - 1)


def bins(verdicts: ScoredPredictions) -> list[Bin]:
    """At most `BINS` bins of equal weight, by confidence."""
    if not len(verdicts):
        return []
    return _equal(verdicts, int(np.clip(effective(verdicts.weights) // FEWEST_IN_BIN, 1, BINS)))


def _equal(verdicts: ScoredPredictions, count: int) -> list[Bin]:
    """`count` bins of equal weight, less those that no photo falls into."""
    order = np.argsort(verdicts.confidence, kind="stable")
    weights = verdicts.weights[order] / verdicts.weights.sum()
    middles = weights.cumsum() - weights / 2
    places = np.minimum((middles * count).astype(np.int64), count - 1)
    rows = (order[places == place] for place in range(count))
    return [_bin(verdicts, one) for one in rows if len(one)]


def _bin(verdicts: ScoredPredictions, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Bin:
    weights = verdicts.weights[rows]
    confidence = verdicts.confidence[rows]
    photos = effective(weights)
    return Bin(
        confidence=float(np.average(confidence, weights=weights)),
        accuracy=float(np.average(verdicts.right[rows], weights=weights)),
        share=float(weights.sum() / verdicts.weights.sum()),
        photos=photos,
        chance=float(np.average(confidence * (1 - confidence), weights=weights)) / photos,
    )


def calibration_error(every: Sequence[Bin]) -> float:
    """In points: root of the mean squared gap less its expectation by chance.

    The plug-in estimate grows with the number of bins and falls with the photos, even where
    confidence is perfect; this one does not (Kumar et al. 2019, section 5, with bins of equal mass
    as Roelofs et al. 2022, section 6, recommend). Where chance explains more than the gap, it is 0.
    """
    square = sum(one.share * ((one.confidence - one.accuracy) ** 2 - one.noise) for one in every)
    return 100 * math.sqrt(max(0.0, square))


def expected_error(verdicts: ScoredPredictions) -> float:
    """In points: the mean gap, without sign, between confidence and accuracy over `BINS` bins.

    The expected calibration error as it is usually given (Guo et al. 2017, equation 3), with bins
    of equal mass. Chance alone makes it larger the fewer photos there are.
    """
    every = _equal(verdicts, BINS)
    return 100 * sum(one.share * abs(one.confidence - one.accuracy) for one in every)


def resolution(every: Sequence[Bin]) -> float:
    """In points: what perfect confidence stays under with so many photos, 95 times of 100.

    The squared gap of a bin then has the mean v = E[p (1 - p)] / n, and the variance 2 v^2.
    """
    variance = sum(2 * (one.share * one.chance) ** 2 for one in every)
    return 100 * math.sqrt(SURE * math.sqrt(variance))


def measure(calibration: Calibration, data: str, every: Sequence[Predictions]) -> CalibrationErrors:
    """The error on each ensemble's answers, before a calibration fitted elsewhere and after it."""
    return changes_of(data, [(one, one.calibrated(calibration)) for one in every])


def changes_of(
    data: str, every: Sequence[tuple[Predictions, ScoredPredictions]]
) -> CalibrationErrors:
    """The error of each ensemble's answers at temperature 1 and as given."""
    found = {one.ensemble: _changes(one.uncalibrated(), after) for one, after in every}
    return CalibrationErrors(
        data=data,
        off=found[Ensemble.OFF],
        full=found[Ensemble.FULL],
        adaptive=found.get(Ensemble.ADAPTIVE),
        notes=tuple(note for one, _ in every for note in _notes(one, found[one.ensemble])),
    )


def _notes(answers: Predictions, changes: ErrorChanges) -> Iterator[str]:
    with_classes = {GROUPS[place]: changes.groups[GROUPS[place]] for place in set(answers.groups)}
    every = {"overall": changes.overall} | with_classes
    if silent := [name for name, one in every.items() if one.before is None]:
        names = ", ".join(silent)
        yield f"{answers.ensemble}: fewer than {FEWEST} photos, too few for an error: {names}"
    vague = [name for name, one in every.items() if one.before is not None and not one.enough]
    if vague:
        names = ", ".join(vague)
        yield f"{answers.ensemble}: too few photos to tell half the error from none: {names}"


def _changes(before: ScoredPredictions, after: ScoredPredictions) -> ErrorChanges:
    return ErrorChanges(
        overall=change(before, after),
        groups={
            group: change(before.of_group(place), after.of_group(place))
            for place, group in enumerate(GROUPS)
        },
    )


def change(before: ScoredPredictions, after: ScoredPredictions) -> ErrorChange:
    """None as errors where the photos are worth fewer than `FEWEST`."""
    if effective(after.weights) < FEWEST:
        return ErrorChange(photos=len(after), before=None, after=None, resolution=None)
    calibrated = bins(after)
    return ErrorChange(
        photos=len(after),
        before=calibration_error(bins(before)),
        after=calibration_error(calibrated),
        resolution=resolution(calibrated),
        ece_before=expected_error(before),
        ece_after=expected_error(after),
    )
