"""Reliability: whether answers are right as often as their confidence says."""

from collections.abc import Sequence

from taillift.models.bundle.calibration_error import (
    MIN_PHOTOS,
    ScoredPredictions,
    bins,
    calibration_error,
    effective_count,
    expected_error,
    minimum_detectable_error,
)
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.schema import GROUPS
from taillift.models.bundle.temperature import (
    Calibration,
    CalibrationErrors,
    ErrorChange,
    ErrorChanges,
)
from taillift.training.calibration.held_out import Predictions


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
