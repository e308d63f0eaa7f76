"""Past predictions, from a CSV file or by classifying a folder of photos."""

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from models import UserError
from models.bundle.chunks import chunks
from models.bundle.classifier import Classifier
from models.bundle.ensemble import Ensemble
from models.bundle.images import ImageError, Pixels
from models.bundle.posterior import Prior, log_prior

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})
# Photos whose canvases are in memory together.
PHOTOS: Final = 64


@dataclass(frozen=True)
class Prediction:
    """A top class as an index into the labels; `time` in seconds since 1970, where it is known."""

    label: int
    confidence: float
    time: float | None


def read_predictions(path: Path, labels: list[str]) -> Iterator[Prediction]:
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


def _prediction(row: dict[str, str], places: dict[str, int], where: str) -> Prediction:
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
    return Prediction(places[row["label"]], confidence, time)


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
) -> Iterator[Prediction]:
    """The top classes of all photos below the folder, in the order of their paths, five views each.

    A photo that cannot be used is told to `refused`, with the reason, and left out. Raises
    `UserError` where there are no photos, or the bundle is not sound.
    """
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not photos:
        raise UserError(f"{folder} has no photos ({', '.join(sorted(SUFFIXES))}) to classify")
    classifier = Classifier.open(bundle)
    uniform = log_prior(Prior.UNIFORM, classifier.manifest.counts)
    for canvases in chunks(_canvases(classifier, photos, refused), PHOTOS):
        logits, taken = classifier.combined(canvases, Ensemble.FULL)
        shares = classifier.reader.probabilities(logits, taken, Ensemble.FULL, uniform)
        for row in shares:
            yield Prediction(int(row.argmax()), float(row.max()), None)


def _canvases(
    classifier: Classifier, photos: list[Path], refused: Callable[[Path, str], None]
) -> Iterator[Pixels]:
    for photo in photos:
        try:
            yield classifier.canvas(photo.read_bytes())
        except ImageError as error:
            refused(photo, str(error))
        except OSError as error:
            refused(photo, str(error.strerror))
