"""From the sources that a user names to a list of photos: folders, globs, lists, standard input."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from taillift.models.errors import UserError

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp"})
LIST_SUFFIX: Final = ".txt"
STDIN: Final = "-"
BOM: Final = b"\xef\xbb\xbf"


def find_photos(sources: Iterable[str], recursive: bool = False) -> list[Path]:
    """Return the photos of all sources, in the order of the sources.

    A source is a folder (its photos in the order of their paths, with `recursive` also those in
    the folders inside it), a file, a glob, a list of photos (`@FILE`, or a file that ends in .txt:
    one path a line) or `-` (such a list on standard input). A path that names no file is kept, so
    that its photo can be reported like any other that cannot be used.

    Raises `UserError` if a folder or a glob has no photo, or a list cannot be read.
    """
    return [photo for source in sources for photo in photos_of(source, recursive)]


def photos_of(source: str, recursive: bool) -> Iterator[Path]:
    """Yield the photos of one source; raises `UserError` as `find_photos` does."""
    path = Path(source)
    if source == STDIN:
        yield from listed(sys.stdin.buffer.read())
    elif os.path.lexists(path) and not path.is_dir() and path.suffix.lower() != LIST_SUFFIX:
        yield path
    elif path.is_dir():
        yield from photos_in(path, recursive)
    elif path.suffix.lower() == LIST_SUFFIX and path.exists():
        yield from read_list(path)
    elif source.startswith("@"):
        yield from read_list(Path(source[1:]))
    elif glob.has_magic(source):
        # Path.glob refuses absolute patterns.
        found = sorted(glob.glob(source, recursive=True))  # noqa: PTH207
        matches = [Path(match) for match in found]
        photos = [match for match in matches if is_photo(match)]
        if not photos:
            raise UserError(f"{source} matches no photo ({', '.join(sorted(SUFFIXES))})")
        yield from photos
    else:
        yield path


def is_photo(path: Path) -> bool:
    """Return whether the path is that of a file with the name of a photo."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def photos_in(folder: Path, recursive: bool) -> list[Path]:
    """Return the photos in a folder in the order of their paths; raises `UserError` if none."""
    photos = sorted(filter(is_photo, folder.rglob("*") if recursive else folder.iterdir()))
    if photos:
        return photos
    line = f"{folder} has no photos ({', '.join(sorted(SUFFIXES))})"
    if not recursive and any(path.is_dir() for path in folder.iterdir()):
        line += ": pass --recursive to look into the folders inside it"
    raise UserError(line)


def read_list(path: Path) -> list[Path]:
    """Return the photos that a file lists; raises `UserError` if it cannot be read."""
    try:
        return listed(path.read_bytes())
    except OSError as error:
        raise UserError(f"the list {path} cannot be read: {error.strerror}") from error


def listed(text: bytes) -> list[Path]:
    """Return the paths of a list with one a line; relative ones start at the current folder."""
    lines = (line.removesuffix(b"\r") for line in text.removeprefix(BOM).split(b"\n"))
    return [Path(os.fsdecode(line)) for line in lines if line.strip()]
