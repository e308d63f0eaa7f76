"""A CSV file with the columns `path`, `label` and, where there are several splits, `split`."""

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from taillift.models.errors import UserError
from taillift.training.data.classes import Vocabulary, human_names
from taillift.training.data.readers.listing import Listing, stored_photos
from taillift.training.data.split import SPLITS, Split, SplitName

COLUMNS: Final = ("path", "label")


@dataclass(frozen=True, slots=True)
class TableRow:
    """A photo's path and its class, and where they stand."""

    place: str
    file: str
    label: str


def is_table(source: Path) -> bool:
    return source.suffix.lower() == ".csv" and source.is_file()


def read_table(path: Path) -> Listing:
    """Labels are class names, and the classes are those of the training rows.

    Paths start from the file's folder, where classnames.json may say what classes are called.
    Without the column `split` every row is for training. Raises `UserError` with file and line
    where a row is malformed, names a photo that is not there, or a class that is not trained.
    """
    rows = read_rows(path)
    if "train" not in rows:
        raise UserError(f"{path} has no training row: write train in the column split")
    classes = sorted({row.label for row in rows["train"]})
    vocabulary = Vocabulary(tuple(classes), f"{path} (its training rows)")
    splits = {
        split: _split(path.parent, rows[split], vocabulary) for split in SPLITS if rows[split]
    }
    names = human_names(path.parent, vocabulary)
    return Listing(path, path.stem, vocabulary.classes, names, splits)


def read_rows(path: Path) -> dict[SplitName, list[TableRow]]:
    """The rows of each split; opens no photo."""
    rows: defaultdict[SplitName, list[TableRow]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            if lacking := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise UserError(
                    f"{path} has no column {lacking[0]}: its first line must name the columns "
                    "path, label and, where there are several splits, split"
                )
            for cells in reader:
                split, row = _row(cells, f"{path}:{reader.line_num}")
                rows[split].append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    return rows


def _row(cells: dict[str, str], place: str) -> tuple[SplitName, TableRow]:
    for name in COLUMNS:
        if not cells[name].strip():
            raise UserError(f"{place}: the {name} is empty: write it, or remove the row")
    # What is beyond the last column stands under None.
    if None in cells:
        raise UserError(f"{place} has more cells than the first line: put quotes around commas")
    split = cells.get("split", "train").strip()
    if split not in SPLITS:
        raise UserError(f"{place}: the split is {split!r}: write train, val or test")
    return split, TableRow(place, cells["path"].strip(), cells["label"].strip())


def _split(root: Path, rows: list[TableRow], vocabulary: Vocabulary) -> Split:
    labels = tuple(vocabulary.named(row.label, row.place) for row in rows)
    photos = stored_photos(root, [row.file for row in rows], [row.place for row in rows])
    return Split(photos, labels)
