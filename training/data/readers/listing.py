"""The result of every reader: the photos and classes of a source, before a photo is opened."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taillift.models.errors import UserError
from taillift.training.data.photo import Split, SplitName, StoredPhoto


@dataclass(frozen=True)
class Listing:
    """The photos of a source by split, with `classes` in the source's own order.

    `names` are the classes' names in prompts. Labels are indices into `classes` in every split.
    """

    source: Path
    name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    splits: Mapping[SplitName, Split]

    @property
    def counts(self) -> list[int]:
        """The number of training photos of each class."""
        counted = Counter(self.splits["train"].labels)
        return [counted[index] for index in range(len(self.classes))]


def stored_photos(
    root: Path, files: Sequence[str], origins: Sequence[str]
) -> tuple[StoredPhoto, ...]:
    """Return the photos in `files`, which are relative to `root`.

    `origins` says for each file where it is listed. Raises `UserError` with the first file that
    does not exist, and with the number of the others.
    """
    photos: list[StoredPhoto] = []
    missing: list[int] = []
    for index, file in enumerate(files):
        path = root / file
        try:
            status = path.stat()
        except (OSError, ValueError):  # A path with a NUL raises `ValueError`.
            missing.append(index)
            continue
        photos.append(StoredPhoto(root, os.path.normpath(file), status.st_size, status.st_mtime_ns))
    if missing:
        more = f" ({len(missing) - 1:,} more are missing, too)" if len(missing) > 1 else ""
        raise UserError(
            f"{origins[missing[0]]} names {files[missing[0]]!r}, which is not in {root}{more}: "
            "check where the photos are"
        )
    return tuple(photos)
