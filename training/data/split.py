"""Labelled photos that are used together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from taillift.training.data.photo import Photo

SplitName = Literal["train", "val", "test"]
SPLITS: Final[tuple[SplitName, ...]] = get_args(SplitName)


@dataclass(frozen=True)
class Split:
    """Photos and the index of each one's class in the classes of their set."""

    photos: tuple[Photo, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.photos)

    def only(self, indices: Iterable[int]) -> "Split":
        """The photos at `indices`, in that order."""
        kept = list(indices)
        return Split(
            tuple(self.photos[index] for index in kept), tuple(self.labels[index] for index in kept)
        )

    def relabelled(self, labels: Sequence[int]) -> "Split":
        """The same photos, with `labels[old]` for every label."""
        return Split(self.photos, tuple(labels[label] for label in self.labels))
