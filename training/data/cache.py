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
    """Return the folder `taillift` in the user's cache: $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taillift"


def cache_file(kind: str, subject: Path, suffix: str) -> Path:
    """Return the path of the cached file of one `kind` about the file or folder `subject`."""
    digest = hashlib.sha256(os.fsencode(subject.resolve())).hexdigest()[:24]
    return cache_folder() / kind / f"{digest}{suffix}"


def write_cache_file(target: Path, write: Callable[[Path], object]) -> None:
    """Write `target` by calling `write` with a temporary path, which is then renamed.

    Logs a warning if this fails: the cache only saves time.
    """
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
