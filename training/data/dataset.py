"""A set of labelled photos as training sees it, however it is stored."""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

from taillift.models.errors import UserError
from taillift.training.data.check import usable
from taillift.training.data.readers.listing import Listing
from taillift.training.data.readers.registry import read_source
from taillift.training.data.split import SPLITS, SplitName
from taillift.training.data.split import Split as Split
from taillift.training.data.subsets import holdout_indices, tail_indices


@dataclass(frozen=True)
class Dataset:
    """`classes` in the order of the logits, most training photos first, then by name.

    `names` are what the classes are called in a prompt, in the same order.
    """

    name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None

    @property
    def counts(self) -> list[int]:
        """Training photos of each class."""
        counted = Counter(self.train.labels)
        return [counted[index] for index in range(len(self.classes))]

    @property
    def held_out(self) -> tuple[SplitName, Split] | None:
        """What a model is measured on: `test`, else `val`."""
        if self.test is not None:
            return "test", self.test
        return ("val", self.val) if self.val is not None else None

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of classes, names, counts, and every photo's name, size and label.

        The same wherever the set lies; no photo is opened for it.
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


def load_dataset(source: str, imbalance: float | None = None) -> Dataset:
    """Read labelled photos: a path in any layout of `training.data.source`, or a sample set's name.

    `imbalance` cuts the training photos to an exponential tail of that ratio between the largest
    and the smallest class, as `tail_indices` says; the other splits stay whole.

    A photo that cannot be decoded is left out with a warning that names it. Raises `UserError`
    where the source cannot be read as a set of photos, and what `usable` and `tail_indices` raise.
    """
    listing = usable(read_source(source))
    if imbalance is not None:
        listing = _cut(listing, imbalance)
    return _arranged(listing)


def hold_out(dataset: Dataset, share: float = 0.2, most: int = 10, seed: int = 0) -> Dataset:
    """Set training photos aside as `val`, by class; a set that has one stays as it is.

    Of each class a `share` is set aside, at most `most` photos; at least one of every class that
    has two, and never the only one. The classes keep their order, and so do the labels. Raises
    `UserError` where `share` or `most` make no sense, or no photo can be set aside.
    """
    if dataset.val is not None:
        return dataset
    stay, aside = holdout_indices(dataset.train.labels, share, most, seed)
    if not aside:
        raise UserError(
            f"{dataset.name} has one training photo of each class, and none can be set aside: add "
            "some, or a val split"
        )
    return replace(dataset, train=dataset.train.only(stay), val=dataset.train.only(aside))


def _cut(listing: Listing, ratio: float) -> Listing:
    train = listing.splits["train"]
    kept = train.only(tail_indices(train.labels, listing.classes, ratio))
    name = f"{listing.name}-ir{ratio:g}"
    return replace(listing, name=name, splits={**listing.splits, "train": kept})


def _arranged(listing: Listing) -> Dataset:
    """The classes by frequency, and the labels after them."""
    counts = listing.counts
    order = sorted(range(len(counts)), key=lambda one: (-counts[one], listing.classes[one]))
    places = [0] * len(order)
    for place, label in enumerate(order):
        places[label] = place
    splits = {name: split.relabelled(places) for name, split in listing.splits.items()}
    return Dataset(
        name=listing.name,
        classes=tuple(listing.classes[label] for label in order),
        names=tuple(listing.names[label] for label in order),
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
    )
