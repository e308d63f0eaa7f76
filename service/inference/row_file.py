"""Files of rows that a killed process leaves whole, and to which the next run adds the rest."""

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, cast

import numpy as np

from taillift.models.bundle.arrays import chunks
from taillift.models.bundle.atomic import atomic_file, sync
from taillift.models.errors import UserError

# None is an empty cell.
Cell = str | float | int | list[str] | list[float] | None
Row = dict[str, Cell]

# These are made at the end, of the rows that were gathered in a file of the same name and `PART`.
GATHERED: Final = frozenset({".parquet", ".npz"})
PART: Final = ".part"
ROW_GROUP: Final = 1_000


class RowFormat(Protocol):
    """How rows are written as bytes."""

    header: bytes

    def encode(self, row: Row) -> bytes:
        """Return a row's bytes, which end with a line end."""

    def decode(self, data: bytes) -> Mapping[str, Any] | None:
        """Return the row of what `encode` has made; None for anything else."""

    def is_whole(self, data: bytes) -> bool:
        """Return whether the row ends with this line."""


class CsvFormat:
    """Comma-separated values; lists are JSON, but each of the features has a column of its own."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self.header = self._line(columns)

    def _line(self, cells: Iterable[object]) -> bytes:
        text = io.StringIO()
        # With this line end, cells with either of its characters are quoted.
        csv.writer(text, lineterminator="\r\n").writerow(cells)
        return text.getvalue().removesuffix("\r\n").encode() + b"\n"

    def encode(self, row: Row) -> bytes:
        features = cast("list[float]", row.get("features") or [])
        row = {**row, **{f"f{index}": value for index, value in enumerate(features)}}
        cells = (row.get(name) for name in self._columns)
        return self._line(json.dumps(cell) if isinstance(cell, list) else cell for cell in cells)

    def decode(self, data: bytes) -> Mapping[str, Any] | None:
        try:
            (cells,) = csv.reader(io.StringIO(data.decode(), newline=""))
        except (ValueError, csv.Error):
            return None
        if len(cells) != len(self._columns):
            return None
        return dict(zip(self._columns, cells, strict=True))

    def is_whole(self, data: bytes) -> bool:
        # A line end inside quotes belongs to a cell.
        return data.endswith(b"\n") and data.count(b'"') % 2 == 0


class JsonLinesFormat:
    """One JSON object a line."""

    header = b""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = list(columns)

    def encode(self, row: Row) -> bytes:
        return json.dumps({name: row.get(name) for name in self._columns}).encode() + b"\n"

    def decode(self, data: bytes) -> Mapping[str, Any] | None:
        try:
            row = json.loads(data)
        except ValueError:
            return None
        return row if isinstance(row, dict) and list(row) == self._columns else None

    def is_whole(self, data: bytes) -> bool:
        return data.endswith(b"\n")


class RowFile:
    """A file of rows, open for adding to it. Only one process at a time may have it open.

    `key` holds the first cell of each row that the file must have in the end, in order, and `same`
    the cells that are alike in all of them. `count` is the number of rows that are in it.
    """

    def __init__(
        self, path: Path, form: RowFormat, key: Sequence[str], same: Mapping[str, Cell]
    ) -> None:
        """Open a file and drop a row at its end that is not whole.

        Raises `UserError` if the file cannot be used, or has other rows than these.
        """
        self.path, self._form = path, form
        self.count, self.last = 0, cast("Mapping[str, Any]", {})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = self._read(key, same)
            self._file.truncate(self._size)
            if self._size == 0:
                self._write(form.header)
        except OSError as error:
            self._file.close()
            raise UserError(
                f"{path} cannot be written: "
                + ("another run writes it" if isinstance(error, BlockingIOError) else str(error))
            ) from error
        except UserError:
            self._file.close()
            raise

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _read(self, key: Sequence[str], same: Mapping[str, Cell]) -> int:
        """Check the rows, count them, and return the number of bytes up to the last whole one."""
        header, size = self._form.header, 0
        other = f"{self.path} has other contents than this command would write"
        advice = "choose another name for --out"
        for number, data in enumerate(whole_rows(self._file, self._form)):
            size += len(data)
            if number == 0 and header:
                if data != header:
                    raise UserError(f"{other} (its columns are not the same): {advice}")
                continue
            row = self._form.decode(data)
            where = f"{other} (row {self.count + 1}"
            if row is None:
                raise UserError(f"{where} has not the same columns): {advice}")
            if self.count == len(key) or row["photo"] != key[self.count]:
                raise UserError(f"{where} is of {row['photo']!r}, not in its place): {advice}")
            for name, value in same.items():
                if str(row[name]) != str(value):
                    raise UserError(f"{where} has {name} {row[name]}, not {value}): {advice}")
            self.count += 1
            self.last = row
        if size == 0:
            # Nothing is known of the file: what is in it must be the beginning of our own.
            self._file.seek(0)
            begun, start = self._file.read(), header or b'{"photo": '
            if not (start.startswith(begun) or (not header and begun.startswith(start))):
                raise UserError(f"{other}: {advice}")
        return size

    def add(self, row: Row) -> None:
        """Write one row; raises `UserError` if the disk is full. The rows before it stay whole."""
        try:
            self._write(self._form.encode(row))
        except OSError as error:
            self._file.truncate(self._size)
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): its {self.count} rows are "
                "whole; mend it and run the command again, and it goes on from there"
            ) from error
        self.count += 1

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self._size += len(data)

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield the rows from the first one on."""
        for data in whole_rows(self._file, self._form):
            if data != self._form.header and (row := self._form.decode(data)) is not None:
                yield row

    def sync(self) -> None:
        """Make sure that the rows are on the disk."""
        sync(self.path)


