"""TensorRT's engines, which take minutes to build, kept from one start to the next."""

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
    """Names what an engine is good for: the graph's bytes and the conditions it is built under."""
    digest = file_sha256(graph)
    digest.update(repr(conditions).encode())
    return digest.hexdigest()[:16]


@contextmanager
def engine_folder(root: Path, key: str) -> Iterator[Path]:
    """The folder for `key` in `root`, with nobody else in it until the block ends.

    It is marked as complete, last, when the block ends well. What a block left that did not is
    removed: by that block, or by the next one where the process died. So an engine that does not
    load is built again at the next start. Raises `UserError` where the folder cannot be written.
    """
    folder = root / key
    with _locked(root, key):
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / COMPLETE).touch()


@contextmanager
def _locked(root: Path, key: str) -> Iterator[None]:
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
        yield
