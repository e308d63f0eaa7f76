"""A set of labelled photos in the form that training uses, whatever its layout on disk."""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np

from taillift.models.bundle.manifest import Thresholds
from taillift.models.bundle.schema import MAX_PIXELS, Group
from taillift.models.errors import UserError
from taillift.models.names import indices_by_name
from taillift.training.data.addition import joined, read_sources
from taillift.training.data.check import MOST_NAMED, drop_unreadable
from taillift.training.data.photo import SPLITS, SplitName
from taillift.training.data.photo import Split as Split

# Counts are rounded down to whole photos, so the resulting ratio may differ a little.
RATIO_TOLERANCE: Final = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Photos in splits, and their classes in the order of the logits.

    `classes` are sorted by their number of training photos, most first, then by name. `names` are
    the names of the classes in prompts, in the same order. `unlabelled` photos have a label below
    0, or the truth if it is known: `training.data.pool` adds them. `added` names further sources
    whose photos are in `train`, too.
    """

    name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    unlabelled: Split | None = None
    added: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of the folder for what is made from these photos: photos+more with `more`."""
        if len(self.added) > MOST_NAMED:
            return f"{self.name}+{len(self.added)}"
        return "+".join((self.name, *self.added))

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

    def without(self, classes: Collection[str]) -> "Dataset":
        """Return the same photos but those of some classes; raises `UserError` if none stays."""
        kept = [label for label, name in enumerate(self.classes) if name not in classes]
        if not kept:
            raise UserError(f"{self.name} has only photos of classes that are left out: add others")
        new = [kept.index(label) if label in kept else -1 for label in range(len(self.classes))]

        def only(split: Split) -> Split:
            stay = split.relabelled(new)
            return stay.only(index for index, label in enumerate(stay.labels) if label >= 0)

        return replace(
            self,
            classes=tuple(self.classes[label] for label in kept),
            names=tuple(self.names[label] for label in kept),
            train=only(self.train),
            val=self.val and only(self.val),
            test=self.test and only(self.test),
        )

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
                digest.update(split.listed())
        return digest.hexdigest()

    @cached_property
    def pool_fingerprint(self) -> str:
        """The sha256, in hex, of the unlabelled photos; "" without any.

        It is not a part of `fingerprint`: a run that uses no unlabelled photo does not depend on
        them.
        """
        if self.unlabelled is None:
            return ""
        return hashlib.sha256(self.unlabelled.listed()).hexdigest()

    def fingerprint_for(self, unlabelled: bool) -> str:
        """Return the fingerprint of what a run depends on, which may use the unlabelled photos."""
        return self.fingerprint + (self.pool_fingerprint if unlabelled else "")


def load_dataset(
    source: str,
    imbalance: float | None = None,
    max_pixels: int = MAX_PIXELS,
    add: Sequence[str] = (),
    least: int = 2,
) -> Dataset:
    """Read labelled photos from a path in any layout of `readers.registry`, or a sample set.

    `imbalance` cuts the training photos to an exponential tail with this ratio between the largest
    and the smallest class, as `tail_indices` describes. The other splits stay whole.

    All training photos of the sources in `add` are trained on, too. Their classes may be new. There
    have to be `least` classes in all.

    A photo that cannot be decoded, or has more than `max_pixels`, is left out with a warning that
    names it. Raises `UserError` if the source cannot be read as a set of photos, and for the
    reasons of `drop_unreadable`, `tail_indices` and `training.data.addition`.
    """
    listing = read_sources(source, add, least)
    for unused in listing.unused:
        logger.warning("%s", unused)
    name, names = listing.name, listing.names
    listing = drop_unreadable(listing, max_pixels)
    if imbalance is not None:
        train = listing.splits["train"]
        cut = train.only(tail_indices(train.labels, listing.classes, imbalance))
        listing = replace(listing, splits={**listing.splits, "train": cut})
        name = f"{name}-ir{imbalance:g}"
    listing = joined(listing)
    splits = dict(listing.splits)
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
        added=tuple(addition.name for addition in listing.added),
    )


def in_order_of(dataset: Dataset, labels: Sequence[str], where: str) -> Dataset:
    """Return the same photos with the classes `labels`, in their order; `where` has these classes.

    The set may lack some of them. Raises `UserError` if it has another.
    """
    indices = indices_by_name(labels)
    if unknown := [label for label in dataset.classes if label not in indices]:
        others = f" (nor {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"{where} has no class {unknown[0]!r}{others}, and {dataset.name} has: rename or "
            "remove it, or train with it"
        )
    order = [indices[label] for label in dataset.classes]

    def relabelled(split: Split | None) -> Split | None:
        return split and split.relabelled(order)

    return replace(
        dataset,
        classes=tuple(labels),
        names=tuple(labels),
        train=dataset.train.relabelled(order),
        val=relabelled(dataset.val),
        test=relabelled(dataset.test),
    )


