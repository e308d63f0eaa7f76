"""Files and folders that appear whole or not at all, and the hash that identifies a file."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taillift.models.errors import UserError


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; it becomes `target` when the block ends well.

    An existing file is replaced. Raises `UserError` where the disk is full or the place not to be
    written.
    """
    with _beside(target) as folder:
        temporary = folder / target.name
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)


@contextmanager
def atomic_folder(target: Path, replace: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; it becomes `target` when the block ends well.

    An existing `target` is replaced only where it holds a file of the name `replace`, and stays
    as it is on any failure. Raises `UserError` where it is not to be replaced, the disk is full or
    the place not to be written.
    """
    _check_replaceable(target, replace)
    with _beside(target) as folder:
        temporary = folder / "new"
        temporary.mkdir()
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        _check_replaceable(target, replace)
        _swap(temporary, target, folder / "old")
        _sync(target.parent)


def file_sha256(path: Path) -> "hashlib._Hash":
    """Return the sha256 of a file's bytes, to which more can be added."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def require_writable(target: Path) -> None:
    """Raises `UserError` where a file could not be written at `target`: to know before the work."""
    with _beside(target):
        if target.is_dir():
            raise UserError(f"{target} is a folder: name a file to write")


def _check_replaceable(target: Path, replace: str | None) -> None:
    if not target.exists():
        return
    if replace is None:
        raise UserError(f"{target} exists already: choose another name or pass --replace")
    if not (target / replace).is_file():
        raise UserError(f"{target} has no {replace} and is not replaced: choose another name")


def _swap(new: Path, target: Path, old: Path) -> None:
    """Put `new` in the place of `target`, and `target` back where that fails."""
    if not target.exists():
        new.rename(target)
        return
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `target`; what the system refuses is one line."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}."
        with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        if error.filename and not _is_within(str(error.filename), target.parent):
            raise UserError(
                f"{error.filename} cannot be used ({error.strerror}): {target} was not written"
            ) from error
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            free = shutil.disk_usage(target.parent).free / 2**20
            raise UserError(
                f"the disk is full ({free:.0f} MB free) while writing {target}: free some space "
                "and run the command again; nothing was left behind"
            ) from error
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(f"{target} cannot be written: {error.strerror}{where}") from error


def _is_within(path: str, folder: Path) -> bool:
    """However the two are written: temporary folders may be named from the root."""
    return Path(path).absolute().is_relative_to(folder.absolute())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
