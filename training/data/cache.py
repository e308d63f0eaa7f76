"""The user's cache: data that can be made again at any time, and the unpacked sample sets."""

import hashlib
import logging
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from taillift.models.bundle.atomic import atomic_file, atomic_folder
from taillift.models.bundle.folder import file_record
from taillift.models.errors import UserError

SAMPLES: Final = Path(__file__).parent / "samples"
SAMPLE_NAMES: Final = tuple(sorted(path.stem for path in SAMPLES.glob("*.tar")))

# The variable that says how many GiB frozen features may take in the cache, and its default.
BUDGET: Final = "TAILLIFT_CACHE_GIB"
DEFAULT_BUDGET: Final = "8"
SUFFIX: Final = ".safetensors"
# What a process has left that was killed while it wrote is removed after so many seconds.
ABANDONED: Final = 24 * 3600.0

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder `taillift` in the user's cache: $XDG_CACHE_HOME, or ~/.cache.

    Raises `UserError` if the user has no home folder.
    """
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "taillift"
    try:
        return Path.home() / ".cache/taillift"
    except RuntimeError:
        raise UserError(
            "there is no home folder for the cache: set HOME, or XDG_CACHE_HOME to a folder"
        ) from None


def cache_file(kind: str, subject: Path, suffix: str) -> Path | None:
    """Return the path of the cached file of one `kind` about the file or folder `subject`.

    Without a home folder there is no cache.
    """
    digest = hashlib.sha256(os.fsencode(subject.resolve())).hexdigest()[:24]
    try:
        return cache_folder() / kind / f"{digest}{suffix}"
    except UserError:
        return None


def write_cache_file(target: Path | None, write: Callable[[Path], object]) -> None:
    """Write `target` by calling `write` with a temporary path, which is then renamed.

    Logs a warning if this fails: the cache only saves time. Does nothing without a target.
    """
    if target is None:
        return
    try:
        with atomic_file(target) as temporary:
            write(temporary)
    except UserError as error:
        logger.warning("%s: the work is repeated next time", error)


class ArrayCache:
    """Arrays that can be made again, in files of at most `budget` bytes together.

    Each has a key, which has to change with everything that its values depend on. Those that were
    used longest ago go first. Several processes may use the cache at once.
    """

    def __init__(self, budget: int | None = None) -> None:
        """Use the folder `features` of the user's cache; `budget` None means that of `BUDGET`.

        Raises `UserError` if that is not a number.
        """
        self.budget = cache_budget() if budget is None else budget
        self.folder: Path | None = None
        self._warned = False
        if self.budget:
            with suppress(UserError):
                self.folder = cache_folder() / "features"

    def __str__(self) -> str:
        return f"{self.folder} (at most {self.budget / 2**30:g} GiB; {BUDGET}=0 turns it off)"

    def read(self, key: str) -> npt.NDArray[Any] | None:
        """Return the array of `key`; None if there is none, or its file is damaged: a warning."""
        if self.folder is None:
            return None
        path = self.folder / f"{key}{SUFFIX}"
        try:
            with safe_open(path, "numpy") as file:
                array: npt.NDArray[Any] = file.get_tensor("array")
                digest = (file.metadata() or {}).get("sha256")
            if digest != array_sha256(array):
                raise ValueError("it does not match its digest")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("%s cannot be read (%s): it is made again", path, error)
            return None
        # The time of its last use. A cache that may only be read is still read.
        with suppress(OSError):
            os.utime(path)
        return array

    def write(self, key: str, array: npt.NDArray[Any]) -> None:
        """Keep the array. If that fails, log a warning, once: the cache only saves time."""
        if self.folder is None:
            return
        try:
            self._make_room(array.nbytes)
            with atomic_file(self.folder / f"{key}{SUFFIX}") as temporary:
                save_file({"array": array}, temporary, {"sha256": array_sha256(array)})
            # The file is a little larger, and another process may have written at the same time.
            self._make_room(0)
        except (OSError, SafetensorError, UserError) as error:
            if not self._warned:
                logger.warning("frozen features are not kept for other runs: %s", error)
            self._warned = True

    def _make_room(self, needed: int) -> None:
        """Remove files until `needed` bytes fit the budget and take half the free disk at most.

        Raises `UserError` if they do not fit the empty cache.
        """
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*"):
            if time.time() - file_status(left)[0] > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        files = sorted((*file_status(path), path) for path in self.folder.glob(f"*{SUFFIX}"))
        used = sum(size for _, size, _ in files)
        most = min(self.budget, used + shutil.disk_usage(self.folder).free // 2)
        if needed > most:
            raise UserError(
                f"{needed / 2**30:.3g} GiB do not fit into {self.folder}, which may have "
                f"{most / 2**30:.3g} GiB: free some space on the disk, or set {BUDGET} higher"
            )
        for _, size, path in files:
            if used + needed <= most:
                break
            path.unlink(missing_ok=True)
            used -= size


def cache_budget() -> int:
    """Return the bytes that frozen features may take in the cache; 0 keeps none.

    Raises `UserError` if the variable `BUDGET` is not a number of GiB.
    """
    text = os.environ.get(BUDGET) or DEFAULT_BUDGET
    try:
        return max(0, int(float(text) * 2**30))
    except (ValueError, OverflowError):
        raise UserError(f"{BUDGET}={text}: give a number of GiB, such as 8, or 0") from None


def array_sha256(array: npt.NDArray[Any]) -> str:
    """Return the sha256, in hex, of an array's type, shape and values."""
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def file_status(path: Path) -> tuple[float, int]:
    """Return a file's time of change, in seconds, and its bytes; zeros if it is gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0.0, 0
    return status.st_mtime, status.st_size


def unpack_sample(name: str) -> Path:
    """Unpack a sample set to the user's cache on first use, and return its folder.

    Raises `UserError` if it cannot be written there.
    """
    source = SAMPLES / f"{name}.tar"
    target = cache_folder() / file_record(source).sha256[:12] / name
    if target.is_dir():
        return target
    try:
        with atomic_folder(target) as folder, tarfile.open(source) as archive:
            for member in archive:
                # All members are in one folder, which has the name of the set.
                member.name = member.name.removeprefix(name).lstrip("/") or "."
                archive.extract(member, folder, filter="data")
    except UserError:
        # If several processes unpack at once, the first one's folder stays.
        if not target.is_dir():
            raise
    return target