def whole_rows(file: io.FileIO, form: RowFormat) -> Iterator[bytes]:
    """Yield the bytes of each whole row from the start of a file, its header included."""
    row = b""
    with os.fdopen(os.dup(file.fileno()), "rb") as lines:
        lines.seek(0)
        for line in lines:
            row += line
            if form.is_whole(row):
                yield row
                row = b""


def check_out(path: Path, suffixes: Sequence[str]) -> None:
    """Check the name of a file to write before anything is computed.

    Raises `UserError` if its suffix is unknown, the package for it is missing, or a file is there
    that was made at the end of a run and cannot be added to.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise UserError(f"{path} does not end in {', '.join(suffixes)}: choose one of these")
    if suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError(
                "pyarrow is not installed: install taillift[parquet], or choose another suffix "
                f"than .parquet ({', '.join(suffixes)})"
            ) from error
    if suffix in GATHERED and path.exists() and not part_of(path).exists():
        raise UserError(f"{path} exists already, and is whole: remove it or choose another name")


def part_of(path: Path) -> Path:
    """Return the file in which the rows are gathered: the file itself if it can grow."""
    return path.with_name(path.name + PART) if path.suffix.lower() in GATHERED else path


def row_format(path: Path, columns: Sequence[str], features: int = 0) -> RowFormat:
    """Return how rows are gathered for a file; `features` is the length of the features D."""
    if path.suffix.lower() != ".csv":
        return JsonLinesFormat(columns)
    single = [name for name in columns if name != "features"]
    return CsvFormat([*single, *(f"f{index}" for index in range(features))])


def finish(rows: RowFile, path: Path, types: Mapping[str, str], features: int = 0) -> None:
    """Make the file at `path` of the gathered rows, whole or not at all.

    `types` are the columns and their types as Parquet names them.
    """
    rows.sync()
    if rows.path == path:
        return
    with atomic_file(path) as temporary:
        if path.suffix.lower() == ".npz":
            write_npz(rows, temporary, features)
        else:
            write_parquet(rows.rows(), temporary, types)
    rows.path.unlink(missing_ok=True)


def write_parquet(rows: Iterable[Mapping[str, Any]], path: Path, types: Mapping[str, str]) -> None:
    """Write rows to a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {
        "string": pa.string(),
        "double": pa.float64(),
        "int64": pa.int64(),
        "list<string>": pa.list_(pa.string()),
        "list<float>": pa.list_(pa.float32()),
    }
    schema = pa.schema([(name, kinds[kind]) for name, kind in types.items()])
    with parquet.ParquetWriter(path, schema) as writer:
        for chunk in chunks(rows, ROW_GROUP):
            writer.write_table(pa.Table.from_pylist(chunk, schema))


def write_npz(rows: RowFile, path: Path, features: int) -> None:
    """Write `photos` and `errors` [N] and `features` float32 [N, D] as numpy's arrays.

    The features of a photo that could not be used are NaN.
    """
    matrix = np.full((rows.count, features), np.nan, np.float32)
    photos: list[str] = []
    errors: list[str] = []
    for place, row in zip(matrix, rows.rows(), strict=True):
        photos.append(row["photo"])
        errors.append(row["error"] or "")
        if row["features"] is not None:
            place[:] = row["features"]
    np.savez(path, photos=np.array(photos), features=matrix, errors=np.array(errors))
