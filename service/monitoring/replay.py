"""Past predictions, from a CSV file or by classifying a folder of photos."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import read_manifest
from taillift.models.bundle.images import ImageError
from taillift.models.errors import UserError
from taillift.service.monitoring.recorder import facts, source
from taillift.service.tail.monitor import ModelProfile, Rules, TailMonitor
from taillift.service.tail.state import (
    ClassState,
    GroupState,
    Interval,
    TailState,
    class_state,
    tail_state,
)

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclass(frozen=True)
class PastPrediction:
    """A top class as an index into the labels; `time` in seconds since 1970, where it is known."""

    label: int
    confidence: float
    time: float | None


def read_predictions(path: Path, labels: list[str]) -> Iterator[PastPrediction]:
    """Rows of a CSV file with the columns label,confidence and perhaps time, oldest first.

    `time` is in seconds since 1970 or ISO 8601 (without a zone: UTC). Raises `UserError` that
    names the line.
    """
    places = {label: place for place, label in enumerate(labels)}
    last = float("-inf")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            for row in rows:
                one = _prediction(row, places, f"{path}, line {rows.line_num}")
                if one.time is not None and one.time < last:
                    raise UserError(
                        f"{path}, line {rows.line_num} is older than the one before it: sort the "
                        "rows by time"
                    )
                last = one.time or last
                yield one
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: name a CSV file or a folder") from error
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from error


def _prediction(row: dict[str, str], places: dict[str, int], where: str) -> PastPrediction:
    for column in ("label", "confidence"):
        if row.get(column) is None:
            raise UserError(f"{where} has no {column}: it needs the columns label,confidence")
    if row["label"] not in places:
        raise UserError(f"{where}: the bundle has no class {row['label']!r}")
    try:
        confidence, time = float(row["confidence"]), _seconds(row.get("time"))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    if not 0 <= confidence <= 1:
        raise UserError(f"{where}: the confidence is {confidence}, not from 0 to 1")
    return PastPrediction(places[row["label"]], confidence, time)


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(f"the time is {text}, neither seconds since 1970 nor ISO 8601")
    return seconds


def classify_folder(
    bundle: Path, folder: Path, refused: Callable[[Path, str], None]
) -> Iterator[PastPrediction]:
    """The top classes of all photos below the folder, in the order of their paths, five views each.

    A photo that cannot be used is told to `refused`, with the reason, and left out. Raises
    `UserError` where there are no photos, or the bundle is not sound.
    """
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not photos:
        raise UserError(f"{folder} has no photos ({', '.join(sorted(SUFFIXES))}) to classify")
    classifier = Classifier.open(bundle)
    for photo, prediction in zip(
        photos, classifier.predictions(photos, Ensemble.FULL), strict=True
    ):
        if isinstance(prediction, ImageError):
            refused(photo, str(prediction))
        else:
            row = prediction.uniform
            yield PastPrediction(int(row.argmax()), float(row.max()), None)


# Predictions between two looks, as between two scrapes of a service.
LOOK: Final = 100
SHOWN: Final = 20


@dataclass(frozen=True)
class Report:
    """At the end of the predictions, and how many there had been when a class was first found.

    `classes` are those found silent or drifting by then, the strongest evidence first.
    """

    state: TailState
    classes: tuple[ClassState, ...]
    first_found: dict[str, int]
    delays: tuple[float, ...]


@dataclass
class _Time:
    """Goes with the predictions; where they have no time, it stands."""

    now: float = 0.0
    found: dict[str, int] = field(default_factory=dict)


def watch(facts: ModelProfile, predictions: Iterable[PastPrediction], rules: Rules) -> Report:
    """Replay `predictions`, looking every `LOOK` of them."""
    time = _Time()
    monitor = TailMonitor(facts, rules, lambda: time.now)
    for number, one in enumerate(predictions, 1):
        time.now = time.now if one.time is None else one.time
        monitor.observe(one.label, one.confidence)
        if number % LOOK == 0:
            _note(monitor, time)
    _note(monitor, time)
    state = tail_state(monitor)
    return Report(
        state=state,
        classes=tuple(class_state(monitor, place) for place in _found(state)),
        first_found=time.found,
        delays=tuple(monitor.silence.delay().tolist()),
    )


def _note(monitor: TailMonitor, time: _Time) -> None:
    monitor.look()
    for place in np.flatnonzero(monitor.drift.found | monitor.silence.found).tolist():
        time.found.setdefault(monitor.facts.labels[place], monitor.predictions)


def _found(state: TailState) -> list[int]:
    """Silent classes first, then those that drift, by their evidence."""
    classes = state.classes
    places = np.flatnonzero(classes.silent | classes.found)
    order = np.lexsort((-classes.e_value[places], ~classes.silent[places]))
    listed: list[int] = places[order].tolist()
    return listed


def print_report(report: Report, console: Console) -> None:
    """Two tables and a sentence; `console` without markup, since labels are anybody's text."""
    console.print(_group_table(report.state.groups))
    if report.classes:
        console.print(_class_table(report))
    console.print(_summary(report))


