"""Labelled photos to measure a bundle on: class folders, held-out splits, or a table."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Labels
from taillift.models.bundle.atomic import file_sha256
from taillift.models.bundle.photo_sources import is_photo, is_system_name
from taillift.models.errors import UserError, did_you_mean
from taillift.models.names import index_of_name, indices_by_name

# The splits that no model was trained on, the one to be preferred first.
HELD_OUT: Final = (("test", "testing"), ("val", "valid", "validation", "dev"))
TABLES: Final = frozenset({".csv", ".tsv"})
COLUMNS: Final = ("path", "label")
SEPARATORS: Final = ",;\t|"


@dataclass(frozen=True)
class LabelledPhotos:
    """Different photos with their classes int64 [N]; `copies` were left out."""

    name: str
    paths: list[Path]
    labels: Labels
    copies: int


def find_labelled(source: Path, classes: Sequence[str]) -> LabelledPhotos:
    """Find the photos of a source whose labels are among `classes`, in any Unicode form.

    The source is a folder with a folder for each class, a folder with `test/` or `val/` that has
    them (`test/` is used if there are both), or a CSV file with the columns `path` and `label` and
    perhaps `split`. Files with the same bytes and the same label count once. Raises `UserError` if
    there are no such photos, or if a label is not among `classes`.
    """
    if source.suffix.lower() in TABLES and source.is_file():
        name, pairs = source.name, table_rows(source)
    elif source.is_dir():
        folder = class_folders_of(source, classes)
        name = str(folder)
        pairs = [(path, path.parent.name) for path in photos_below(folder)]
    else:
        raise UserError(
            f"{source} is neither a folder nor a CSV file: name a folder with a folder for each "
            "class, such as photos/test"
        )
    if not pairs:
        raise UserError(f"{name} has no photos: put them into a folder for each class")
    indices, seen = indices_by_name(classes), set[tuple[bytes, int]]()
    paths: list[Path] = []
    labels: list[int] = []
    for path, label in pairs:
        index = index_of_name(label, indices)
        if index is None:
            raise UserError(
                f"{path} has the label {label!r}, which the bundles do not have"
                f"{did_you_mean(label, classes)}: take photos of their classes"
            )
        digest = file_digest(path)
        if (digest, index) not in seen:
            seen.add((digest, index))
            paths.append(path)
            labels.append(index)
    return LabelledPhotos(name, paths, np.array(labels, np.int64), len(pairs) - len(paths))


def class_folders_of(source: Path, classes: Sequence[str]) -> Path:
    """Return the folder below `source`, or itself, that has the folders of the classes.

    Raises `UserError` if it is not clear which one.
    """
    indices = indices_by_name(classes)
    folders = [path for path in sorted(source.iterdir()) if path.is_dir()]
    if any(index_of_name(path.name, indices) is not None for path in folders):
        return source
    for names in HELD_OUT:
        if chosen := [path for path in folders if path.name.lower() in names]:
            return chosen[0]
    if any(path.name.lower().startswith("train") for path in folders):
        raise UserError(
            f"{source} has training photos only, which the model knows: add test/ or val/"
        )
    found = f", and {folders[0].name!r} is not a class of the bundles" if folders else ""
    raise UserError(
        f"{source} has no folder of a class and neither test/ nor val/{found}: name a folder with "
        "a folder for each class"
    )


def photos_below(folder: Path) -> Iterator[Path]:
    """Yield the photos in the folders of the classes, in the order of their paths."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not is_system_name(path.name):
            yield from sorted(filter(is_photo, path.iterdir()))


def table_rows(table: Path) -> list[tuple[Path, str]]:
    """Return the photo and label of each row of test, else of val, else without a split.

    Raises `UserError` if the table cannot be read, lacks a cell or has none of these rows.
    """
    try:
        text = table.read_text("utf-8-sig")
        first = text.partition("\n")[0]
        separator = max(SEPARATORS, key=first.count)
        cells = next(csv.reader([first], delimiter=separator), [])
        columns = [name.strip().lower() for name in cells]
        if lacking := [name for name in COLUMNS if name not in columns]:
            raise UserError(
                f"{table} has no column {lacking[0]}: its first line must be path,label"
            )
        source = io.StringIO(text, newline="")
        rows = list(csv.DictReader(source, columns, "", "", delimiter=separator, strict=True))[1:]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read as a table in UTF-8: {error}") from error
    for number, row in enumerate(rows, 2):
        if not row["path"].strip() or not row["label"].strip():
            raise UserError(f"{table}: row {number} has no path or no label: write both")
    by_split: dict[str, list[tuple[Path, str]]] = {}
    for row in rows:
        split = row.get("split", "").strip().lower()
        pair = table.parent / row["path"].strip(), row["label"].strip()
        by_split.setdefault(split, []).append(pair)
    for names in (*HELD_OUT, ("",)):
        if found := [pair for name in names for pair in by_split.get(name, [])]:
            return found
    raise UserError(f"{table} has no rows of test or val: a model knows its training photos")


def file_digest(path: Path) -> bytes:
    """Return the sha256 of a photo's bytes; raises `UserError` if it cannot be read."""
    try:
        return file_sha256(path).digest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): put it back") from error
