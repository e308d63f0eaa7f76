"""The commands `taillift feedback ...`: labels from and to files."""

# Imports here slow down every `taillift --help`: the commands import the heavy modules themselves.
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from taillift.models.errors import UserError
from taillift.models.names import NONE_OF_THE_CLASSES, refuse_twice
from taillift.models.terminal import say
from taillift.service.serve_cli import takes_settings
from taillift.service.settings import read_settings

if TYPE_CHECKING:
    from taillift.service.feedback.label_book import LabelRequest
    from taillift.service.feedback.label_store import LabelStore

app = typer.Typer(no_args_is_help=True)

CHUNK: Final = 1_000
# Lines of a file that are named because their labels are not kept.
NAMED: Final = 10
COLUMNS: Final = {
    "id": "string",
    "time": "string",
    "version": "int64",
    "bundle": "string",
    "predicted": "string",
    "group": "string",
    "confidence": "double",
    "decision": "string",
    "label": "string",
    "note": "string",
    "labelled": "string",
    "kind": "string",
    "probability": "double",
    "weight": "double",
}


@app.command("import")
@takes_settings("feedback_file", "feedback_key_file", "feedback_days", "feedback_max")
def import_labels(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.csv",
            help="Labels with the columns id,label and, optionally, note. The label `none of the "
            "classes` is for a photo that shows none; rows without a label are passed over.",
        ),
    ],
    **given: Any,
) -> None:
    """Add labels to a file that a service keeps them in; it may run meanwhile.

    The exit status is 1 if a label is not kept.
    """
    from taillift.models.bundle.arrays import chunks
    from taillift.service.feedback.label_book import LabelBook, signing_keys
    from taillift.service.feedback.prediction_id import Signer

    settings = read_settings(**given)
    keys = signing_keys(settings)
    if not keys:
        raise UserError("name the service's key with --feedback-key-file, or all ids are forged")
    with existing_store(settings.feedback_file, settings.feedback_max) as store:
        book = LabelBook(store, Signer(keys, settings.feedback_days), settings.feedback_days)
        counts: Counter[str] = Counter()
        for chunk in chunks(read_labels(labels), CHUNK):
            taken = book.take([label for _, label in chunk])
            for (line, label), one in zip(chunk, taken, strict=True):
                counts[one.status] += 1
                kept = one.status in ("accepted", "replaced", "same")
                if not kept and counts.total() - kept_of(counts) <= NAMED:
                    say(f"{labels}, line {line}: {one.status} ({label.label})", err=True)
    say(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no labels")
    if counts.total() > kept_of(counts):
        raise typer.Exit(1)


@app.command()
@takes_settings("feedback_file")
def export(
    to: Annotated[
        Path, typer.Option(metavar="FILE.csv|.parquet", help="File to write, a row for each label.")
    ],
    **given: Any,
) -> None:
    """Write all labels, with what was predicted, to a file."""
    import csv

    from taillift.models.bundle.atomic import atomic_file
    from taillift.service.inference.row_file import check_out, write_parquet

    check_out(to, (".csv", ".parquet"))
    with existing_store(read_settings(**given).feedback_file) as store:
        with atomic_file(to) as temporary:
            if to.suffix.lower() == ".parquet":
                write_parquet(rows(store), temporary, COLUMNS)
            else:
                with temporary.open("w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows(store))
        say(f"{to}: {len(store)} labels")


@app.command()
def merge(
    into: Annotated[Path, typer.Argument(metavar="A", help="File to add labels to.")],
    others: Annotated[list[Path], typer.Argument(metavar="B...", help="Files to add.")],
) -> None:
    """Add the labels of other replicas' files to one; of two labels the later one counts."""
    from taillift.service.feedback.label_store import LabelStore

    with LabelStore(into) as store:
        for path in others:
            with existing_store(path) as other:
                new, replacing = store.merge(other)
            say(f"{path}: {new} new, {replacing} replace an earlier label")
        say(f"{into}: {len(store)} labels")


def existing_store(path: Path | None, most: int = 1_000_000) -> "LabelStore":
    """Return the labels in a file; raise `UserError` if there is none."""
    from taillift.service.feedback.label_store import LabelStore

    if path is None:
        raise UserError("name the file of labels with --feedback-file")
    if not path.is_file():
        raise UserError(f"there is no file of labels at {path}: the service's feedback_file is one")
    return LabelStore(path, most)


def kept_of(counts: Counter[str]) -> int:
    """Return how many labels are in the file now."""
    return counts["accepted"] + counts["replaced"] + counts["same"]


def read_labels(path: Path) -> Iterator[tuple[int, "LabelRequest"]]:
    """Yield each label of a CSV file and its line; raises `UserError` if it is not such a file."""
    import csv

    from taillift.service.feedback.label_book import LabelRequest

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, strict=True)
            needed = ("id", "label")
            for name in needed:
                if name not in (table.fieldnames or []):
                    raise UserError(f"{path} has no column {name}: it needs id,label")
            refuse_twice(path, table.fieldnames or [], (*needed, "note"))
            for row in table:
                if any(row.get(None, ())):
                    raise UserError(
                        f"{path}, line {table.line_num} has more cells than the first line: put "
                        "quotes around commas"
                    )
                label = row["label"] or ""
                if not label.strip():
                    continue
                wanted = None if label == NONE_OF_THE_CLASSES else label
                text = (row["id"] or "").strip()
                yield table.line_num, LabelRequest(text, wanted, row.get("note") or "")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: it is not a CSV file in UTF-8") from error


def rows(store: "LabelStore") -> Iterator[dict[str, str | float | int | None]]:
    """Yield a row for each label, with the columns `COLUMNS`."""
    from datetime import UTC, datetime

    from taillift.service.feedback.prediction_id import PAYLOAD, PredictionId, id_text

    versions = store.versions()
    for stored in store:
        prediction = PredictionId.from_bytes(stored.id[: PAYLOAD.size])
        classes = versions.get(prediction.version)
        known = classes is not None and prediction.label < len(classes.labels)
        sampled = prediction.probability > 0
        yield {
            "id": id_text(stored.id),
            "time": datetime.fromtimestamp(prediction.time, UTC).isoformat(),
            "version": prediction.version,
            "bundle": classes.bundle if classes else None,
            "predicted": classes.labels[prediction.label] if classes and known else None,
            "group": prediction.group,
            "confidence": round(prediction.confidence, 5),
            "decision": prediction.decision,
            "label": NONE_OF_THE_CLASSES if stored.label is None else stored.label,
            "note": stored.note or None,
            "labelled": datetime.fromtimestamp(stored.received / 1000, UTC).isoformat(),
            "kind": prediction.kind,
            "probability": float(f"{prediction.probability:.6g}"),
            "weight": float(f"{1 / prediction.probability:.6g}") if sampled else 0.0,
        }
