"""Large sets of photos in parts: lists of files, rows of Parquet tables, tar shards.

Each may be on this machine or at an address such as s3://bucket/photos/*.tar, which fsspec reads.
"""

import glob
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final, Self

import numpy as np

from taillift.models.bundle.arrays import chunks
from taillift.models.bundle.classifier import AnyImage
from taillift.models.bundle.images import ImageError, UnreadableImageError
from taillift.models.bundle.photo_sources import (
    SUFFIXES,
    entries_of,
    find_photos,
    is_photo_name,
)
from taillift.models.errors import UserError, first_lines

# Photos of a list, or rows of a table, that make a part. A shard is one part.
PART_PHOTOS: Final = 10_000
TABLE: Final = ".parquet"
SHARDS: Final = (".tar", ".tar.gz", ".tgz")
ADDRESS: Final = "://"
PASSWORD: Final = re.compile(r"(?<=://)[^/@\s]+@")
# Photos at addresses that are read at the same time, and rows of a table that are.
READERS: Final = 16
ROWS_AT_ONCE: Final = 64
# Bytes of a column that are read at once.
READ_BYTES: Final = 2**20

Image = AnyImage | ImageError


@dataclass(frozen=True)
class PhotoSet:
    """Photos with a name each. `images` yields them from a number on, or why one cannot be had."""

    names: Sequence[str]
    images: Callable[[int], Iterator[Image]]


@dataclass(frozen=True)
class PhotoPart:
    """A part of a large set. `source` says which; `open` raises `UserError` if it is unreadable."""

    source: str
    open: Callable[[], AbstractContextManager[PhotoSet]]


class ShardMember(tarfile.TarInfo):
    """A member of a shard. A damaged one is an error: tarfile takes it for the shard's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # The mark of the end.
            raise tarfile.ReadError("it is damaged, or its end is missing") from error


def printable_path(photo: Path | str) -> str:
    """Return a path or an address as text, without a password.

    Bytes that are not UTF-8 are escaped.
    """
    text = str(photo).encode("utf-8", "backslashreplace").decode()
    return PASSWORD.sub("***@", text)


def photo_list(photos: Sequence[Path]) -> PhotoSet:
    """Return the photos of a list of files."""
    return PhotoSet(list(map(printable_path, photos)), lambda start: iter(photos[start:]))


def is_large(source: str) -> bool:
    """Return whether a source is a table, a shard or an address, which need an output folder."""
    return ADDRESS in source or source.lower().endswith((TABLE, *SHARDS))


def parts_of(sources: Sequence[str], recursive: bool, out: Path | None = None) -> list[PhotoPart]:
    """Return the parts of all sources, in their order.

    A source is one of `find_photos`, a table, a shard, a folder or a glob of tables and shards, or
    an address of any of these. What is in the folder `out` is not read. Raises `UserError` if
    nothing is left, or a table cannot be read.
    """
    parts: list[PhotoPart] = []
    for source in sources:
        files = [name for name in expanded(source, recursive) if not is_inside(name, out)]
        if ADDRESS not in source and not any(map(is_large, files)):
            files = list(map(str, find_photos([source], recursive)))
            parts += map(list_part, chunks(files, PART_PHOTOS))
            continue
        if not any(name.lower().endswith((TABLE, *SHARDS, *SUFFIXES)) for name in files):
            raise UserError(
                f"{printable_path(source)} has no photos, tables (.parquet) or shards (.tar)"
            )
        photos = [name for name in files if is_photo_name(name)]
        parts += map(list_part, chunks(photos, PART_PHOTOS))
        for name in files:
            if name.lower().endswith(TABLE):
                parts += table_parts(name)
            elif name.lower().endswith(SHARDS):
                parts.append(PhotoPart(printable_path(name), partial(opened_shard, name)))
    return parts


def is_inside(name: str, folder: Path | None) -> bool:
    """Return whether a file is in a folder, however both are written."""
    return (
        folder is not None
        and ADDRESS not in name
        and Path(os.path.abspath(name)).is_relative_to(os.path.abspath(folder))  # noqa: PTH100
    )


def expanded(source: str, recursive: bool) -> list[str]:
    """Return the files of a folder or a glob, here or at an address, or the source itself."""
    if ADDRESS in source:
        system, path = system_of(source)
        with readable_errors(source):
            if glob.has_magic(path):
                found = system.glob(path)
            else:
                found = system.find(path) if system.isdir(path) else [path]
        return sorted(system.unstrip_protocol(name) for name in found)
    if Path(source).is_dir():
        return sorted(map(str, entries_of(Path(source), recursive)))
    if glob.has_magic(source) and not Path(source).exists():
        return sorted(glob.glob(source, recursive=True))  # noqa: PTH207
    return [source]


def list_part(names: Sequence[str]) -> PhotoPart:
    """Return the part of a list of files and addresses."""
    digest = sha256("\0".join(map(printable_path, names)).encode()).hexdigest()[:16]
    source = f"{len(names)} photos from {printable_path(names[0])} on ({digest})"

    @contextmanager
    def opened() -> Iterator[PhotoSet]:
        yield PhotoSet(list(map(printable_path, names)), lambda start: images_of(names[start:]))

    return PhotoPart(source, opened)


def images_of(names: Sequence[str]) -> Iterator[Image]:
    """Yield the photos at these paths and addresses; threads read those at addresses."""

    def image(name: str) -> Image:
        if not name:
            return UnreadableImageError("the row has no path")
        if ADDRESS not in name:
            return Path(name)
        try:
            with opened_file(name) as file, readable_errors(name):
                return file.read()
        except UserError as error:
            return UnreadableImageError(str(error))

    with ThreadPoolExecutor(READERS, "read") as pool:
        for some in chunks(names, 4 * READERS):
            yield from pool.map(image, some)


def table_parts(name: str) -> list[PhotoPart]:
    """Return the parts of a Parquet file with the column path, bytes, or image (which has both)."""
    parquet = pyarrow_parquet()
    with opened_file(name) as file, readable_errors(name):
        table = parquet.ParquetFile(file)
        columns, rows = set(table.schema_arrow.names), table.metadata.num_rows
    if not columns & {"path", "bytes", "image"}:
        raise UserError(
            f"{printable_path(name)} has no column path or bytes (but "
            f"{', '.join(sorted(columns))}): rename one"
        )
    starts = range(0, rows, PART_PHOTOS)
    ranges = [(start, min(start + PART_PHOTOS, rows)) for start in starts]
    return [
        PhotoPart(
            f"{printable_path(name)}, rows {start} to {stop - 1}",
            partial(opened_table, name, start, stop),
        )
        for start, stop in ranges
    ]


@contextmanager
def opened_table(name: str, start: int, stop: int) -> Iterator[PhotoSet]:
    """Open the rows `start` to `stop` of a Parquet file."""
    with opened_file(name) as file:
        with readable_errors(name):
            # By default, pyarrow reads a column of a row group, maybe of the whole file, at once.
            table = pyarrow_parquet().ParquetFile(file, pre_buffer=False, buffer_size=READ_BYTES)
            columns = [one for one in ("path", "bytes", "image") if one in table.schema_arrow.names]
            paths = {"path": "path", "image": "image.path"}.get(columns[0])
            rows = rows_of(table, [paths], start, stop) if paths else [{}] * (stop - start)
            names = [
                printable_path(path_of(row) or f"{name}#{number}")
                for number, row in enumerate(rows, start)
            ]

        def images(skipped: int) -> Iterator[Image]:
            with readable_errors(name):
                for rows in chunks(rows_of(table, columns, start + skipped, stop), ROWS_AT_ONCE):
                    if columns == ["path"]:
                        yield from images_of([path_of(row) or "" for row in rows])
                    else:
                        yield from map(bytes_of, rows)

        yield PhotoSet(names, images)


def rows_of(table: Any, columns: list[str], start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Yield rows of a Parquet file; row groups that have none of them are not read."""
    sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    ends = np.cumsum(sizes)
    groups = np.flatnonzero((ends > start) & (ends - sizes < stop))
    if not groups.size:
        return
    first = int(ends[groups[0]]) - sizes[groups[0]]
    for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=groups.tolist(), columns=columns):
        low, high = max(start - first, 0), min(stop - first, len(batch))
        if low < high:
            yield from batch.slice(low, high - low).to_pylist()
        first += len(batch)


