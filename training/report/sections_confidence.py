"""Whether an answer is right as often as its confidence says."""

from collections.abc import Iterator, Mapping
from typing import Final

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.manifest import Variant
from taillift.models.bundle.schema import GROUPS, Precision
from taillift.models.bundle.temperature import Calibration, ErrorChange, ErrorChanges, Temperatures
from taillift.training.report.html import TITLES, UNKNOWN, change, notes, number, paragraph, table

ERRORS: Final = (
    *("", "", "answered", "photos", "error, points", "resolution", "ECE, points", "halved?"),
)
TEMPERATURES: Final = ("", "", "all answers", *(f"answered {group}" for group in GROUPS))


def section(variants: Mapping[Precision, Variant]) -> str:
    known = {one: found.calibration for one, found in variants.items() if found.calibration}
    if not known:
        return paragraph(
            "The bundle is not calibrated: every temperature is 1, and a confidence "
            "does not say how often such answers are right."
        )
    first = next(iter(known.values()))
    measured = first.errors.data if first.errors else "nothing"
    return "".join(
        (
            paragraph(
                f"Fitted on {first.data}, {first.images:,} different photos; "
                f"measured on {measured}.",
            ),
            table(ERRORS, (row for one, found in known.items() for row in _errors(one, found)), 3),
            paragraph(
                "At temperature 1 \N{RIGHTWARDS ARROW} as calibrated. Error: root mean square gap "
                "between confidence and accuracy, less what chance makes of so few photos. "
                "Resolution: what perfect confidence would stay under 19 times of 20. ECE: mean "
                "gap, over 15 bins of equal mass, with chance. Photos of every class weigh the "
                f"same. {UNKNOWN}: fewer than 100 photos, or no such answers. Halved: whether "
                "the error was at least halved, where the photos can tell.",
                "note",
            ),
            notes({one: found.errors.notes for one, found in known.items() if found.errors}),
            "<h3>Temperatures</h3>",
            table(
                TEMPERATURES, (row for one, found in known.items() for row in _fits(one, found)), 2
            ),
            notes({one: found.notes for one, found in known.items()}),
        )
    )


def _errors(precision: Precision, found: Calibration) -> Iterator[list[str]]:
    if found.errors is None:
        return
    every = found.errors.off, found.errors.full, found.errors.adaptive
    for title, changes in zip(TITLES.values(), every, strict=True):
        if changes:
            for name, one in _places(changes):
                yield [precision, title, name, *_figures(one)]


def _places(changes: ErrorChanges) -> Iterator[tuple[str, ErrorChange]]:
    yield "overall", changes.overall
    yield from changes.groups.items()


def _figures(one: ErrorChange) -> list[str]:
    return [
        f"{one.photos:,}",
        change(one.before, one.after),
        number(one.resolution),
        change(one.ece_before, one.ece_after),
        _halved(one),
    ]


def _halved(one: ErrorChange) -> str:
    if one.before is None or one.after is None or not one.enough:
        return "cannot tell"
    return "yes" if one.after <= one.before / 2 else "no"


def _fits(precision: Precision, found: Calibration) -> Iterator[list[str]]:
    kinds = {TITLES[Ensemble.OFF]: found.off, TITLES[Ensemble.FULL]: found.full}
    for views, one in found.adaptive.items():
        kinds[f"{TITLES[Ensemble.ADAPTIVE]}, stopped after {views}"] = one
    for name, one in kinds.items():
        yield [precision, name, *_temperatures(one)]


def _temperatures(one: Temperatures) -> list[str]:
    return [number(value, 2) for value in (one.pooled, *one.row)]
