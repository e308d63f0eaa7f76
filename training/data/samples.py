"""The sample sets that come with the package."""

import tarfile
from pathlib import Path
from typing import Final

from models import UserError
from models.bundle.atomic import atomic_folder
from models.bundle.folder import file_record
from training.data.cache import cache_folder

SAMPLES: Final = Path(__file__).parent.parent / "samples"
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
