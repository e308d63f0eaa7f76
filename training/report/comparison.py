"""A comparison as files to look at: results.md, figures, and report.html that holds them all."""

import base64
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from string import Template
from typing import Final, get_args

import numpy as np

from taillift.models.bundle.atomic import atomic_file
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.comparison.outcome import Kind, Outcome, kind_of, succeeded
from taillift.training.comparison.table import Row, caption, failures, headings, markdown, rows_of
from taillift.training.comparison.verdict import (
    HARMLESS,
    Difference,
    Verdict,
    class_rates,
    compare_kinds,
)
from taillift.training.data.dataset import Dataset
from taillift.training.fit.provenance import Provenance
from taillift.training.report.figures import Bar, Point, draw_groups, draw_parameters, draw_tail

PAGE: Final = Template(
    files("taillift.training.report").joinpath("templates/comparison.html").read_text("utf-8")
)
KINDS: Final[dict[Kind, str]] = {"frozen": "#777777", "light": "#0077bb", "heavy": "#cc3311"}
FIGURES: Final = {
    "groups.png": "Accuracy of every recipe by group. Lines at the bars' ends: standard deviation "
    "over seeds.",
    "parameters.png": "Accuracy against what was trained. Red: all weights of blocks; blue: small "
    "tuners; grey: the tower was left alone.",
    "tail.png": "Before and after, along the tail: from the class with the most training photos to "
    "the one with the fewest.",
}

TABLE: Final = "results.md"
REPORT: Final = "report.html"
# What needs a run that succeeded.
DRAWN: Final = (*FIGURES, REPORT)


def write_report(
    folder: Path, dataset: Dataset, outcomes: Sequence[Outcome], command: str
) -> list[str]:
    """Write results.md, the figures and report.html; `command` is what made them.

    Returns the names of what was written. Where every run failed there is nothing to draw: then
    that is results.md alone, and figures and page of an earlier comparison go.
    """
    _write_text(folder / TABLE, markdown(outcomes))
    rows = [row for row in rows_of(outcomes) if succeeded(row.outcomes)]
    if not rows:
        for name in DRAWN:
            (folder / name).unlink(missing_ok=True)
        return [TABLE]
    groups = dataset.groups
    with atomic_file(folder / "groups.png") as path:
        draw_groups(path, {row.label: _bars(row) for row in rows}, _overall(rows))
    with atomic_file(folder / "parameters.png") as path:
        draw_parameters(path, _panels(rows))
    with atomic_file(folder / "tail.png") as path:
        draw_tail(path, _before_and_after(rows), _counted(dataset), dataset.counts, groups)
    page = PAGE.substitute(
        data=escape(dataset.name),
        caption=escape(caption(outcomes)),
        answer=_answer(compare_kinds(outcomes, groups)),
        table=_table(outcomes),
        figures="\n".join(_figure(folder / name, text) for name, text in FIGURES.items()),
        facts=_facts(dataset, groups, outcomes, command),
    )
    _write_text(folder / REPORT, page)
    return [TABLE, *DRAWN]


def _bars(row: Row) -> dict[Group, Bar]:
    return {group: _bar(row.values("full", group)) for group in GROUPS}


def _bar(values: Sequence[float]) -> Bar:
    if not values:
        return Bar(math.nan)
    return Bar(mean(values), stdev(values) if len(values) > 1 else 0.0)


def _overall(rows: Sequence[Row]) -> dict[str, float]:
    return {row.label: mean(row.values("full", "mean_class")) for row in rows}


