"""`taillift classify --out` and `taillift embed`: a row for each of many photos, in a file."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice, repeat, tee
from pathlib import Path
from time import monotonic
from typing import Final, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from taillift.models.bundle import conveyor
from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.classifier import AnyImage, AssignedClass, Classifier, top
from taillift.models.bundle.ensemble import Ensemble, ImageOutputs
from taillift.models.bundle.images import ImageError
from taillift.models.bundle.known_counts import Assigned, KnownCounts
from taillift.models.bundle.posterior import Prior
from taillift.models.bundle.predictor import Prediction
from taillift.service.inference.photo_parts import PhotoSet, printable_path
from taillift.service.inference.row_file import (
    Cell,
    Row,
    RowFile,
    finish,
    part_of,
    row_format,
)
from taillift.service.settings import cores
from taillift.service.tail.dependence import image_digest

PREDICTIONS: Final = (".csv", ".jsonl", ".parquet")
FEATURES: Final = (".npz", ".parquet", ".csv", ".jsonl")
Found = TypeVar("Found")

# Between two lines on how far a run is, without a terminal.
LINE_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Asked:
    """How `taillift classify` wants its photos answered.

    `prior` is the name of `log_prior` [C], which is None for the uniform prior of all classes.
    `classes` are the labels that the photos may show, if fewer than all. `tail` says how far
    `log_prior` leans toward the rare classes.
    """

    ensemble: Ensemble
    top_k: int
    prior: str = Prior.UNIFORM
    log_prior: Doubles | None = None
    coverage: float | None = None
    classes: tuple[str, ...] = ()
    counts: KnownCounts | None = None
    tail: float = 0.0


class PredictionRows:
    """The rows of `taillift classify --out`: `types` of their columns, `same` cells, and the rest.

    `types` are as Parquet names them, and `same` is what is alike in all rows.
    """

    def __init__(self, classifier: Classifier, asked: Asked) -> None:
        self.classifier, self.asked = classifier, asked
        self._classes = classifier.manifest.classes
        self._ranks = range(2, min(asked.top_k, len(self._classes)) + 1)
        self.same: dict[str, Cell] = made_by(classifier, asked.ensemble)
        self.same["prior"] = str(asked.prior)
        types = {"photo": "string", "label": "string", "confidence": "double", "time": "string"}
        types |= {
            "thing": "string",
            "group": "string",
            "views": "int64",
            "decision": "string",
            "reason": "string",
        }
        for rank in self._ranks:
            types |= {f"label_{rank}": "string", f"confidence_{rank}": "double"}
        if asked.log_prior is not None:
            types |= {"uniform_label": "string", "uniform_confidence": "double"}
        if asked.coverage is not None:
            types |= {"set": "list<string>", "coverage": "double"}
            self.same["coverage"] = asked.coverage
        if asked.tail:
            types["tail"] = "double"
            self.same["tail"] = asked.tail
        if asked.classes:
            types["classes"] = "string"
            self.same["classes"] = ",".join(asked.classes)
        if asked.counts is not None:
            types |= {"assigned": "string", "assigned_confidence": "double", "instead": "string"}
            types["counts"] = "string"
            self.same["counts"] = asked.counts.digest
        types |= {"error": "string", "model": "string", "ensemble": "string", "prior": "string"}
        self.types = types

    def cells(self, prediction: Prediction) -> Row:
        """Return the cells of one photo's answer."""
        ranking = top(prediction.requested, self.asked.top_k)
        row: Row = {"group": self._classes[ranking[0]].group, "views": prediction.views}
        row["decision"] = prediction.decision
        row["reason"] = prediction.reason.text if prediction.reason else None
        suffixes = ("", *(f"_{rank}" for rank in self._ranks))
        for index, suffix in zip(ranking, suffixes, strict=True):
            row[f"label{suffix}"] = self._classes[index].label
            row[f"confidence{suffix}"] = float(prediction.requested[index])
        if self.asked.log_prior is not None:
            row["uniform_label"] = self._classes[int(prediction.uniform.argmax())].label
            row["uniform_confidence"] = float(prediction.uniform.max())
        if prediction.members is not None:
            row["set"] = [self._classes[index].label for index in prediction.members]
        return row