def tail_counts(largest: int, classes: int, ratio: float) -> list[int]:
    """Return how many photos each class keeps: largest / ratio^(i / (C - 1)), rounded down.

    This is the exponential profile of CIFAR-100-LT (Cui et al. 2019, Cao et al. 2019). Every class
    keeps at least one photo.
    """
    return [
        max(1, int(largest / ratio ** (index / max(1, classes - 1)))) for index in range(classes)
    ]


def tail_indices(labels: Sequence[int], classes: Sequence[str], ratio: float) -> list[int]:
    """Return the sorted indices of the photos that stay after a cut to an imbalance ratio.

    From the largest class to the smallest, each loses more photos than the one before; classes of
    equal size are in the order of their names. A class with fewer photos than its share keeps them
    all. A warning says if the ratio of the largest to the smallest class becomes another because of
    this.

    The choice is always the same for the same set. As for CIFAR-100-LT (Cao et al. 2019), numpy's
    old generator, seeded with 0, shuffles one class after the other, and the first photos stay.

    Raises `UserError` if `ratio` is below 1.
    """
    if not ratio >= 1:
        raise UserError(f"an imbalance ratio of {ratio:g} is below 1: give largest over smallest")
    counts = np.bincount(labels, minlength=len(classes))
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    order = sorted(
        np.flatnonzero(counts).tolist(), key=lambda label: (-counts[label], classes[label])
    )
    quotas = tail_counts(int(counts.max()), len(order), ratio)
    random = np.random.RandomState(0)
    kept: list[list[int]] = []
    for label, quota in zip(order, quotas, strict=True):
        indices = by_class[label]
        random.shuffle(indices)
        kept.append(indices[:quota].tolist())
    largest, smallest = len(kept[0]), len(kept[-1])
    if not math.isclose(largest / smallest, ratio, rel_tol=RATIO_TOLERANCE):
        logger.warning(
            "the photos give an imbalance ratio of %.3g instead of %g: the largest class has %d, "
            "the smallest %d",
            largest / smallest,
            ratio,
            largest,
            smallest,
        )
    return sorted(index for indices in kept for index in indices)


def hold_out(dataset: Dataset, share: float = 0.2, most: int = 10, seed: int = 0) -> Dataset:
    """Return the set with some training photos as `val`; a set that has `val` stays as it is.

    `holdout_indices` says which. The classes keep their order, and so do the labels. Raises
    `UserError` if no class has two photos, and for the reasons of `holdout_indices`.
    """
    if dataset.val is not None:
        return dataset
    train = dataset.train
    contents = list(zip(train.labels, train.contents or range(len(train)), strict=True))
    # The first photo of each content.
    first = {content: index for index, content in reversed(list(enumerate(contents)))}
    distinct = sorted(first.values())
    _, chosen = holdout_indices([train.labels[index] for index in distinct], share, most, seed)
    aside = [distinct[number] for number in chosen]
    if not aside:
        raise UserError(
            f"{dataset.name} has one training photo of each class, and none can be set aside: add "
            "some, or a val split"
        )
    # A copy of a photo that is set aside must not be trained on.
    gone = {contents[index] for index in aside}
    stay = [index for index in range(len(train)) if contents[index] not in gone]
    return replace(dataset, train=train.only(stay), val=train.only(aside))


def holdout_indices(
    labels: Sequence[int], share: float, most: int, seed: int
) -> tuple[list[int], list[int]]:
    """Return the indices of the photos that stay and of those set aside, both sorted.

    A `share` of each class is set aside, but at most `most` photos. If a class has at least two
    photos, at least one is set aside and at least one stays; an only photo stays. Raises
    `UserError` if `share` is not between 0 and 1 or `most` is below 1.
    """
    if not 0 < share < 1 or most < 1:
        raise UserError(
            f"a share of {share:g} and at most {most} photos cannot be set aside: give a share "
            "between 0 and 1, and 1 photo or more"
        )
    counts = np.bincount(labels)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    aside: set[int] = set()
    for label, indices in enumerate(by_class):
        photos = len(indices)
        count = min(most, photos - 1, max(1, round(share * photos))) if photos > 1 else 0
        aside.update(np.random.default_rng((seed, label)).permutation(indices)[:count].tolist())
    stay = [index for index in range(len(labels)) if index not in aside]
    return stay, sorted(aside)
