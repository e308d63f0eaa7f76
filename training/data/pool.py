"""Unlabelled photos: where they are found, and which of them may be used next to labelled ones."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.photo_sources import entries_of, is_photo_name, is_system_name
from taillift.models.bundle.schema import MAX_PIXELS
from taillift.models.errors import UserError
from taillift.training.data.cache import cache_file
from taillift.training.data.check import content_digests
from taillift.training.data.dataset import Dataset
from taillift.training.data.photo import Photo, Split, StoredPhoto
from taillift.training.data.readers.csv_table import is_table, read_table
from taillift.training.data.readers.listing import DOCUMENTS, UNLABELLED
from taillift.training.data.readers.registry import is_train_folder
from taillift.training.data.readers.shards import BRACES, expand, shard_photos

# In place of a label: a photo whose class is not known, and one that is of none of the classes.
UNKNOWN: Final = -1
FOREIGN: Final = -2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnlabelledPool:
    """Photos without labels, and how many were left out because of their content.

    `photos` has a label for each photo: `UNKNOWN`, unless the source gives the truth. The truth is
    only counted, and never trained on. `held_out` photos are in val or test, `labelled` ones in
    train, and `repeated` ones are copies of another unlabelled photo.
    """

    source: str
    photos: Split
    held_out: int = 0
    labelled: int = 0
    repeated: int = 0

    def dropped(self) -> Iterator[str]:
        """Yield a line for each reason for which photos were left out."""
        for count, words in (
            (self.held_out, "are also in val or test"),
            (self.labelled, "are also in train, with a label"),
            (self.repeated, "are copies of another unlabelled photo"),
        ):
            if count:
                yield f"{self.source}: {count:,} unlabelled photos {words} and are left out"


def with_unlabelled(dataset: Dataset, source: str, max_pixels: int = MAX_PIXELS) -> Dataset:
    """Return the set with the unlabelled photos of `source`, a path that `read_pool` describes.

    Photos that cannot be decoded are left out with a warning that names them, and so are those
    with the content of a labelled photo, with a warning that counts them. Raises `UserError` if
    nothing is left.
    """
    photos, truth = read_pool(source)
    digests = content_digests(photos, cache_file("seen", Path(source), ".npy"), max_pixels)
    labels = [_label(name, dataset.classes) for name in truth]
    readable = [index for index, photo in enumerate(photos) if photo in digests]
    split = Split(
        tuple(photos[index] for index in readable),
        tuple(labels[index] for index in readable),
        tuple(digests[photos[index]] for index in readable),
        max_pixels,
    )
    others = [other for other in (dataset.val, dataset.test) if other is not None]
    pool = without_known(UnlabelledPool(source, split), dataset.train, others)
    for line in pool.dropped():
        logger.warning("%s", line)
    if not len(pool.photos):
        raise UserError(
            f"{source} has no unlabelled photo to use, of {len(photos):,} that were found: add "
            "photos that are not in train, val or test"
        )
    return replace(dataset, unlabelled=pool.photos)


def without_known(pool: UnlabelledPool, train: Split, others: Sequence[Split]) -> UnlabelledPool:
    """Return the pool without photos that have the content of a labelled or of an earlier one.

    `others` are the held-out splits. If a photo is in train as well, it counts as held out.
    """
    labelled = set(train.contents)
    held_out = {content for split in others for content in split.contents}
    counts: Counter[str] = Counter()
    first: set[int] = set()
    kept: list[int] = []
    for index, content in enumerate(pool.photos.contents):
        if content in held_out:
            counts["held_out"] += 1
        elif content in labelled:
            counts["labelled"] += 1
        elif content in first:
            counts["repeated"] += 1
        else:
            first.add(content)
            kept.append(index)
    return UnlabelledPool(pool.source, pool.photos.only(kept), **counts)


def with_right_labels(dataset: Dataset, photos: int | None, seed: int) -> Dataset:
    """Return the set with the truth of `photos` unlabelled photos, drawn by the seed, as labels.

    The others are left out. None means all photos of known class. Raises `UserError` if there are
    too few of these.
    """
    pool = dataset.unlabelled
    known = [] if pool is None else [index for index, label in enumerate(pool.labels) if label >= 0]
    if pool is None or len(known) < (photos or 1):
        raise UserError(
            f"right labels of {photos or 1:,} unlabelled photos are needed and {len(known):,} are "
            "known: pass a CSV file with the columns path and label as --unlabelled"
        )
    drawn = np.random.default_rng((seed, 8)).permutation(known)[:photos].tolist()
    train = dataset.train.with_more(pool.only(sorted(drawn)))
    return replace(dataset, train=train, unlabelled=None)


def own_pool(source: str) -> str | None:
    """Return the folder `unlabelled` of a set of photos, if it has one."""
    path = Path(source)
    folder = path if path.is_dir() and not is_train_folder(path) else path.parent
    own = folder / UNLABELLED
    return str(own) if own.is_dir() else None


def read_pool(source: str) -> tuple[list[Photo], list[str]]:
    """List the photos of `source`, and the class that each is known to be of, or "".

    The source is a folder, in which photos and shards count at any depth and names mean nothing;
    a shard, or a pattern of shards such as `pool-{00..07}.tar`; or a table as `read_table` reads
    it, whose labels are the truth. Raises `UserError` if it has no photo or cannot be read.
    """
    path = Path(source)
    if is_table(path):
        listing = read_table(path)
        splits = listing.splits.values()
        return (
            [photo for split in splits for photo in split.photos],
            [listing.classes[label] for split in splits for label in split.labels],
        )
    photos: list[Photo] = []
    if path.is_dir():
        photos += photos_at_any_depth(path)
    elif path.suffix == ".tar":
        shards = expand(path.name) if BRACES.search(path.name) else [path.name]
        for name in shards:
            if not (path.parent / name).is_file():
                raise UserError(f"{path.parent / name} does not exist: check --unlabelled {source}")
            photos += shard_photos(path.parent, name)
    else:
        raise UserError(
            f"{source} is not a source of unlabelled photos: give a folder, tar shards, or a CSV "
            "file with the columns path and label"
        )
    if not photos:
        raise UserError(f"{source} holds no JPEG, PNG or WebP photo: check --unlabelled")
    return photos, [""] * len(photos)


def photos_at_any_depth(root: Path) -> Iterator[StoredPhoto]:
    """Yield the photos below a folder and in the shards below it, sorted by path.

    A warning counts other files. Raises `UserError` if a folder or a shard cannot be read.
    """
    others: list[Path] = []

    def place(path: Path) -> list[tuple[bool, str]]:
        # The files of a folder come before the folders in it.
        *above, name = path.parts
        return [*((True, folder) for folder in above), (False, name)]

    files = (path for path in entries_of(root, recursive=True) if not path.is_dir())
    for inner in sorted((path.relative_to(root) for path in files), key=place):
        path = root / inner
        if any(map(is_system_name, inner.parts)):
            continue
        if is_photo_name(path.name) and path.is_file():
            status = path.stat()
            yield StoredPhoto(root, inner.as_posix(), status.st_size, status.st_mtime_ns)
        elif path.suffix == ".tar" and path.is_file():
            yield from shard_photos(root, inner.as_posix())
        elif not path.name.lower().startswith(DOCUMENTS):
            others.append(path)
    if others:
        logger.warning(
            "%s: %d files are neither JPEG, PNG or WebP nor tar, and are left out, such as %s",
            root,
            len(others),
            others[0],
        )


def _label(name: str, classes: Sequence[str]) -> int:
    """Return the label that stands for the class `name`, which may be unknown or foreign."""
    if not name:
        return UNKNOWN
    return classes.index(name) if name in classes else FOREIGN
