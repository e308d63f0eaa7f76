"""The result of every reader: the photos and classes of a source, before a photo is opened."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from stat import S_ISREG
from typing import Final
from unicodedata import normalize

from taillift.models.bundle.photo_sources import is_system_name
from taillift.models.errors import UserError
from taillift.training.data.classes import Vocabulary, prompt_names
from taillift.training.data.photo import Split, SplitName, StoredPhoto

# The folder of photos without labels, which `training.data.pool` reads.
UNLABELLED: Final = "unlabelled"
DOCUMENTS: Final = ("readme", "license", "licence", "citation", "sources")


@dataclass(frozen=True, slots=True)
class Unused:
    """A kind of thing that a reader does not use: where, how many, in words, and one of them."""

    where: str
    count: int
    words: str
    example: str

    def __str__(self) -> str:
        return f"{self.where}: {self.count:,} {self.words}, such as {self.example}"


@dataclass(frozen=True)
class AddedPhotos:
    """Photos of another source, which has a name of its own, to train on as well."""

    source: str
    name: str
    photos: Split


@dataclass(frozen=True)
class Listing:
    """The photos of a source by split, with `classes` in the source's own order.

    `name` is for results and metadata: bytes of a folder's name that are not UTF-8 are escaped.
    `folder` may hold classnames.json. `layout` says what has been read, and `unused` what has not.
    Labels are indices into `classes` in every split, and in the photos that are `added` to train.
    """

    source: Path
    name: str
    vocabulary: Vocabulary
    folder: Path
    splits: Mapping[SplitName, Split]
    layout: str
    unused: tuple[Unused, ...] = ()
    added: tuple[AddedPhotos, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.encode("utf-8", "backslashreplace").decode())

    @property
    def classes(self) -> tuple[str, ...]:
        return self.vocabulary.classes

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The classes' names in prompts. Raises `UserError` as `prompt_names` does."""
        return prompt_names(self.folder, self.vocabulary)

    @property
    def parts(self) -> list[Split]:
        """The splits, and the photos of each added source."""
        return [*self.splits.values(), *(addition.photos for addition in self.added)]


def unused_entries(folder: Path, used: Collection[str]) -> list[Unused]:
    """Return the entries of a folder that are not `used`, by their names, if there are any.

    Documents such as README.md, the folder of unlabelled photos and what systems create do not
    count.
    """
    names = sorted(
        name
        for name in (path.name for path in folder.iterdir())
        if name not in {*used, UNLABELLED}
        and not is_system_name(name)
        and not name.lower().startswith(DOCUMENTS)
    )
    if not names:
        return []
    return [Unused(str(folder), len(names), "entries are not used", names[0])]


def stored_photos(
    root: Path, files: Sequence[str], origins: Sequence[str]
) -> tuple[StoredPhoto, ...]:
    """Return the photos in `files`, which are relative to `root`.

    `origins` says for each file where it is listed. A name is found in any Unicode form. Raises
    `UserError` with the first file that does not exist, and with the number of the others.
    """
    photos: list[StoredPhoto] = []
    missing: list[int] = []
    for index, file in enumerate(files):
        for form in (file, normalize("NFC", file), normalize("NFD", file)):
            try:
                status = (root / form).stat()
            except (OSError, ValueError):  # A path with a NUL raises `ValueError`.
                continue
            if not S_ISREG(status.st_mode):  # Reading a pipe might wait for ever.
                continue
            name = os.path.normpath(form)
            photos.append(StoredPhoto(root, name, status.st_size, status.st_mtime_ns))
            break
        else:
            missing.append(index)
    if missing:
        more = f" ({len(missing) - 1:,} more are missing, too)" if len(missing) > 1 else ""
        first = files[missing[0]]
        hint = ", and write / for \\" if "\\" in first else ""
        raise UserError(
            f"{origins[missing[0]]} names {first!r}, which is not a file in {root}{more}: "
            f"check where the photos are{hint}"
        )
    return tuple(photos)
