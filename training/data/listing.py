"""What a reader found in a source, before any photo is opened."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.data.split import Split, SplitName


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
