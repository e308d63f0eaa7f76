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
    """Yield a temporary path next to `target`; it becomes `target` if the block succeeds.

    An existing file is replaced. Raises `UserError` if the disk is full or the place cannot be
    written.
    """
    with temporary_folder_next_to(target) as folder:
        temporary = folder / target.name
        yield temporary
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)


@contextmanager
def atomic_folder(target: Path, replace: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder next to `target`; it becomes `target` if the block succeeds.

    An existing `target` is replaced only if it holds a file of the name `replace`, and stays as it
    is if anything fails. Raises `UserError` if it may not be replaced, the disk is full or the
    place cannot be written.
    """
    check_replaceable(target, replace)
    with temporary_folder_next_to(target) as folder:
        temporary = folder / "new"
        temporary.mkdir()
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        check_replaceable(target, replace)
        swap(temporary, target, folder / "old")
        sync(target.parent)


def require_writable(target: Path) -> None:
    """Raise `UserError` if a file could not be written at `target`: to know before the work."""
    with temporary_folder_next_to(target):
        if target.is_dir():
            raise UserError(f"{target} is a folder: name a file to write")


def check_replaceable(target: Path, replace: str | None) -> None:
    """Raise `UserError` if `target` exists and is not a folder with a file of the name `replace`.

    Without `replace` nothing that exists may be replaced.
    """
    if not target.exists():
        return
    if replace is None:
        raise UserError(f"{target} exists already: choose another name or pass --replace")
    if not (target / replace).is_file():
        raise UserError(f"{target} has no {replace} and is not replaced: choose another name")


def swap(new: Path, target: Path, old: Path) -> None:
    """Move `target` to `old` and `new` to `target`; if that fails, move `target` back."""
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
def temporary_folder_next_to(target: Path) -> Iterator[Path]:
    """Yield a temporary folder on the file system of `target`.

    Raises `UserError` for what the operating system refuses in the block.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}."
        with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        # Absolute, because temporary folders may be named from the root and the target not.
        place, parent = str(error.filename or ""), target.parent.absolute()
        # A copy names both its source and its target.
        names = [Path(name).absolute() for name in (place, error.filename2) if name]
        if names and not any(name.is_relative_to(parent) for name in names):
            raise UserError(
                f"{place} cannot be used ({error.strerror}): {target} was not written"
            ) from error
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            free = shutil.disk_usage(target.parent).free / 2**20
            raise UserError(
                f"the disk is full ({free:.0f} MB free) while writing {target}: free some space "
                "and run the command again; nothing was left behind"
            ) from error
        where = f" ({place})" if place else ""
        raise UserError(f"{target} cannot be written: {error.strerror}{where}") from error


def sync(path: Path) -> None:
    """Make sure that a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> "hashlib._Hash":
    """Return the sha256 of a file's bytes, to which more can be added."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")
