"""What is kept between runs and can be made again at any time."""

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

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`taillift` in the user's cache: $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taillift"


def cache_file(kind: str, subject: Path, suffix: str) -> Path:
    """Where the cache keeps what it knows of the file or folder `subject`."""
    digest = hashlib.sha256(os.fsencode(subject.resolve())).hexdigest()[:24]
    return cache_folder() / kind / f"{digest}{suffix}"


def keep(target: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a file that becomes `target`; where that fails, warn and go on without."""
    try:
        with atomic_file(target) as temporary:
            write(temporary)
    except UserError as error:
        logger.warning("%s: the work is repeated next time", error)


SAMPLES: Final = Path(__file__).parent / "samples"
SAMPLE_NAMES: Final = tuple(sorted(path.stem for path in SAMPLES.glob("*.tar")))


def unpack_sample(name: str) -> Path:
    """Unpack a sample set to the user's cache on first use; returns its folder.

    Raises `UserError` where it cannot be written there.
    """
    source = SAMPLES / f"{name}.tar"
    target = cache_folder() / file_record(source).sha256[:12] / name
    if not target.is_dir():
        try:
            _unpack(source, target)
        except UserError:
            # Of several processes at once the first one's folder stays.
            if not target.is_dir():
                raise
    return target


def _unpack(source: Path, target: Path) -> None:
    with atomic_folder(target) as folder, tarfile.open(source) as archive:
        for member in archive:
            # The archive holds one folder of the set's own name.
            member.name = member.name.removeprefix(source.stem).lstrip("/") or "."
            archive.extract(member, folder, filter="data")
