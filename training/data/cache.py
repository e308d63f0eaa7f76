"""The user's cache: data that can be made again at any time, and the unpacked sample sets."""

import hashlib
import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from taillift.models.bundle.atomic import atomic_file, atomic_folder
from taillift.models.bundle.folder import file_record
from taillift.models.errors import UserError

SAMPLES: Final = Path(__file__).parent / "samples"
SAMPLE_NAMES: Final = tuple(sorted(path.stem for path in SAMPLES.glob("*.tar")))

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
