"""Files and folders that appear whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models import UserError


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; it becomes `target` when the block ends well.

    An existing `target` is replaced. Raises `UserError` on a full disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        _no_half_written(target),
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder,
    ):
        temporary = Path(folder) / target.name
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)


@contextmanager
def atomic_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; it becomes `target` when the block ends well.

    Raises `UserError` where `target` exists and is not to be replaced, and on a full disk.
    """
    if target.exists() and not replace:
        raise UserError(f"{target} exists already: choose another name or pass --replace")
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        _no_half_written(target),
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder,
    ):
        temporary = Path(folder) / "new"
        temporary.mkdir()
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        if target.exists():
            target.rename(Path(folder) / "old")
        temporary.rename(target)
        _sync(target.parent)


@contextmanager
def _no_half_written(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        free = shutil.disk_usage(target.parent).free / 2**20
        raise UserError(
            f"the disk is full ({free:.0f} MB free) while writing {target}: free some space and "
            "run the command again; nothing was left behind"
        ) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
