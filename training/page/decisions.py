"""What is made of confidence: sets of labels, and which answers a person should look at."""

from collections.abc import Iterator, Mapping
from typing import Final

from models.bundle.coverage import CoverageScores, PredictionSets
from models.bundle.precision import Precision
from models.bundle.record import GROUPS
from models.bundle.review import Review
from training.calibration.judge import Judged
from training.page.markup import TITLES, UNKNOWN, notes, number, paragraph, table

SETS: Final = (
    *("", "", "asked for, %", "marginal, %", "macro, %", *(f"{group}, %" for group in GROUPS)),
    *("labels", *(f"labels, {group}" for group in GROUPS)),
)
REVIEW: Final = (
    *("", "answered", "photos", "accepted from confidence", "threshold is"),
    *("accepted, %", "wrong among them, %"),
)


def sets(judged: Mapping[Precision, Judged]) -> str:
    known = {one: found.variant.sets for one, found in judged.items() if found.variant.sets}
    if not known:
        return paragraph(
            "The bundle was exported without calibration, and cannot answer coverage=."
        )
    rows = [row for one, part in known.items() for row in _covered(one, judged[one], part)]
    first = next(iter(known.values()))
    return "".join(
        (
            table(SETS, rows, words=2),
            paragraph(
                f"Thresholds from {first.photos:,} different photos; measured on "
                f"{_measured_on(judged)}. How often the set holds the right label: marginal over "
                "photos, macro the mean over classes, and by group the mean over its classes. "
                f"Labels: how many a set has. {UNKNOWN}: no such photos.",
                "note",
            ),
            notes({one: part.notes for one, part in known.items()}),
        )
    )


def review(judged: Mapping[Precision, Judged]) -> str:
    known = {one: found.variant.review for one, found in judged.items() if found.variant.review}
    if not known:
        return paragraph(
            "The bundle was exported without calibration: it names no answer that may be accepted."
        )
    first = next(iter(known.values()))
    rows = [
        row for one, part in known.items() for row in _reviewed(one, _measured(judged, one, part))
    ]
    seen = any(found.checked for found in judged.values())
    on = _measured_on(judged) if seen else "the photos of the fit, which flatters them"
    return "".join(
        (
            paragraph(
                f"An answer is to be accepted where at most {first.risk:g} % of such answers are "
                "wrong, in each group by itself; every other one is for a person to look at."
            ),
            table(REVIEW, rows, words=2),
            paragraph(
                f"Shares accepted and wrong: of adaptive answers, measured on {on}. Certified: "
                f"the errors stay within the risk with {first.level:g} % confidence; estimated: "
                f"they are expected to. {UNKNOWN}: no answer is accepted, or there was none.",
                "note",
            ),
            notes({one: part.notes for one, part in known.items()}),
        )
    )


def _measured_on(judged: Mapping[Precision, Judged]) -> str:
    plain = judged[Precision.FP32]
    if plain.checked and plain.check:
        return f"{plain.check.data}, {len(plain.check):,} photos"
    return "the same photos, by cross-validation"


def _covered(precision: Precision, one: Judged, part: PredictionSets) -> Iterator[list[str]]:
    coverage = one.checked.coverage if one.checked else part.estimates
    for ensemble, every in coverage.items():
        for scores in every:
            yield [precision, TITLES[ensemble], f"{scores.target:g}", *_figures(scores)]


def _figures(scores: CoverageScores) -> list[str]:
    groups = [scores.groups[group] for group in GROUPS]
    shares = [scores.marginal, scores.macro, *(one.coverage for one in groups)]
    sizes = [scores.size, *(one.size for one in groups)]
    return [number(one) for one in (*shares, *sizes)]


def _measured(judged: Mapping[Precision, Judged], precision: Precision, part: Review) -> Review:
    checked = judged[precision].checked
    return checked.review if checked else part


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