def classify_photos(classifier: Classifier, photos: PhotoSet, out: Path, asked: Asked) -> None:
    """Write the classes of each photo to a file, in the order of `photos`.

    A file that has the first rows already gets the rest. With counts, all photos are looked at
    before the first row is written. Raises `UserError` if the file has other rows, or cannot be
    written, or if the counts cannot be met.
    """
    table, key = PredictionRows(classifier, asked), photos.names
    form = row_format(out, list(table.types))
    with RowFile(part_of(out), form, key, table.same) as rows:
        start = 0 if asked.counts else rows.count
        rest, shown = tee(photos.images(start))
        found: Iterable[Prediction | ImageError] = conveyor.predictions(
            classifier, rest, asked.ensemble, cores(), asked.log_prior, asked.coverage
        )
        assigned: Iterable[Assigned | None] = repeat(None)
        if asked.counts is not None:
            found, assigned = assign_photos(found, asked.counts)
        # A clock that is set back, or was when the run was broken off, must not make rows that are
        # older than those before them.
        time: str = rows.last.get("time", "")
        with shown_progress(len(key), rows.count) as advance:
            together = zip(key[start:], shown, found, assigned, strict=False)
            for name, image, prediction, one in islice(together, rows.count - start, None):
                time = max(time, datetime.now(UTC).isoformat(timespec="milliseconds"))
                row: Row = {"photo": name, "time": time}
                if not isinstance(prediction, ImageError):
                    row["thing"] = thing(image)
                if one is not None:
                    row |= assigned_cells(AssignedClass.of(one, classifier.manifest.classes))
                rows.add({**row, **result(prediction, table.cells), **table.same})
                advance()
        finish(rows, out, table.types)


def assign_photos(
    found: Iterable[Prediction | ImageError], counts: KnownCounts
) -> tuple[list[Prediction | ImageError], list[Assigned | None]]:
    """Return the predictions of all photos, and the class of each by the counts."""
    everything = list(found)
    uniform = [None if isinstance(one, ImageError) else one.uniform for one in everything]
    return everything, counts.assign(uniform)


def assigned_cells(assigned: AssignedClass) -> Row:
    """Return the cells of a photo's class by the counts."""
    return {
        "assigned": assigned.label,
        "assigned_confidence": assigned.confidence,
        "instead": assigned.instead,
    }


def embed_photos(
    classifier: Classifier, photos: Sequence[Path], out: Path, ensemble: Ensemble
) -> None:
    """Write the features of each photo to a file: the mean over its views, at unit length.

    Their order, and what is raised, is as in `classify_photos`.
    """
    size, same = classifier.manifest.preprocessing.size, made_by(classifier, ensemble)
    length = classifier.run(np.zeros((1, size, size, 3), np.uint8)).features.shape[1]
    types = {"photo": "string", "views": "int64", "error": "string", "model": "string"}
    types |= {"ensemble": "string", "features": "list<float>"}

    def cells(outputs: ImageOutputs) -> Row:
        # Features of length 0 stay as they are.
        features = outputs.features / (np.linalg.norm(outputs.features) or 1)
        # Nine digits are enough to read the same float32 again.
        return {
            "views": outputs.views,
            "features": [float(f"{value:.9g}") for value in features.tolist()],
        }

    key = list(map(printable_path, photos))
    with RowFile(part_of(out), row_format(out, list(types), length), key, same) as rows:
        found = conveyor.outputs(classifier, photos[rows.count :], ensemble, cores())
        with shown_progress(len(photos), rows.count) as advance:
            for name, output in zip(key[rows.count :], found, strict=True):
                rows.add({"photo": name, **result(output, cells), **same})
                advance()
        finish(rows, out, types, length)


def result(found: Found | ImageError, cells: Callable[[Found], Row]) -> Row:
    """Return the cells of what was found in a photo, or the reason why it cannot be used."""
    return {"error": str(found)} if isinstance(found, ImageError) else cells(found)


def thing(image: AnyImage | ImageError) -> str | None:
    """Return what files with the same bytes have in common, or None if there are none."""
    try:
        data = image.read_bytes() if isinstance(image, Path) else image
    except OSError:
        return None
    return f"{image_digest(data):016x}" if isinstance(data, bytes) else None


def made_by(classifier: Classifier, ensemble: Ensemble) -> dict[str, Cell]:
    """Return the cells that say what made a row."""
    manifest = classifier.manifest
    model = f"{manifest.name} {manifest.version} {classifier.predictor.precision}"
    return {"model": model, "ensemble": str(ensemble)}


@contextmanager
def shown_progress(total: int, done: int) -> Iterator[Callable[[], None]]:
    """Show how far a run is, on standard error, and yield what each photo calls.

    A terminal gets a bar; anything else gets a line now and then, and one at the end.
    """
    console, start, count = Console(stderr=True), monotonic(), 0
    if done:
        print(f"{done:,} of {total:,} photos were done before", file=sys.stderr)

    def speed() -> str:
        return f"{count / max(monotonic() - start, 1e-9):.1f} photos/s"

    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task, printed = bar.add_task("", total=total, completed=done, speed=""), start

    def advance() -> None:
        nonlocal count, printed
        count += 1
        bar.update(task, advance=1, speed=speed())
        if not console.is_terminal and monotonic() - printed > LINE_SECONDS:
            printed = monotonic()
            print(f"{done + count:,} of {total:,} photos, {speed()}", file=sys.stderr)

    with bar:
        yield advance
    print(f"{done + count:,} of {total:,} photos, {speed()}", file=sys.stderr)
