"""What is made of confidence: sets of labels, and which answers a person should look at."""

from collections.abc import Iterator, Mapping
from typing import Final

from taillift.models.bundle.manifest import Variant
from taillift.models.bundle.prediction_sets import CoverageScores, PredictionSets
from taillift.models.bundle.review import Review
from taillift.models.bundle.schema import GROUPS, Precision
from taillift.training.report.html import TITLES, UNKNOWN, notes, number, paragraph, table

SETS: Final = (
    *("", "", "asked for, %", "marginal, %", "macro, %", *(f"{group}, %" for group in GROUPS)),
    *("labels", *(f"labels, {group}" for group in GROUPS)),
)
REVIEW: Final = (
    *("", "answered", "photos", "accepted from confidence", "threshold is"),
    *("accepted, %", "wrong among them, %"),
)


def sets(variants: Mapping[Precision, Variant]) -> str:
    known = {one: found.sets for one, found in variants.items() if found.sets}
    if not known:
        return paragraph("The bundle is not calibrated, and cannot answer coverage=.")
    rows = [row for one, part in known.items() for row in _covered(one, part)]
    first = next(iter(known.values()))
    return "".join(
        (
            table(SETS, rows, words=2),
            paragraph(
                f"Thresholds from {first.photos:,} different photos; measured on "
                f"{first.data}. How often the set holds the right label: marginal over "
                "photos, macro the mean over classes, and by group the mean over its classes. "
                f"Labels: how many a set has. {UNKNOWN}: no such photos.",
                "note",
            ),
            notes({one: part.notes for one, part in known.items()}),
        )
    )


def review(variants: Mapping[Precision, Variant]) -> str:
    known = {one: found.review for one, found in variants.items() if found.review}
    if not known:
        return paragraph("The bundle is not calibrated: it names no answer that may be accepted.")
    first = next(iter(known.values()))
    rows = [row for one, part in known.items() for row in _reviewed(one, part)]
    return "".join(
        (
            paragraph(
                f"An answer is to be accepted where at most {first.risk:g} % of such answers are "
                "wrong, in each group by itself; every other one is for a person to look at."
            ),
            table(REVIEW, rows, words=2),
            paragraph(
                f"Shares accepted and wrong: of adaptive answers, measured on {first.data}. "
                f"Certified: the errors stay within the risk with {first.level:g} % confidence; "
                f"estimated: they are expected to. {UNKNOWN}: no answer is accepted, or there was "
                "none.",
                "note",
            ),
            notes({one: part.notes for one, part in known.items()}),
        )
    )


def _covered(precision: Precision, part: PredictionSets) -> Iterator[list[str]]:
    for ensemble, every in part.estimates.items():
        for scores in every:
            yield [precision, TITLES[ensemble], f"{scores.target:g}", *_figures(scores)]


def _figures(scores: CoverageScores) -> list[str]:
    groups = [scores.groups[group] for group in GROUPS]
    shares = [scores.marginal, scores.macro, *(one.coverage for one in groups)]
    sizes = [scores.size, *(one.size for one in groups)]
    return [number(one) for one in (*shares, *sizes)]


def _reviewed(precision: Precision, part: Review) -> Iterator[list[str]]:
    for group, one in part.groups.items():
        accepts = one.threshold is not None
        kind = "certified" if one.certified else "estimated"
        yield [
            precision,
            group,
            f"{one.photos:,}",
            number(one.threshold, 3) if accepts else "never",
            kind if accepts else UNKNOWN,
            number(one.accepted if one.photos else None),
            number(one.error),
        ]