def _group_table(groups: Iterable[GroupState]) -> Table:
    table = Table("group")
    for name in ("classes", "predicted", "expected", "share", "expected", "images", "confidence"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for one in groups:
        table.add_row(
            one.group,
            str(one.classes),
            f"{one.predicted:,}",
            f"{one.expected:,.1f}",
            _share(one.share, one.interval),
            _share(one.expected_share, one.expected_interval),
            _share(one.prevalence, one.prevalence_interval),
            "" if one.confidence is None else f"{one.confidence.median:.0%}",
            one.verdict,
        )
    return table


def _class_table(report: Report) -> Table:
    table = Table("class", "group", "verdict")
    for name in ("predicted", "expected", "ratio", "log10 e", "found after"):
        table.add_column(name, justify="right")
    for one in report.classes[:SHOWN]:
        evidence = max(one.e_value, one.silence_e_value or 0.0)
        table.add_row(
            one.label,
            one.group,
            one.verdict,
            f"{one.predicted:,}",
            f"{one.expected:,.1f}",
            f"{one.ratio:.2f}",
            f"{math.log10(evidence):.1f}",
            f"{report.first_found[one.label]:,}",
        )
    return table


def _summary(report: Report) -> str:
    state, seen = report.state, [one for one in report.delays if math.isfinite(one)]
    text = (
        f"{state.predictions:,} predictions against the reference {state.reference}: "
        f"silent few-shot classes: {state.silent}; drifting classes: {state.drifting}."
    )
    if len(report.classes) > SHOWN:
        text += f" The {SHOWN} with the strongest evidence are listed."
    if seen:
        text += (
            f" The loss of any of {len(seen)} few-shot classes (of {len(report.delays)}) from now "
            f"on would be found within {max(seen):,.0f} predictions."
        )
    return text


def _share(value: float, interval: Interval) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def replay(bundle: Path, past: Path, reference: str, level: float, window: float) -> Report:
    """Of a folder of photos or a CSV file; raises `UserError`."""
    manifest = read_manifest(bundle)
    known = facts(bundle, manifest)
    rules = Rules(source(reference), level, window_seconds=window)
    return watch(known, _predictions(bundle, past, manifest.labels), rules)


def show(report: Report, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_plain(report), indent=2))
    else:
        # Labels are anybody's text: "[/x]" is no markup and ":x:" no emoji.
        print_report(report, Console(markup=False, emoji=False, highlight=False))


def as_plain(report: Report) -> Any:
    """Everything of the report, as JSON can say it: what is not finite is null."""
    return _plain(asdict(report))


def _predictions(bundle: Path, past: Path, labels: list[str]) -> Iterable[PastPrediction]:
    if past.is_dir():
        return classify_folder(bundle, past, _refused)
    if past.suffix.lower() != ".csv":
        raise UserError(f"{past} is neither a folder of photos nor a file that ends in .csv")
    return read_predictions(past, labels)


def _refused(photo: Path, detail: str) -> None:
    typer.echo(f"{photo}: {detail}", err=True)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(name): _plain(one) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case np.ndarray():
            return _plain(value.tolist())
        case float() if not np.isfinite(value):
            return None
        case _:
            return value
