"""Labelled photos with one purpose: training, validation or testing."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from taillift.training.data.photo import Photo

SplitName = Literal["train", "val", "test"]
SPLITS: Final[tuple[SplitName, ...]] = get_args(SplitName)
# The words for a split in the names of folders, lists and shards, and in tables, in any case.
WORDS: Final[Mapping[str, SplitName]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def split_called(word: str) -> SplitName | None:
    """Return the split that a word stands for, such as val for `Validation`."""
    return WORDS.get(word.strip().lower())


def split_in(stem: str) -> SplitName | None:
    """Return the split that one of the words in a file's name stands for.

    It is train for `imagenet1k-train-0000`. None if there is no such word, or if there are two.
    """
    found = {split for word in words(stem) if (split := split_called(word))}
    return found.pop() if len(found) == 1 else None


def words(stem: str) -> list[str]:
    """Return the words of a file's name: what stands between signs and digits."""
    return re.split(r"[^A-Za-z]+", stem)


@dataclass(frozen=True)
class Split:
    """Photos, and for each the index of its class in the classes of the set.

    `contents` has 64 bits of the content of each photo, as far as they have been read.
    """

    photos: tuple[Photo, ...]
    labels: tuple[int, ...]
    contents: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.photos)

    def only(self, indices: Iterable[int]) -> "Split":
        """Return the photos at `indices`, in that order."""
        kept = list(indices)
        return Split(
            tuple(self.photos[index] for index in kept),
            tuple(self.labels[index] for index in kept),
            tuple(self.contents[index] for index in kept) if self.contents else (),
        )

    def relabelled(self, labels: Sequence[int]) -> "Split":
        """Return the same photos with `labels[old]` in place of every label `old`."""
        return replace(self, labels=tuple(labels[label] for label in self.labels))
