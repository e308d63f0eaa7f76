"""A variant in a few lines; the notes behind them are in the report."""

from collections.abc import Iterator
from typing import Final

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.manifest import Evaluation, Variant
from taillift.models.bundle.prediction_sets import PredictionSets
from taillift.models.bundle.review import GroupReview, Review
from taillift.models.bundle.schema import GROUPS
from taillift.models.bundle.temperature import Calibration, ErrorChange
from taillift.training.report.html import change, number
from taillift.training.report.sections import exit_verdict

# The coverage in per cent that the summary names, of those that were measured.
TARGET: Final = 90


def summary(variant: Variant) -> Iterator[str]:
    """Yield what is known of a variant in at most twelve lines; the last counts the notes."""
    yield from headlines(variant)
    parts = (variant.exit, variant.calibration, variant.sets, variant.review)
    if count := sum(len(part.notes) for part in parts if part):
        yield f"{count} notes on what the photos could not show are in report/report.html"


def headlines(variant: Variant) -> Iterator[str]:
    """Yield what is known of a variant in at most eleven lines."""
    if variant.made:
        yield variant.made
    if variant.evaluation:
        yield from accuracy_lines(variant.evaluation)
    else:
        yield "no test/ or val/ photos: nothing is known of its accuracy"
    if variant.exit:
        yield exit_verdict(variant.exit)
        yield f"used unless a request says otherwise: {variant.usual_ensemble_reason}"
        if variant.exit.source == "cross-fitting":
            yield f"fitted by cross-fitting, as there is no val/: {variant.exit.data}"
    if variant.calibration:
        yield from calibration_lines(variant.calibration)
    else:
        yield "not calibrated: no exit rule, temperatures, prediction sets or review thresholds"
        yield from variant.notes
    if variant.sets:
        yield from coverage_lines(variant.sets)
    if variant.review:
        yield review_line(variant.review)


def accuracy_lines(evaluation: Evaluation) -> Iterator[str]:
    """Yield the mean-class accuracy with each ensemble, then few-shot and worst class."""
    scores = {"with one view": evaluation.single, "with five": evaluation.full}
    if evaluation.adaptive and evaluation.adaptive_views is not None:
        scores[f"adaptive ({evaluation.adaptive_views:.2f} views on average)"] = evaluation.adaptive
    means = ", ".join(f"{each.mean_class:.1f} % {name}" for name, each in scores.items())
    yield f"{evaluation.data}, {evaluation.images:,} photos: mean-class accuracy {means}"
    few = ", ".join(f"{each.few:.1f} %" for each in scores.values() if each.few is not None)
    worst = ", ".join(f"{each.worst_class:.1f} %" for each in scores.values())
    yield f"in the same order: {f'few-shot {few}; ' if few else ''}worst class {worst}"


def calibration_lines(calibration: Calibration) -> Iterator[str]:
    """Yield the calibration errors before and after, if they were measured.

    If the temperatures stay 1, it says so instead of a change.
    """
    errors = calibration.errors
    if errors is None:
        return

    changes = errors.adaptive or errors.full
    ensemble = "adaptive" if errors.adaptive else "five views"
    stays = (Ensemble.ADAPTIVE if errors.adaptive else Ensemble.FULL) in calibration.unproved

    def shown(error: ErrorChange) -> str:
        if error.before is None:
            return "not known"
        return number(error.before) if stays else change(error.before, error.after)

    if stays:
        yield (
            f"temperature stays 1 ({ensemble}): {calibration.images:,} held-out photos do not show "
            "that another one is better"
        )
    if changes.overall.before is None:
        yield f"calibration error ({ensemble}): not known, there are too few held-out photos"
        return
    groups = [f"{group} {shown(error)}" for group, error in changes.groups.items() if error.photos]
    errors_shown = ", ".join([shown(changes.overall), *groups])
    yield f"calibration error in points ({ensemble}): {errors_shown}"


def coverage_lines(sets: PredictionSets) -> Iterator[str]:
    """Yield how often the sets that were asked for `TARGET` per cent hold the right label."""
    estimates = sets.estimates.get(Ensemble.ADAPTIVE) or sets.estimates.get(Ensemble.FULL) or ()
    for scores in estimates:
        if round(scores.target) == TARGET and scores.macro is not None and scores.size is not None:
            few = scores.groups["few"].coverage
            rare = "" if few is None else f" ({few:.1f} % in few-shot classes)"
            yield (
                f"sets asked to hold the right label {TARGET} % of the time: {scores.macro:.1f} %"
                f"{rare}, with {scores.size:.1f} labels ({sets.data})"
            )


def review_line(review: Review) -> str:
    """Return the share of answers that may be accepted without review, by group."""

    def shown(group: GroupReview) -> str:
        if group.threshold is None:
            return "none"
        return f"{group.accepted:.0f} %{'' if group.certified else ' (estimated)'}"

    groups = [(name, review.groups[name]) for name in GROUPS if name in review.groups]
    shares = ", ".join(f"{name} {shown(group)}" for name, group in groups if group.photos)
    return (
        f"accepted without review, at {review.risk:g} % error: {shares or 'nothing'} "
        f"({review.data})"
    )