def path_of(row: dict[str, Any]) -> str | None:
    """Return the path in a row, which the column image may hold."""
    path = row.get("path") or in_image(row, "path")
    return path if isinstance(path, str) else None


def in_image(row: dict[str, Any], name: str) -> object:
    """Return a field of the column image, or what is there in place of fields."""
    image = row.get("image")
    return image.get(name) if isinstance(image, dict) else image


def bytes_of(row: dict[str, Any]) -> Image:
    """Return the image file in a row, which the column image may hold or be."""
    data = row.get("bytes") or in_image(row, "bytes")
    return data if isinstance(data, bytes) else UnreadableImageError("the row has no bytes")


@contextmanager
def opened_shard(name: str) -> Iterator[PhotoSet]:
    """Open a tar file; one at an address is copied to this machine first."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(name)
        with readable_errors(name):
            if ADDRESS in name:
                system, remote = system_of(name)
                path = Path(folder) / Path(remote).name
                system.get(remote, str(path))
            shard = stack.enter_context(tarfile.open(path, tarinfo=ShardMember))
            # tar writes the second name of a file as a link to the first one.
            files = [one for one in shard if one.isfile() or one.islnk()]
            photos = [one for one in files if is_photo_name(one.name)]

        def images(start: int) -> Iterator[Image]:
            with readable_errors(name):
                for member in photos[start:]:
                    file = shard.extractfile(member)
                    assert file is not None
                    yield file.read()

        yield PhotoSet([printable_path(f"{name}/{one.name}") for one in photos], images)


def system_of(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path in it; raises `UserError`."""
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise UserError(
            f"fsspec is not installed, which {printable_path(address)} needs: install "
            "taillift[remote], and its package for the address, such as s3fs or gcsfs"
        ) from error
    with readable_errors(address):
        system, path = fsspec.core.url_to_fs(address)
    return system, path


@contextmanager
def opened_file(name: str) -> Iterator[IO[bytes]]:
    """Open a file here or at an address; raises `UserError` if it cannot be read."""
    with ExitStack() as stack:
        with readable_errors(name):
            if ADDRESS in name:
                system, path = system_of(name)
                file = stack.enter_context(system.open(path, "rb"))
            else:
                file = stack.enter_context(Path(name).open("rb"))
        yield file


@contextmanager
def readable_errors(name: str) -> Iterator[None]:
    """Turn any error while a source is read into a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    # Each file system of fsspec has errors of its own; pyarrow's are values.
    except Exception as error:
        reason = getattr(error, "strerror", None) or first_lines(error)
        raise UserError(printable_path(f"{name} cannot be read: {reason}")) from error


def pyarrow_parquet() -> Any:
    """Return pyarrow's module for Parquet; raises `UserError` if it is not installed."""
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UserError("pyarrow is not installed: install taillift[parquet]") from error
    return parquet
