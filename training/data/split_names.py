"""The words for a split in the names of folders, lists and shards, and in tables."""

import re
from collections.abc import Mapping
from typing import Final

from taillift.training.data.photo import SplitName

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
