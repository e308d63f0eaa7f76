"""What a reader found in a source, before any photo is opened."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taillift.models.errors import UserError
from taillift.training.data.photo import StoredPhoto
from taillift.training.data.split import Split, SplitName


@dataclass(frozen=True)
class Listing:
    """`classes` in the source's own order, `names` as a person would write them, and the splits.

    A class's number is its place in `classes`, whichever split has photos of it.
    """

    source: Path
    name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    splits: Mapping[SplitName, Split]

    @property
    def counts(self) -> list[int]:
        """Training photos of each class."""
        counted = Counter(self.splits["train"].labels)
        return [counted[index] for index in range(len(self.classes))]


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
