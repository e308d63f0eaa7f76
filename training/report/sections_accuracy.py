"""How often the bundle is right, along the tail."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from taillift.models.bundle.manifest import Evaluation, Scores, Variant
from taillift.models.bundle.schema import GROUPS, Group, Precision
from taillift.training.calibration.held_out import HeldOut
from taillift.training.evaluation import class_accuracies
from taillift.training.fit.checkpoint import CheckpointMetadata
from taillift.training.report.html import TITLES, UNKNOWN, number, paragraph, table

HEADS: Final = ("", "", "mean class", *GROUPS, "worst class", "harmonic mean", "overall", "views")


def section(variants: Mapping[Precision, Variant]) -> str:
    known = {one: found.evaluation for one, found in variants.items() if found.evaluation}
    if not known:
        return paragraph(
            "There are no test/ or val/ photos, so nothing is known of this bundle's accuracy."
        )
    data = next(iter(known.values()))
    rows = [row for precision, found in known.items() for row in _rows(precision, found)]
    return table(HEADS, rows, words=2) + paragraph(
        f"Accuracy in per cent on {data.data}, {data.images:,} photos. By group: mean over the "
        f"classes of the group; overall: over photos. {UNKNOWN}: the group has no such photos."
        + _flattery(variants[Precision.FP32]),
        "note",
    )


def _flattery(variant: Variant) -> str:
    known, rule = variant.evaluation, variant.exit
    if known is None or rule is None or known.data != rule.data:
        return ""
    return " The exit rule was fitted on these very photos, which flatters adaptive a little."


def classes(facts: CheckpointMetadata, groups: Sequence[Group], check: HeldOut) -> str:
    """A table of all classes, closed until it is asked for."""
    found = class_accuracies(check.view_logits, check.labels, len(groups))
    rows = [
        [
            name,
            group,
            f"{count:,}",
            number(one.single if one else None),
            number(one.full if one else None),
        ]
        for name, group, count, one in zip(facts.classes, groups, facts.counts, found, strict=True)
    ]
    heads = ("class", "group", "training photos", "one view, %", "five views, %")
    return f"<details><summary>Every class</summary>{table(heads, rows, words=2)}</details>"


def _rows(precision: Precision, found: Evaluation) -> Iterator[list[str]]:
    every = (found.single, 1.0), (found.full, 5.0), (found.adaptive, found.adaptive_views)
    for title, (scores, views) in zip(TITLES.values(), every, strict=True):
        if scores:
            yield [precision, title, *_figures(scores), number(views, 2)]
        else:
            yield [precision, f"{title}: there is no exit rule", *[UNKNOWN] * (len(HEADS) - 2)]


def _figures(scores: Scores) -> list[str]:
    by_group = [getattr(scores, group) for group in GROUPS]
    figures = [scores.mean_class, *by_group, scores.worst_class, scores.harmonic_mean]
    return [number(one) for one in (*figures, scores.overall)]
