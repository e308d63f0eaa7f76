"""What is known of a variant, in a few lines; the notes behind them stand in the report."""

from collections.abc import Iterator
from typing import Final

from taillift.models.bundle.ensemble import Ensemble, ExitRule
from taillift.models.bundle.manifest import Evaluation, Variant
from taillift.models.bundle.prediction_sets import PredictionSets
from taillift.models.bundle.review import GroupReview, Review
from taillift.models.bundle.schema import GROUPS
from taillift.models.bundle.temperature import Calibration, ErrorChange
from taillift.training.report.html import change
from taillift.training.report.sections_ensembling import verdict

TARGET: Final = 90


def in_short(variant: Variant) -> Iterator[str]:
    """At most nine lines."""
    if variant.made:
        yield variant.made
    yield from _accuracy(variant.evaluation)
    if variant.exit:
        yield from _exit(variant.exit)
    if variant.calibration:
        yield from _calibration(variant.calibration)
    else:
        yield "not calibrated: no exit rule, temperatures, prediction sets or review thresholds"
        yield from variant.notes
    if variant.sets:
        yield from _sets(variant.sets)
    if variant.review:
        yield from _review(variant.review)


def _accuracy(found: Evaluation | None) -> Iterator[str]:
    if found is None:
        yield "no test/ or val/ photos: nothing is known of its accuracy"
        return
    ways = {"with one view": found.single, "with five": found.full}
    if found.adaptive and found.adaptive_views is not None:
        ways[f"adaptive ({found.adaptive_views:.2f} views on average)"] = found.adaptive
    means = ", ".join(f"{one.mean_class:.1f} % {way}" for way, one in ways.items())
    yield f"{found.data}, {found.images:,} photos: mean-class accuracy {means}"
    few = ", ".join(f"{one.few:.1f} %" for one in ways.values() if one.few is not None)
    worst = ", ".join(f"{one.worst_class:.1f} %" for one in ways.values())
    yield f"in the same order: {f'few-shot {few}; ' if few else ''}worst class {worst}"


def _exit(rule: ExitRule) -> Iterator[str]:
    yield verdict(rule)
    if rule.source == "cross-fitting":
        yield f"fitted by cross-fitting, for want of val/: {rule.data}"


def _calibration(found: Calibration) -> Iterator[str]:
    if found.errors is None:
        return
    changes = found.errors.adaptive or found.errors.full
    way = "adaptive" if found.errors.adaptive else "five views"
    groups = [f"{group} {_error(one)}" for group, one in changes.groups.items() if one.photos]
    yield f"calibration error ({way}): {', '.join([_error(changes.overall), *groups])} points"


def _error(one: ErrorChange) -> str:
    return "too few photos" if one.before is None else change(one.before, one.after)


def _sets(found: PredictionSets) -> Iterator[str]:
    every = found.estimates.get(Ensemble.ADAPTIVE) or found.estimates.get(Ensemble.FULL) or ()
    for one in every:
        if round(one.target) == TARGET and one.macro is not None and one.size is not None:
            few = one.groups["few"].coverage
            rare = "" if few is None else f" ({few:.1f} % in few-shot classes)"
            yield (
                f"sets asked to hold the right label {TARGET} % of the time: {one.macro:.1f} %"
                f"{rare}, with {one.size:.1f} labels ({found.data})"
            )


def _review(found: Review) -> Iterator[str]:
    known = [(group, found.groups[group]) for group in GROUPS if group in found.groups]
    shares = ", ".join(f"{group} {_share(one)}" for group, one in known if one.photos)
    yield f"to be accepted, at an error of {found.risk:g} %: {shares or 'nothing'} ({found.data})"


def _share(one: GroupReview) -> str:
    if one.threshold is None:
        return "none"
    return f"{one.accepted:.0f} %{'' if one.certified else ' (estimated)'}"
