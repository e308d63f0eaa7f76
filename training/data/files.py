"""Image files that a list names."""

import os
from collections.abc import Sequence
from pathlib import Path

from models import UserError
from training.data.photo import StoredPhoto


def stored_photos(
    root: Path, files: Sequence[str], places: Sequence[str]
) -> tuple[StoredPhoto, ...]:
    """The files under `root`; `places` says for each where it is named.

    Raises `UserError` with the first that is no file there, and how many more are not.
    """
    photos: list[StoredPhoto] = []
    missing: list[int] = []
    for index, file in enumerate(files):
        path = root / file
        try:
            status = path.stat()
        except (OSError, ValueError):  # `ValueError`: no path can have a NUL in it.
            missing.append(index)
            continue
        photos.append(StoredPhoto(root, os.path.normpath(file), status.st_size, status.st_mtime_ns))
    if missing:
        more = f" ({len(missing) - 1:,} more are missing, too)" if len(missing) > 1 else ""
        raise UserError(
            f"{places[missing[0]]} names {files[missing[0]]!r}, which is not in {root}{more}: "
            "check where the photos are"
        )
    return tuple(photos)
