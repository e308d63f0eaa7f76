"""What is kept between runs and can be made again at any time."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from models import UserError
from models.bundle.atomic import atomic_file

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
