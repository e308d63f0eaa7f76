"""`taillift watch`: past predictions replayed through the drift monitor, and the report on them.

The predictions come from a CSV file, or from classifying a folder of photos.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from taillift.models.bundle import conveyor
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import read_manifest
from taillift.models.bundle.images import ImageError
from taillift.models.bundle.photo_sources import photos_in
from taillift.models.bundle.schema import MAX_PIXELS
from taillift.models.errors import UserError, did_you_mean
from taillift.models.names import index_of_name, indices_by_name, refuse_twice
from taillift.models.terminal import PlainConsole, say
from taillift.service.monitoring.recorder import model_profile, parse_reference
from taillift.service.settings import cores
from taillift.service.tail.dependence import SETTLED, group_digest, image_digest
from taillift.service.tail.monitor import ModelProfile, Rules, TailMonitor
from taillift.service.tail.state import (
    ClassState,
    GroupState,
    TailState,
    class_state,
    tail_state,
)

# Predictions between two looks, in place of the time between two scrapes of a service.
LOOK: Final = 100
# Later times are refused: they are in another unit.
YEAR_2200: Final = datetime(2200, 1, 1, tzinfo=UTC).timestamp()
SMALL_UNITS: Final = {"milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
TOP: Final = ("label", "confidence")
# Classes that the printed report lists.
SHOWN: Final = 20


@dataclass(frozen=True)
class PastPrediction:
    """A top class as an index into the labels; `time` in seconds since 1970, if known.

    `things` are the digests of what the image shows: predictions that share one count once.
    """

    label: int
    confidence: float
    time: float | None
    things: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """The state after the last prediction, and after how many each class was first found.

    `classes` are those found silent or drifting at the end, the strongest evidence first.
    `first_found` also has those that recovered. `delays` are those of the few-shot classes.
    `monitor` has all else.
    """

    monitor: TailMonitor
    state: TailState
    classes: tuple[ClassState, ...]
    first_found: dict[str, int]
    delays: tuple[float, ...]


def replay(
    bundle: Path,
    past: Path,
    reference: str,
    level: float,
    window: float,
    max_pixels: int = MAX_PIXELS,
) -> Report:
    """Replay a CSV file of predictions, or those for a folder of photos, through the monitor.

    A photo that cannot be used is named on standard error and left out. Raises `UserError` if the
    bundle, the reference or `past` is unusable.
    """
    manifest = read_manifest(bundle)
    profile = model_profile(bundle, manifest)
    rules = Rules(parse_reference(reference), level, window_seconds=window)

    def refused(photo: object, reason: str) -> None:
        say(f"{photo}: {reason}", err=True)

    if past.is_dir():
        predictions = classify_folder(bundle, past, refused, max_pixels)
    elif past.suffix.lower() == ".csv":
        predictions = read_predictions(past, manifest.labels, refused)
    else:
        raise UserError(f"{past} is neither a folder of photos nor a file that ends in .csv")
    return replay_predictions(profile, predictions, rules)


def read_predictions(
    path: Path, labels: list[str], refused: Callable[[str, str], None] = lambda *_: None
) -> Iterator[PastPrediction]:
    """Yield the rows of a CSV file with the columns label, confidence and perhaps time and thing.

    The oldest row comes first. `time` is in seconds since 1970 or ISO 8601 (without a zone: UTC).
    Rows with the same `thing` show one thing. `taillift classify --out` writes such files; in them,
    `refused` is called with every photo that could not be used and the reason. Raises `UserError`
    that names the line.
    """
    indices = indices_by_name(labels)
    last = float("-inf")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            refuse_twice(path, rows.fieldnames or [], (*TOP, "time", "thing"))
            for row in rows:
                location = f"{path}, line {rows.line_num}"
                if any(row.get(None, ())):  # Cells after the last column, such as 95 of 0,95.
                    raise UserError(f"{location} has more cells than the first line")
                if row.get("prior", "") is None:  # The last column of `taillift classify --out`.
                    raise UserError(
                        f"{location} is incomplete: run the command that writes the file again"
                    )
                if row.get("error"):
                    refused(row.get("photo", location), row["error"])
                    continue
                prediction = _parse_row(row, indices, location)
                if prediction.time is not None and prediction.time < last:
                    raise UserError(
                        f"{location} is older than the one before it: sort the rows by time"
                    )
                last = prediction.time or last
                yield prediction
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: name a CSV file or a folder") from error
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from error


def _parse_row(row: dict[str, str], indices: dict[str, int], location: str) -> PastPrediction:
    # Under another prior than the uniform one, by which the service counts, both are written.
    row = {**row, **{name: row[f"uniform_{name}"] for name in TOP if row.get(f"uniform_{name}")}}
    for column in TOP:
        if row.get(column) is None:
            raise UserError(f"{location} has no {column}: it needs the columns label,confidence")
    if (index := index_of_name(row["label"], indices)) is None:
        hint = did_you_mean(row["label"], indices)
        raise UserError(f"{location}: the bundle has no class {row['label']!r}{hint}")
    try:
        confidence = float(row["confidence"])
        time = parse_time(row["time"]) if row.get("time") else None
    except (ValueError, OverflowError) as error:
        raise UserError(f"{location}: {error}") from error
    if not 0 <= confidence <= 1:
        raise UserError(f"{location}: the confidence is {confidence}, not from 0 to 1")
    things = (group_digest(row["thing"]),) if row.get("thing") else ()
    return PastPrediction(index, confidence, time, things)


def parse_time(text: str) -> float:
    """Return seconds since 1970 from such a number or from ISO 8601; raises `ValueError`."""
    try:
        seconds = float(text)
    except ValueError:
        time = datetime.fromisoformat(text)
        seconds = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(f"the time is {text}, neither seconds since 1970 nor ISO 8601")
    if seconds >= YEAR_2200:
        fitting = [unit for unit, size in SMALL_UNITS.items() if seconds / size < YEAR_2200]
        hint = f": are these {fitting[0]}? Give seconds" if fitting else ""
        raise ValueError(f"the time {text} is beyond the year 2200{hint}")
    return seconds


def classify_folder(
    bundle: Path,
    folder: Path,
    refused: Callable[[Path, str], None],
    max_pixels: int = MAX_PIXELS,
) -> Iterator[PastPrediction]:
    """Yield the top class of every photo below the folder, in the order of their paths.

    Each photo is classified with five views. Photos with the same bytes are one thing. `refused`
    is called with every photo that cannot be used and the reason. Raises `UserError` if there are
    no photos or the bundle is damaged.
    """
    photos = photos_in(folder, recursive=True)
    classifier = Classifier.open(bundle, max_pixels=max_pixels)
    for photo, prediction in zip(
        photos, conveyor.predictions(classifier, photos, Ensemble.FULL, cores()), strict=True
    ):
        if isinstance(prediction, ImageError):
            refused(photo, str(prediction))
        else:
            row = prediction.uniform
            things = (image_digest(photo.read_bytes()),)
            yield PastPrediction(int(row.argmax()), float(row.max()), None, things)


def replay_predictions(
    profile: ModelProfile, predictions: Iterable[PastPrediction], rules: Rules
) -> Report:
    """Feed a monitor with `predictions` and look at it every `LOOK` of them.

    The monitor's clock follows the predictions; it stands still if they have no time.
    """
    now = 0.0
    monitor = TailMonitor(profile, rules, lambda: now)
    first_found: dict[str, int] = {}

    def look() -> None:
        monitor.refresh()
        for index in np.flatnonzero(monitor.drift.found | monitor.silence.found).tolist():
            first_found.setdefault(profile.labels[index], monitor.predictions)

    for number, prediction in enumerate(predictions, 1):
        now = now if prediction.time is None else prediction.time
        monitor.observe(prediction.label, prediction.confidence, prediction.things)
        if number % LOOK == 0:
            look()
    look()
    state = tail_state(monitor)
    indices = np.flatnonzero(state.classes.silent | state.classes.found)
    # Silent classes first, then the drifting ones; both by their evidence.
    order = np.lexsort((-state.classes.e_value[indices], ~state.classes.silent[indices]))
    delays = monitor.dependence.delay(
        monitor.silence.delay(), monitor.dependence.class_effects[monitor.silence.indices]
    )
    return Report(
        monitor=monitor,
        state=state,
        classes=tuple(class_state(monitor, index) for index in indices[order].tolist()),
        first_found=first_found,
        delays=tuple(delays.tolist()),
    )


def show(report: Report, as_json: bool) -> None:
    """Print the report as JSON, or as tables."""
    if as_json:
        parts = {
            "state": asdict(report.state),
            "classes": [asdict(state) for state in report.classes],
            "first_found": report.first_found,
            "delays": report.delays,
        }
        print(json.dumps(to_json_value(parts), indent=2))
    else:
        print_report(report, PlainConsole())


def to_json_value(value: Any) -> Any:
    """Return `value` as JSON can express it: arrays as lists, what is not finite as null."""
    match value:
        case dict():
            return {str(name): to_json_value(item) for name, item in value.items()}
        case list() | tuple():
            return [to_json_value(item) for item in value]
        case np.ndarray():
            return to_json_value(value.tolist())
        case float() if not np.isfinite(value):
            return None
        case _:
            return value


def print_report(report: Report, console: Console) -> None:
    """Print a table of the groups, one of the classes found, and a summary.

    `console` must not interpret markup, because a label may be any text.
    """
    console.print(_group_table(report.state.groups))
    if report.classes:
        console.print(_class_table(report))
    if len(report.classes) > SHOWN:
        console.print(f"The {SHOWN} with the strongest evidence are listed.")
    console.print(summary_of(report))


def _group_table(groups: Iterable[GroupState]) -> Table:
    """Return a table with a column for each group, so that it fits 80 characters."""
    table, cells = Table("group"), []
    for group in groups:
        table.add_column(group.group, justify="right")
        cells.append(group_cells(group))
    for row in zip(*cells, strict=True):
        table.add_row(row[0][0], *(text for _, text in row))
    return table


def group_cells(group: GroupState) -> list[tuple[str, str]]:
    """Return what the table says of a group: each row's name and the cell in it."""
    shares = (
        ("predicted share", group.share, group.interval),
        ("expected share", group.expected_share, group.expected_interval),
        ("share of images", group.prevalence, group.prevalence_interval),
    )
    cells = [
        ("classes", str(group.classes)),
        ("predicted", f"{group.predicted:,}"),
        ("expected", f"{group.expected:,.1f}"),
    ]
    for name, share, interval in shares:
        known = not math.isnan(share)
        cells.append((name, f"{share:.1%}" if known else ""))
        cells.append(("  95 %", f"{interval.low:.1%} to {interval.high:.1%}" if known else ""))
    median = "" if group.confidence is None else f"{group.confidence.median:.0%}"
    return [*cells, ("median confidence", median), ("verdict", group.words)]


