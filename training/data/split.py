"""Labelled photos with one purpose: training, validation or testing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from taillift.training.data.photo import Photo

SplitName = Literal["train", "val", "test"]
SPLITS: Final[tuple[SplitName, ...]] = get_args(SplitName)


@dataclass(frozen=True)
class Split:
    """Photos, and for each the index of its class in the classes of the set."""

    photos: tuple[Photo, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.photos)

    def only(self, indices: Iterable[int]) -> "Split":
        """Return the photos at `indices`, in that order."""
        kept = list(indices)
        return Split(
            tuple(self.photos[index] for index in kept), tuple(self.labels[index] for index in kept)
        )

    def relabelled(self, labels: Sequence[int]) -> "Split":
        """Return the same photos with `labels[old]` in place of every label `old`."""
        return Split(self.photos, tuple(labels[label] for label in self.labels))
