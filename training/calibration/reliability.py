"""Reliability: whether answers are right as often as their confidence says."""

import math
from collections.abc import Sequence
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
from taillift.training.calibration.held_out import Predictions, ScoredPredictions, effective_count

MAX_BINS: Final = 15
# With fewer photos than this in a bin there are fewer bins.
MIN_IN_BIN: Final = 20
# With fewer photos than this there is no error.
MIN_PHOTOS: Final = 100
# The one-sided 95 % quantile of the normal distribution.
QUANTILE_95: Final = 1.645


@dataclass(frozen=True)
class Bin:
    """Means over the photos of a bin, which are the part `share` of the whole.

    `photos` is the effective number, as if equally weighted. `chance` is the variance of the
    accuracy if confidence is perfect.
    """

    confidence: float
    accuracy: float
    share: float
    photos: float
    chance: float

    @property
    def noise(self) -> float:
        """The sample variance of the accuracy (Kumar et al. 2019, section 5)."""
        return self.accuracy * (1 - self.accuracy) / max(1.0, self.photos - 1)


def bins(scored: ScoredPredictions) -> list[Bin]:
    """Return at most `MAX_BINS` bins of equal weight, by confidence."""
    if not len(scored):
        return []
    return equal_bins(
        scored, int(np.clip(effective_count(scored.weights) // MIN_IN_BIN, 1, MAX_BINS))
    )


def equal_bins(scored: ScoredPredictions, count: int) -> list[Bin]:
    """Return `count` bins of equal weight, without those that no photo falls into."""
    order = np.argsort(scored.confidence, kind="stable")
    shares = scored.weights[order] / scored.weights.sum()
    middles = shares.cumsum() - shares / 2
    numbers = np.minimum((middles * count).astype(np.int64), count - 1)
    result = []
    for number in np.unique(numbers):
        rows = order[numbers == number]
        weights, confidence = scored.weights[rows], scored.confidence[rows]
        photos = effective_count(weights)
        result.append(
            Bin(
                confidence=float(np.average(confidence, weights=weights)),
                accuracy=float(np.average(scored.right[rows], weights=weights)),
                share=float(weights.sum() / scored.weights.sum()),
                photos=photos,
                chance=float(np.average(confidence * (1 - confidence), weights=weights)) / photos,
            )
        )
    return result


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the root mean squared gap over bins, less what chance explains, in points.

    The plug-in estimate grows with the number of bins and falls with the photos, even if confidence
    is perfect. This one does not (Kumar et al. 2019, section 5, with bins of equal mass as Roelofs
    et al. 2022, section 6, recommend). It is 0 if chance explains more than the gap.
    """
    square = sum(b.share * ((b.confidence - b.accuracy) ** 2 - b.noise) for b in bins)
    return 100 * math.sqrt(max(0.0, square))


def expected_error(scored: ScoredPredictions) -> float:
    """Return the mean absolute gap between confidence and accuracy over bins, in points.

    This is the expected calibration error as usually reported (Guo et al. 2017, equation 3), with
    `MAX_BINS` bins of equal mass. Chance alone makes it larger the fewer photos there are.
    """
    bins = equal_bins(scored, MAX_BINS)
    return 100 * sum(b.share * abs(b.confidence - b.accuracy) for b in bins)


def minimum_detectable_error(bins: Sequence[Bin]) -> float:
    """Return what the error of perfect confidence stays under 95 times out of 100, in points.

    With perfect confidence, the squared gap of a bin has the mean v = E[p (1 - p)] / n, and the
    variance 2 v^2.
    """
    variance = sum(2 * (b.share * b.chance) ** 2 for b in bins)
    return 100 * math.sqrt(QUANTILE_95 * math.sqrt(variance))


def measure_errors(
    calibration: Calibration, data: str, ensembles: Sequence[Predictions]
) -> CalibrationErrors:
    """Return each ensemble's errors before and after a calibration that was fitted elsewhere."""
    scored = [(predictions, predictions.calibrated(calibration)) for predictions in ensembles]
    return errors_of(data, scored)


def errors_of(
    data: str, ensembles: Sequence[tuple[Predictions, ScoredPredictions]]
) -> CalibrationErrors:
    """Return the errors of each ensemble at temperature 1 and as scored."""
    changes: dict[Ensemble, ErrorChanges] = {}
    notes: list[str] = []
    for predictions, after in ensembles:
        ensemble, before = predictions.ensemble, predictions.uncalibrated()
        by_group = {
            group: change(before.of_group(index), after.of_group(index))
            for index, group in enumerate(GROUPS)
        }
        changes[ensemble] = ErrorChanges(overall=change(before, after), groups=by_group)
        with_classes = {GROUPS[index]: by_group[GROUPS[index]] for index in set(predictions.groups)}
        parts = {"overall": changes[ensemble].overall} | with_classes
        if unknown := [name for name, part in parts.items() if part.before is None]:
            notes.append(
                f"{ensemble}: fewer than {MIN_PHOTOS} photos, too few for an error: "
                + ", ".join(unknown)
            )
        if vague := [
            name for name, part in parts.items() if part.before is not None and not part.enough
        ]:
            notes.append(
                f"{ensemble}: too few photos to tell half the error from none: " + ", ".join(vague)
            )
    return CalibrationErrors(
        data=data,
        off=changes[Ensemble.OFF],
        full=changes[Ensemble.FULL],
        adaptive=changes.get(Ensemble.ADAPTIVE),
        notes=tuple(notes),
    )


def change(before: ScoredPredictions, after: ScoredPredictions) -> ErrorChange:
    """Return both errors, or None for them if the photos are worth fewer than `MIN_PHOTOS`."""
    if effective_count(after.weights) < MIN_PHOTOS:
        return ErrorChange(photos=len(after), before=None, after=None, resolution=None)
    calibrated = bins(after)
    return ErrorChange(
        photos=len(after),
        before=calibration_error(bins(before)),
        after=calibration_error(calibrated),
        resolution=minimum_detectable_error(calibrated),
        ece_before=expected_error(before),
        ece_after=expected_error(after),
    )
