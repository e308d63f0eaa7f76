"""A comparison as files to look at: results.md, figures, and report.html that holds them all."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Final, get_args

import numpy as np

from taillift.models.bundle.atomic import atomic_file
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.comparison.outcome import (
    WIDE_COLUMNS,
    Kind,
    Outcome,
    Row,
    caption,
    failures,
    headings,
    kind_of,
    margin,
    markdown,
    rows_of,
    succeeded,
)
from taillift.training.comparison.verdict import (
    HARMLESS,
    Verdict,
    class_rates,
    compare_kinds,
    recommendation,
)
from taillift.training.data.dataset import Dataset
from taillift.training.fit.provenance import Provenance
from taillift.training.recipe.recipe import Aim
from taillift.training.report.figures import (
    Bar,
    Point,
    Style,
    Tail,
    TauCurve,
    draw_groups,
    draw_parameters,
    draw_tail,
    draw_tau,
)
from taillift.training.report.html import UNKNOWN, Table, embedded, number, render

# None of the colours is that of a group.
KINDS: Final[dict[Kind, Style]] = {
    "frozen": Style("#55606e", "s"),
    "light": Style("#7a3bb5", "o"),
    "heavy": Style("#b3212b", "^"),
}
KIND_WORDS: Final[dict[Kind, str]] = {
    "frozen": "grey squares: nothing in the tower",
    "light": "purple dots: small tuners",
    "heavy": "red triangles: all weights of blocks",
}
FIGURES: Final = ("groups.png", "parameters.png", "tail.png")
# Only if a recipe trains something, and there are few-shot classes.
TAU_FIGURE: Final = "tau.png"

TABLE: Final = "results.md"
REPORT: Final = "report.html"
# These need at least one run that succeeded.
DRAWN: Final = (*FIGURES, REPORT)


def write_report(
    folder: Path,
    dataset: Dataset,
    outcomes: Sequence[Outcome],
    command: str,
    aim: Aim = "mean-class",
) -> list[str]:
    """Write results.md, the figures and report.html, and return the names of the files written.

    `command` is the command that was run, shown in the page; a recipe is recommended by `aim`. If
    every run failed, only results.md is written, and figures and page of an earlier comparison are
    removed.
    """
    write_text(folder / TABLE, markdown(outcomes))
    rows = [row for row in rows_of(outcomes) if succeeded(row.outcomes)]
    if not rows:
        for name in (*DRAWN, TAU_FIGURE):
            (folder / name).unlink(missing_ok=True)
        return [TABLE]
    groups = dataset.groups
    bars = {
        row.label: {group: bar_of(row.values("full", group)) for group in GROUPS} for row in rows
    }
    overall = {row.label: mean(row.values("full", "mean_class")) for row in rows}
    with atomic_file(folder / "groups.png") as path:
        draw_groups(path, bars, overall)
    panels = {
        "mean-class accuracy, %": points(rows, "mean_class"),
        "accuracy of few-shot classes, %": points(rows, "few"),
    }
    with atomic_file(folder / "parameters.png") as path:
        # A set without few-shot classes has one panel.
        draw_parameters(path, {title: panel for title, panel in panels.items() if panel})
    counted = [
        f"{name} ({count})" for name, count in zip(dataset.classes, dataset.counts, strict=True)
    ]
    with atomic_file(folder / "tail.png") as path:
        draw_tail(path, before_and_after(rows), counted, dataset.counts, groups)
    curves, advice = tau_curves(rows), recommendation(outcomes, groups, aim)
    if curves:
        with atomic_file(folder / TAU_FIGURE) as path:
            draw_tau(path, curves)
    else:
        (folder / TAU_FIGURE).unlink(missing_ok=True)
    verdict = compare_kinds(outcomes, groups)
    heads = ("", *(f"{views}\n{measure}" for views, measure in headings(WIDE_COLUMNS)))
    page = render(
        "comparison.html",
        data=dataset.name,
        verdict=verdict,
        margin=HARMLESS,
        differences=differences(verdict) if verdict else None,
        recommendation=advice.sentence if advice else None,
        caption=caption(outcomes),
        results=Table(
            heads, [[row.label, *row.cells(WIDE_COLUMNS)] for row in rows_of(outcomes)], words=1
        ),
        failures=failures(outcomes),
        figures=[
            (embedded(folder / name), text)
            for name, text in zip(FIGURES, captions(rows, bars), strict=True)
        ],
        tau_figure=embedded(folder / TAU_FIGURE) if curves else None,
        taus=tau_table(rows) if curves else None,
        command=command,
        provenance=provenance(dataset, groups, outcomes),
    )
    write_text(folder / REPORT, page)
    return [TABLE, *FIGURES, *([TAU_FIGURE] if curves else []), REPORT]


def bar_of(values: Sequence[float]) -> Bar:
    """Return mean and standard deviation over seeds."""
    if not values:
        return Bar(math.nan)
    return Bar(mean(values), stdev(values) if len(values) > 1 else 0.0)


def points(rows: Sequence[Row], measure: str) -> list[Point]:
    """Return a point for each recipe for which the measure is known."""
    bars = [(row, bar_of(row.values("full", measure))) for row in rows]
    return [
        Point(
            row.label,
            row.trainable_parameters or 0,
            bar.mean,
            bar.deviation,
            KINDS[kind_of(row.recipe)],
        )
        for row, bar in bars
        if not math.isnan(bar.mean)
    ]


def captions(rows: Sequence[Row], bars: Mapping[str, Mapping[Group, Bar]]) -> list[str]:
    """Return the captions of `FIGURES`, which name only what is drawn."""
    groups = "Accuracy of every recipe by group."
    if any(bar.deviation for of_recipe in bars.values() for bar in of_recipe.values()):
        groups += " The lines at the bars' ends are standard deviations over seeds."
    present = {kind_of(row.recipe) for row in rows}
    kinds = "; ".join(KIND_WORDS[kind] for kind in KINDS if kind in present)
    return [
        groups,
        f"Accuracy against the number of trained parameters. {kinds[0].upper()}{kinds[1:]}.",
        "Accuracy along the tail, from the class with the most training photos to the one with the "
        "fewest.",
    ]


def tau_curves(rows: Sequence[Row]) -> list[TauCurve]:
    """Return the curve of each recipe that trains something, if there are few-shot classes."""
    curves = []
    for row in rows:
        points = row.tau_curve() if row.recipe.epochs else []
        few = [point.few for point in points if point.few is not None]
        if few:
            taus, means = zip(*((point.tau, point.mean_class) for point in points), strict=True)
            curves.append(TauCurve(row.label, taus, few, means))
    return curves


def tau_table(rows: Sequence[Row]) -> Table:
    """Return each recipe's mean-class and few-shot accuracy by tau, and its margin."""
    by_label = {row.label: curve for row in rows if (curve := row.tau_curve())}
    taus = [point.tau for point in next(iter(by_label.values()))]
    heads = ("", *(f"\N{GREEK SMALL LETTER TAU} = {tau:g}" for tau in taus), "above the others")
    cells = []
    for label, curve in by_label.items():
        others = [other for name, other in by_label.items() if name != label]
        gain = margin(curve, others)
        pairs = (f"{point.mean_class:.1f} / {number(point.few)}" for point in curve)
        cells.append([label, *pairs, UNKNOWN if gain is None else f"{gain:+.1f}"])
    return Table(heads, cells, words=1)


