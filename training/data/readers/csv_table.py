"""Reads a CSV or TSV file with the columns `path`, `label` and, for several splits, `split`."""

import csv
import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from taillift.models.bundle.photo_sources import is_system_name
from taillift.models.errors import UserError
from taillift.models.names import NONE_OF_THE_CLASSES, canonical, refuse_two_forms
from taillift.training.data.classes import Vocabulary, unreadable
from taillift.training.data.photo import SPLITS, Split, SplitName, split_called
from taillift.training.data.readers.listing import Listing, Unused, stored_photos

COLUMNS: Final = ("path", "label")
TABLE_SUFFIXES: Final = (".csv", ".tsv")
SPLIT_COLUMN: Final = "split"
SEPARATORS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TableHead:
    """The first line of a table: its separator, and its columns in their order."""

    separator: str
    columns: tuple[str, ...]

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(name for name in self.columns if name in (*COLUMNS, SPLIT_COLUMN))

    def __str__(self) -> str:
        unused = [repr(name) for name in self.columns if name not in self.used]
        return (
            f"a table with the columns {', '.join(self.used)}, separated by "
            f"{SEPARATORS[self.separator]}" + (f"; not used: {', '.join(unused)}" if unused else "")
        )


@dataclass(frozen=True, slots=True)
class TableRow:
    """A photo's path and its class; `origin` is FILE:LINE."""

    origin: str
    file: str
    label: str


def is_table(source: Path) -> bool:
    """Return whether `source` is a CSV or TSV file."""
    return source.suffix.lower() in TABLE_SUFFIXES and source.is_file()


def tables_in(folder: Path) -> list[Path]:
    """Return the tables in a folder, without files that systems create."""
    return sorted(
        path for path in folder.iterdir() if is_table(path) and not is_system_name(path.name)
    )


def read_table(path: Path, labelled_only: bool = False) -> Listing:
    """List the photos of a table, whose labels are class names.

    The classes are those of the training rows. Paths are relative to the file's folder, where
    classnames.json may give the classes names for prompts. If there is no column `split`, every
    row is for training. A log line says which columns and which separator were found. With
    `labelled_only`, rows without a label or of none of the classes are left out.

    Raises `UserError` with file and line if a row is malformed, if it names a photo that does not
    exist, or if its class has no training row.
    """
    head = read_head(path)
    logger.info("%s: %s", path, head)
    rows, unlabelled = read_rows(path, head, labelled_only)
    if "train" not in rows:
        if unlabelled:
            raise UserError(f"{path} has no training row with a label: label some")
        raise UserError(f"{path} has no training row: write train in the column split")
    for members in rows.values():
        refuse_two_forms([row.label for row in members], str(path))
    classes = sorted({canonical(row.label) for row in rows["train"]})
    vocabulary = Vocabulary(tuple(classes), f"{path} (its training rows)")
    splits: dict[SplitName, Split] = {}
    for split in SPLITS:
        if members := rows[split]:
            labels = tuple(vocabulary.index_of(row.label, row.origin) for row in members)
            files, origins = [row.file for row in members], [row.origin for row in members]
            splits[split] = Split(stored_photos(path.parent, files, origins), labels)
    others = [one.name for one in tables_in(path.parent) if one != path]
    unused = []
    if others:
        unused.append(Unused(str(path.parent), len(others), "other tables are not used", others[0]))
    if unlabelled:
        words = "rows have no class and are left out"
        unused.append(Unused(str(path), len(unlabelled), words, unlabelled[0]))
    return Listing(path, path.stem, vocabulary, path.parent, splits, str(head), tuple(unused))


def read_head(path: Path) -> TableHead:
    """Find the separator with which the first line has the columns `path` and `label`.

    Names of columns are read in any case, and without spaces around them. Raises `UserError` if
    there is no such separator, or if a column that is read is there twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            line = next(iter(file), "")
        heads = [
            TableHead(
                one,
                tuple(cell.strip().lower() for cell in next(csv.reader([line], delimiter=one), [])),
            )
            for one in SEPARATORS
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, "CSV", error) from error
    head = max(heads, key=lambda one: len({*one.used}))
    if lacking := [name for name in COLUMNS if name not in head.used]:
        raise UserError(
            f"{path} has no column {lacking[0]}: its first line must name the columns path, label "
            "and, if there are several splits, split"
        )
    if len({*head.used}) < len(head.used):
        raise UserError(f"{path} has a column twice ({', '.join(head.used)}): remove one")
    return head


def read_rows(
    path: Path, head: TableHead, labelled_only: bool = False
) -> tuple[defaultdict[SplitName, list[TableRow]], list[str]]:
    """Return the rows of each split, and FILE:LINE of the rows that are left out; opens no photo.

    With `labelled_only` these are the rows without a label or of none of the classes. Raises
    `UserError` with file and line if a row is malformed.
    """
    rows: defaultdict[SplitName, list[TableRow]] = defaultdict(list)
    unlabelled: list[str] = []
    line = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(
                file, head.columns, restval="", strict=True, delimiter=head.separator
            )
            next(reader, None)
            for cells in reader:
                line = reader.line_num
                origin = f"{path}:{line}"
                if labelled_only and cells["label"].strip() in ("", NONE_OF_THE_CLASSES):
                    unlabelled.append(origin)
                    continue
                for name in COLUMNS:
                    if not cells[name].strip():
                        raise UserError(
                            f"{origin}: the {name} is empty: write it, or remove the row"
                        )
                # `DictReader` puts the cells after the last column under None.
                if None in cells:
                    raise UserError(
                        f"{origin} has more cells than the first line: put quotes around "
                        f"{SEPARATORS[head.separator]}"
                    )
                split = split_called(cells.get(SPLIT_COLUMN, "train"))
                if split is None:
                    raise UserError(
                        f"{origin}: the split is {cells[SPLIT_COLUMN].strip()!r}: write train, val "
                        "or test"
                    )
                rows[split].append(TableRow(origin, cells["path"].strip(), cells["label"].strip()))
    except csv.Error as error:  # At a quote that stays open, the reader has gone to the end.
        raise unreadable(path, f"CSV after line {line}", error) from error
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, "CSV", error) from error
    return rows, unlabelled
