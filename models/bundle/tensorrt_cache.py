"""A cache of TensorRT's engines, which take minutes to build."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from taillift.models.bundle.atomic import file_sha256
from taillift.models.errors import UserError

COMPLETE: Final = "complete"


def engine_key(graph: Path, *conditions: object) -> str:
    """Return the name of a graph's engine that was built under these conditions."""
    digest = file_sha256(graph)
    digest.update(repr(conditions).encode())
    return digest.hexdigest()[:16]


@contextmanager
def engine_folder(root: Path, key: str) -> Iterator[Path]:
    """Yield the folder for `key` in `root`; no other process uses it until the block ends.

    The folder is marked as complete, last, if the block succeeds. Otherwise it is removed: by the
    block itself, or by the next one if the process died. So an engine that does not load is built
    again at the next start. Raises `UserError` if the folder cannot be written.
    """
    folder = root / key
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f"{key}.lock").open("w")
    except OSError as error:
        raise UserError(
            f"{root} cannot hold TensorRT's engines ({error.strerror}): set engines to a folder "
            "that can be written"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / COMPLETE).touch()