def before_and_after(rows: Sequence[Row]) -> list[Tail]:
    """Return the class accuracies of zero-shot, LIFT and full fine-tuning.

    If one of them is missing, another recipe of its kind takes its place.
    """
    preferred: dict[Kind, str] = {"frozen": "zero-shot", "light": "lift", "heavy": "full"}
    assert set(preferred) == set(get_args(Kind))
    tails = []
    for kind, name in preferred.items():
        candidates = [row for row in rows if kind_of(row.recipe) == kind]
        candidates.sort(key=lambda row: row.recipe.name != name)
        if candidates:
            by_seed = [class_rates(outcome) for outcome, _ in succeeded(candidates[0].outcomes)]
            rates = np.mean(by_seed, axis=0).tolist()
            tails.append(Tail(candidates[0].label, rates, KINDS[kind]))
    return tails


def differences(verdict: Verdict) -> Table:
    """Return every difference between a heavy and a light recipe, with its interval."""
    heads = (
        *("heavy", "against", "measure", "difference, points", "95 % interval", "seeds"),
        *("classes", "does harm"),
    )
    rows = [
        [
            *(each.heavy, each.light, each.measure, f"{each.points:+.1f}"),
            *(f"{each.low:+.1f} to {each.high:+.1f}", str(each.seeds), str(each.classes)),
            each.answer,
        ]
        for pair in verdict.differences
        for each in pair
    ]
    return Table(heads, rows, words=3)


def provenance(
    dataset: Dataset, groups: Sequence[Group], outcomes: Sequence[Outcome]
) -> dict[str, str]:
    """Return the data, the seeds, the machines and the versions behind a comparison."""
    sizes = ", ".join(f"{groups.count(group)} {group}" for group in GROUPS)
    first = outcomes[0]
    images = next((evaluation.images for _, evaluation in succeeded(outcomes)), 0)
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    return {
        "data": f"{dataset.folder}: {len(dataset.train):,} training photos of "
        f"{len(dataset.classes)} classes ({sizes}), most frequent {max(dataset.counts):,}, rarest "
        f"{min(dataset.counts):,}; measured on {images:,} others (fingerprint "
        f"{first.fingerprint[:12]})",
        "backbone": f"{first.backbone} (sha256 {first.backbone_sha256[:12]})",
        "seeds": ", ".join(map(str, sorted({outcome.recipe.seed for outcome in outcomes}))),
        "machine": "; ".join(sorted({machine_of(record) for record in records})),
        "versions": "; ".join(sorted({versions_of(record) for record in records})),
        "precision": ", ".join(
            sorted({record.precision for record in records if record.precision})
        ),
        "training time": f"{sum(outcome.seconds for outcome in outcomes) / 60:.0f} minutes in all "
        "runs",
    }


def machine_of(record: Provenance) -> str:
    """Return the machine that a run was made on, in words."""
    machine = record.machine
    gpus = f" and {len(machine.gpus)} {machine.gpus[0]}" if machine.gpus else ""
    processes = f", {record.processes} processes" if record.processes > 1 else ""
    return f"{machine.processor}, {machine.cores} cores{gpus}{processes}"


def versions_of(record: Provenance) -> str:
    """Return the packages and the commit that a run was made with."""
    commit = f", commit {record.revision[:12]}" if record.revision else ""
    changed = " with changes" if record.changed else ""
    packages = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return f"{packages}{commit}{changed}"


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, "utf-8")
