"""A photo of a set, stored or raw, and a split: labelled photos with one purpose, and its name."""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from taillift.models.bundle.images import ImageError
from taillift.models.bundle.schema import MAX_PIXELS
from taillift.models.errors import UserError


@dataclass(frozen=True, slots=True)
class StoredPhoto:
    """An image file, or the `size` bytes of a shard that begin at byte `start`.

    `file` is relative to `root`. In a shard, `member` is the photo's own name. `changed` is the
    file's time of change in nanoseconds.
    """

    root: Path
    file: str
    size: int
    changed: int
    start: int = 0
    member: str = ""

    @property
    def name(self) -> str:
        """The photo's name, which stays the same if the set is moved."""
        return f"{self.file}/{self.member}" if self.member else self.file

    @property
    def path(self) -> Path:
        return self.root / self.file

    def read(self) -> bytes:
        """Return the bytes of the image file.

        Raises `UserError` if the file is missing, may not be read or has become shorter.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.size)
        except OSError as error:
            raise UserError(
                f"{self} cannot be read ({error.strerror}): put it back, or remove it from the set"
            ) from error
        if len(data) < self.size:
            raise UserError(
                f"{self} has shrunk since it was listed: do not change files during a run"
            )
        return data

    def __str__(self) -> str:
        return str(self.root / self.name)


@dataclass(frozen=True, slots=True, eq=False)
class RawPhoto:
    """Pixels without an image file: uint8 [3, height, width], RGB."""

    name: str
    pixels: npt.NDArray[np.uint8]

    @property
    def size(self) -> int:
        return self.pixels.nbytes

    def read(self) -> bytes:
        """Return the photo as a PNG file, which is lossless."""
        buffer = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(self.pixels.transpose(1, 2, 0)))
        image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def __str__(self) -> str:
        return self.name


Photo = StoredPhoto | RawPhoto


@contextmanager
def naming(photo: Photo) -> Iterator[None]:
    """Turn an `ImageError` from the block into a `UserError` that names the photo."""
    try:
        yield
    except ImageError as error:
        raise UserError(f"{photo}: {error}; repair it, or remove it from the set") from error


SplitName = Literal["train", "val", "test"]
SPLITS: Final[tuple[SplitName, ...]] = get_args(SplitName)
# The words for a split in the names of folders, lists and shards, and in tables, in any case.
SPLIT_WORDS: Final[Mapping[str, SplitName]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Split:
    """Photos, and for each the index of its class in the classes of the set.

    `contents` has 64 bits of the content of each photo, as far as they have been read. Photos with
    more than `max_pixels` are refused.
    """

    photos: tuple[Photo, ...]
    labels: tuple[int, ...]
    contents: tuple[int, ...] = ()
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.photos)

    def only(self, indices: Iterable[int]) -> "Split":
        """Return the photos at `indices`, in that order."""
        kept = list(indices)
        return replace(
            self,
            photos=tuple(self.photos[index] for index in kept),
            labels=tuple(self.labels[index] for index in kept),
            contents=tuple(self.contents[index] for index in kept) if self.contents else (),
        )

    def with_more(self, more: "Split") -> "Split":
        """Return the photos of both; if one lacks contents, so does the result."""
        known = len(self.contents) == len(self) and len(more.contents) == len(more)
        return replace(
            self,
            photos=self.photos + more.photos,
            labels=self.labels + more.labels,
            contents=self.contents + more.contents if known else (),
        )

    def listed(self) -> bytes:
        """Return a line for each photo, with its name, size and label, for a fingerprint."""
        lines = (
            f"{photo.name!r} {photo.size} {label}\n"
            for photo, label in zip(self.photos, self.labels, strict=True)
        )
        return "".join(lines).encode()

    def relabelled(self, labels: Sequence[int]) -> "Split":
        """Return the same photos with `labels[old]` in place of every label `old`."""
        return replace(self, labels=tuple(labels[label] for label in self.labels))


def split_called(word: str) -> SplitName | None:
    """Return the split that a word stands for, such as val for `Validation`."""
    return SPLIT_WORDS.get(word.strip().lower())


def split_in(stem: str) -> SplitName | None:
    """Return the split that one of the words in a file's name stands for.

    It is train for `imagenet1k-train-0000`. None if there is no such word, or if there are two.
    """
    found = {split for word in words(stem) if (split := split_called(word))}
    return found.pop() if len(found) == 1 else None


def words(stem: str) -> list[str]:
    """Return the words of a file's name: what stands between signs and digits."""
    return re.split(r"[^A-Za-z]+", stem)