def _class_table(report: Report) -> Table:
    table = Table("class", "group", "verdict")
    for name in ("predicted", "expected", "ratio", "log10 e", "found after"):
        table.add_column(name, justify="right")
    for state in report.classes[:SHOWN]:
        evidence = max(state.e_value, state.silence_e_value or 0.0)
        table.add_row(
            state.label,
            state.group,
            state.verdict,
            f"{state.predicted:,}",
            f"{state.expected:,.1f}",
            f"{state.ratio:.2f}",
            f"{math.log10(evidence):.1f}",
            f"{report.first_found[state.label]:,}",
        )
    return table


def summary_of(report: Report) -> str:
    """Return in sentences what was found, and how soon a loss would be."""
    state, delays = report.state, [delay for delay in report.delays if math.isfinite(delay)]
    noun = "prediction" if state.predictions == 1 else "predictions"
    text = (
        f"{state.predictions:,} {noun} against the reference {state.reference}: "
        f"silent few-shot classes: {state.silent}; drifting classes: {state.drifting}."
    )
    if state.measured_effect > 1:
        text += (
            f" The predictions depend on each other: {state.measured_effect:.1f} of them count as "
            "one independent prediction."
        )
    if state.design_effect > state.measured_effect:
        text += (
            f" How much predictions depend on each other shows only after {SETTLED:,} of them; "
            "until then each counts for less."
        )
    if delays:
        text += (
            f" The loss of any of {len(delays)} few-shot classes (of {len(report.delays)}) from "
            f"now on would be found within {max(delays):,.0f} predictions."
        )
    return text