def _panels(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Mean-class and few-shot accuracy; without few-shot classes there is one panel."""
    titles = {"mean_class": "mean-class accuracy, %", "few": "accuracy of few-shot classes, %"}
    panels = {title: _points(rows, measure) for measure, title in titles.items()}
    return {title: points for title, points in panels.items() if points}


def _points(rows: Sequence[Row], measure: str) -> list[Point]:
    bars = [(row, _bar(row.values("full", measure))) for row in rows]
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


def _before_and_after(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Of nothing trained, LIFT and full fine-tuning; or of others of their kind in their place."""
    wanted = ("frozen", "zero-shot"), ("light", "lift"), ("heavy", "full")
    assert {kind for kind, _ in wanted} == set(get_args(Kind))
    found = {}
    for kind, name in wanted:
        alike = [row for row in rows if kind_of(row.recipe) == kind]
        alike.sort(key=lambda row: row.recipe.name != name)
        if alike:
            rates = [class_rates(one) for one, _ in succeeded(alike[0].outcomes)]
            found[alike[0].label] = np.mean(rates, axis=0).tolist()
    return found


def _counted(dataset: Dataset) -> list[str]:
    pairs = zip(dataset.classes, dataset.counts, strict=True)
    return [f"{name} ({count})" for name, count in pairs]


def _answer(verdict: Verdict | None) -> str:
    if verdict is None:
        return "<p>Name a heavy recipe (full) and a light one (lift) to have this answered.</p>"
    sentences = "".join(f"<li>{escape(one.reason)}.</li>" for one in verdict.deciding)
    rows = "".join(_difference(one) for ones in verdict.differences for one in ones)
    return (
        f"<p class=verdict>{escape(verdict.headline)}</p><ul>{sentences}</ul>"
        "<div class=wide><table class=words><thead><tr><th>heavy</th><th>against</th>"
        "<th>measure</th><th>difference, points</th><th>95 % interval</th><th>seeds</th>"
        f"<th>classes</th><th>does harm</th></tr></thead><tbody>{rows}</tbody></table></div>"
        "<p class=note>Accuracy with five views of heavy fine-tuning minus that of the light "
        "recipe. Intervals draw seeds and classes again (10,000 times, pairs kept together). "
        f"No: the whole interval is above &minus;{HARMLESS:g}. Yes: it is below zero, and reaches "
        f"&minus;{HARMLESS:g}. A light recipe other than LIFT was picked here as the best on these "
        "very photos, which favours it a little.</p>"
    )


def _difference(one: Difference) -> str:
    cells = [one.heavy, one.light, one.measure, f"{one.points:+.1f}"]
    cells += [f"{one.low:+.1f} to {one.high:+.1f}", str(one.seeds), str(one.classes), one.answer]
    return _row(cells, texts=3)


def _table(outcomes: Sequence[Outcome]) -> str:
    heads = "".join(f"<th>{views}<br>{escape(name)}</th>" for views, name in headings())
    rows = "".join(_row([row.label, *row.cells]) for row in rows_of(outcomes))
    notes = "".join(f"<p class=note>{escape(line)}</p>" for line in failures(outcomes))
    return (
        f"<div class=wide><table><thead><tr><th></th>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{notes}"
    )


def _row(cells: Sequence[str], texts: int = 1) -> str:
    """The first `texts` cells are words, the others figures."""
    words = "".join(f"<td>{escape(cell)}</td>" for cell in cells[:texts])
    return (
        f"<tr>{words}{''.join(f'<td class=n>{escape(cell)}</td>' for cell in cells[texts:])}</tr>"
    )


def _figure(path: Path, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def _facts(
    dataset: Dataset, groups: Sequence[Group], outcomes: Sequence[Outcome], command: str
) -> str:
    sizes = ", ".join(f"{groups.count(group)} {group}" for group in GROUPS)
    first = outcomes[0]
    images = next((evaluation.images for _, evaluation in succeeded(outcomes)), 0)
    records = [one.record for one in outcomes if one.record is not None]
    machines = sorted({_machine(one) for one in records})
    versions = sorted({_versions(one) for one in records})
    facts = {
        "command": f"<code>{escape(command)}</code>",
        "data": escape(
            f"{dataset.name}: {len(dataset.train):,} training photos of {len(dataset.classes)} "
            f"classes ({sizes}), most frequent {max(dataset.counts):,}, rarest "
            f"{min(dataset.counts):,}; measured on {images:,} others (fingerprint "
            f"{first.fingerprint[:12]})"
        ),
        "backbone": escape(f"{first.backbone} (sha256 {first.backbone_sha256[:12]})"),
        "seeds": ", ".join(map(str, sorted({one.recipe.seed for one in outcomes}))),
        "machine": escape("; ".join(machines)),
        "versions": escape("; ".join(versions)),
        "precision": ", ".join(sorted({one.precision for one in records if one.precision})),
        "training time": f"{sum(one.seconds for one in outcomes) / 60:.0f} minutes in all runs",
    }
    return "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items())


def _machine(record: Provenance) -> str:
    found = record.machine
    gpus = f" and {len(found.gpus)} {found.gpus[0]}" if found.gpus else ""
    processes = f", {record.processes} processes" if record.processes > 1 else ""
    return f"{found.processor}, {found.cores} cores{gpus}{processes}"


def _versions(record: Provenance) -> str:
    commit = f", commit {record.revision[:12]}" if record.revision else ""
    changed = " with changes" if record.changed else ""
    found = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return f"{found}{commit}{changed}"


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, "utf-8")
