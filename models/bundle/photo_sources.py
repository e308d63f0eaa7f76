"""From the sources that a user names to a list of photos: folders, globs, lists, standard input."""

import glob
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Final

from taillift.models.errors import UserError

SUFFIXES: Final = (".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp")
LIST_SUFFIX: Final = ".txt"
STDIN: Final = "-"
BOM: Final = b"\xef\xbb\xbf"
UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")
# Begins the name of a companion that macOS writes next to a file, without its pixels.
COMPANION: Final = "._"
# Entries that systems and tools create, besides those whose names start with a dot.
SYSTEM_NAMES: Final = {"@eaDir", "__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini"}

logger = logging.getLogger(__name__)


def is_system_name(name: str) -> bool:
    """Return whether a system or a tool makes entries of this name, which no user means."""
    return name.startswith(".") or name in SYSTEM_NAMES


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
        yield from listed(sys.stdin.buffer.read(), "on standard input")
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
            raise UserError(f"{source} matches no photo ({', '.join(SUFFIXES)})")
        yield from photos
    else:
        yield path


def is_photo(path: Path) -> bool:
    """Return whether the path is that of a file with the name of a photo."""
    return is_photo_name(path.name) and path.is_file()


def is_photo_name(name: str) -> bool:
    """Return whether a path has the name of a photo, and not of a companion on macOS."""
    return name.lower().endswith(SUFFIXES) and not PurePath(name).name.startswith(COMPANION)


def photos_in(folder: Path, recursive: bool) -> list[Path]:
    """Return the photos in a folder in the order of their paths; raises `UserError` if none."""
    entries = list(entries_of(folder, recursive))
    if photos := sorted(filter(is_photo, entries)):
        return photos
    line = f"{folder} has no photos ({', '.join(SUFFIXES)})"
    if not recursive and any(path.is_dir() for path in entries):
        line += ": pass --recursive to look into the folders inside it"
    raise UserError(line)


def entries_of(folder: Path, recursive: bool) -> Iterator[Path]:
    """Yield what is in a folder, with `recursive` also what is in the folders inside it.

    `SYSTEM_NAMES` and companions on macOS are passed over, whether photos, tables or shards. Links
    to folders are not followed: they could go round in a circle. A warning names the first one, and
    another the first folder inside that cannot be read. Raises `UserError` if `folder` cannot be
    read.
    """
    links: list[Path] = []
    closed: list[OSError] = []
    for where, folders, names in os.walk(folder, onerror=closed.append):
        folders[:] = [name for name in folders if name not in SYSTEM_NAMES]
        entries = (name for name in (*folders, *names) if not name.startswith(COMPANION))
        yield from (Path(where, name) for name in entries)
        if not recursive:
            return
        links += [path for name in folders if (path := Path(where, name)).is_symlink()]
    if closed and Path(closed[0].filename) == folder:
        raise UserError(f"{folder} cannot be read ({closed[0].strerror})")
    for count, words, first in (
        (len(links), "links to folders are not followed", links and links[0]),
        (len(closed), "folders cannot be read", closed and closed[0].filename),
    ):
        if count:
            logger.warning("%s: %d %s, such as %s", folder, count, words, first)


def read_list(path: Path) -> list[Path]:
    """Return the photos that a file lists; raises `UserError` if it cannot be read."""
    try:
        return listed(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"the list {path} cannot be read: {error.strerror}") from error


def listed(text: bytes, place: str) -> list[Path]:
    """Return the paths of a list with one a line; relative ones start at the current folder.

    UTF-16 is read if its mark says so. Raises `UserError`, which names the list's `place`, if it
    is binary.
    """
    if text.startswith(UTF16_BOMS):
        # What is cut off in the middle becomes a character that no name has.
        text = text.decode("utf-16", "replace").encode()
    refuse_binary(text, f"the list {place}")
    lines = (line.removesuffix(b"\r") for line in text.removeprefix(BOM).split(b"\n"))
    return [Path(os.fsdecode(line)) for line in lines if line.strip()]


def refuse_binary(text: bytes, name: str) -> None:
    """Raise `UserError`, with the `name` of what was read, if it is mostly zeros and no text."""
    if 3 * text.count(b"\0") > len(text):
        raise UserError(f"{name} is not text in UTF-8 but binary, or in UTF-16: save it in UTF-8")
