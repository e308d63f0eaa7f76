"""A set of labelled photos in the form that training uses, whatever its layout on disk."""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from taillift.models.bundle.manifest import Thresholds
from taillift.models.bundle.schema import MAX_PIXELS, Group
from taillift.training.data.check import drop_unreadable
from taillift.training.data.long_tail import tail_indices
from taillift.training.data.photo import SPLITS, SplitName
from taillift.training.data.photo import Split as Split
from taillift.training.data.readers.registry import read_source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Photos in splits, and their classes in the order of the logits.

    `classes` are sorted by their number of training photos, most first, then by name. `names` are
    the names of the classes in prompts, in the same order.
    """

    name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None

    @property
    def counts(self) -> list[int]:
        """The number of training photos of each class."""
        counted = Counter(self.train.labels)
        return [counted[index] for index in range(len(self.classes))]

    @property
    def groups(self) -> list[Group]:
        """The group of each class, for which several photos of the same content count as one."""
        contents = self.train.contents or range(len(self.train))
        distinct = set(zip(self.train.labels, contents, strict=True))
        counted = Counter(label for label, _ in distinct)
        return Thresholds().groups([counted[index] for index in range(len(self.classes))])

    @property
    def held_out(self) -> tuple[SplitName, Split] | None:
        """The split on which models are evaluated: `test` if there is one, else `val`."""
        if self.test is not None:
            return "test", self.test
        return ("val", self.val) if self.val is not None else None

    @cached_property
    def fingerprint(self) -> str:
        """The sha256, in hex, of classes, names, counts, and every photo's name, size and label.

        It does not depend on the folder that the set is in, and no photo is opened for it.
        """
        digest = hashlib.sha256(repr((self.classes, self.names, self.counts)).encode())
        for name in SPLITS:
            split: Split | None = getattr(self, name)
            digest.update(f"\n{name}\n".encode())
            if split is not None:
                lines = [
                    f"{photo.name!r} {photo.size} {label}\n"
                    for photo, label in zip(split.photos, split.labels, strict=True)
                ]
                digest.update("".join(lines).encode())
        return digest.hexdigest()


def load_dataset(
    source: str, imbalance: float | None = None, max_pixels: int = MAX_PIXELS
) -> Dataset:
    """Read labelled photos from a path in any layout of `readers.registry`, or a sample set.

    `imbalance` cuts the training photos to an exponential tail with this ratio between the largest
    and the smallest class, as `tail_indices` describes. The other splits stay whole.

    A photo that cannot be decoded, or has more than `max_pixels`, is left out with a warning that
    names it. Raises `UserError` if the source cannot be read as a set of photos, and for the
    reasons of `drop_unreadable` and `tail_indices`.
    """
    listing = read_source(source)
    for unused in listing.unused:
        logger.warning("%s", unused)
    name, names = listing.name, listing.names
    listing = drop_unreadable(listing, max_pixels)
    splits = dict(listing.splits)
    if imbalance is not None:
        train = splits["train"]
        splits["train"] = train.only(tail_indices(train.labels, listing.classes, imbalance))
        name = f"{name}-ir{imbalance:g}"
    counts = Counter(splits["train"].labels)
    order = sorted(
        range(len(listing.classes)), key=lambda label: (-counts[label], listing.classes[label])
    )
    new_labels = [0] * len(order)
    for index, label in enumerate(order):
        new_labels[label] = index
    splits = {split: splits[split].relabelled(new_labels) for split in splits}
    return Dataset(
        name=name,
        classes=tuple(listing.classes[label] for label in order),
        names=tuple(names[label] for label in order),
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
    )
