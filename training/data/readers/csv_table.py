"""Reads a CSV file with the columns `path`, `label` and, for several splits, `split`."""

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from taillift.models.errors import UserError
from taillift.training.data.classes import Vocabulary, prompt_names
from taillift.training.data.photo import SPLITS, Split, SplitName
from taillift.training.data.readers.listing import Listing, stored_photos

COLUMNS: Final = ("path", "label")


@dataclass(frozen=True, slots=True)
class TableRow:
    """A photo's path and its class; `origin` is FILE:LINE."""

    origin: str
    file: str
    label: str


def is_table(source: Path) -> bool:
    """Return whether `source` is a CSV file."""
    return source.suffix.lower() == ".csv" and source.is_file()


def read_table(path: Path) -> Listing:
    """List the photos of a CSV file, whose labels are class names.

    The classes are those of the training rows. Paths are relative to the file's folder, where
    classnames.json may give the classes names for prompts. If there is no column `split`, every
    row is for training. Raises `UserError` with file and line if a row is malformed, if it names a
    photo that does not exist, or if its class has no training row.
    """
    rows = read_rows(path)
    if "train" not in rows:
        raise UserError(f"{path} has no training row: write train in the column split")
    classes = sorted({row.label for row in rows["train"]})
    vocabulary = Vocabulary(tuple(classes), f"{path} (its training rows)")
    splits: dict[SplitName, Split] = {}
    for split in SPLITS:
        if members := rows[split]:
            labels = tuple(vocabulary.index_of(row.label, row.origin) for row in members)
            files, origins = [row.file for row in members], [row.origin for row in members]
            splits[split] = Split(stored_photos(path.parent, files, origins), labels)
    names = prompt_names(path.parent, vocabulary)
    return Listing(path, path.stem, vocabulary.classes, names, splits)


def read_rows(path: Path) -> defaultdict[SplitName, list[TableRow]]:
    """Return the rows of each split; opens no photo.

    Raises `UserError` with file and line if a row is malformed.
    """
    rows: defaultdict[SplitName, list[TableRow]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            if lacking := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise UserError(
                    f"{path} has no column {lacking[0]}: its first line must name the columns "
                    "path, label and, if there are several splits, split"
                )
            for cells in reader:
                origin = f"{path}:{reader.line_num}"
                for name in COLUMNS:
                    if not cells[name].strip():
                        raise UserError(
                            f"{origin}: the {name} is empty: write it, or remove the row"
                        )
                # `DictReader` puts the cells after the last column under None.
                if None in cells:
                    raise UserError(
                        f"{origin} has more cells than the first line: put quotes around commas"
                    )
                split = cells.get("split", "train").strip()
                if split not in SPLITS:
                    raise UserError(f"{origin}: the split is {split!r}: write train, val or test")
                rows[split].append(TableRow(origin, cells["path"].strip(), cells["label"].strip()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    return rows
