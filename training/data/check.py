"""Finds unusable, contradictory and duplicate photos before training starts."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import chunks
from taillift.models.bundle.images import decode
from taillift.models.bundle.schema import MAX_ASPECT, MAX_PIXELS
from taillift.models.errors import UserError
from taillift.training.console import track
from taillift.training.data.cache import cache_file, write_cache_file
from taillift.training.data.photo import Photo, RawPhoto, SplitName, StoredPhoto
from taillift.training.data.readers.listing import Listing

CHUNK: Final = 4096
# Checking fewer photos takes only a moment, so nothing about them is kept in the cache.
LEAST_CACHED: Final = 1000
MOST_NAMED: Final = 10

logger = logging.getLogger(__name__)


def drop_unreadable(listing: Listing) -> Listing:
    """Return the listing without the photos that cannot be decoded; warnings name these.

    Every photo is decoded once, at a small size, on all cores. For a large set the cache keeps
    which photos were good, with their size and time of change. These are not decoded again in the
    next run, even if the check was interrupted. If a photo is damaged later, reading it raises
    `UserError` with its name.

    Raises `UserError` if a split has no usable photo, if a class has none to train on, or if a
    photo is labelled with two classes.
    """
    _check_labels(listing)
    photos = [photo for split in listing.splits.values() for photo in split.photos]
    digests = content_digests(photos, cache_file("seen", listing.source, ".npy"))
    splits = {
        name: split.only(index for index, photo in enumerate(split.photos) if photo in digests)
        for name, split in listing.splits.items()
    }
    kept = replace(listing, splits=splits)
    for name, split in splits.items():
        if not len(split):
            raise UserError(
                f"{listing.source}: the split {name} has no readable photo: add some, or remove it"
            )
    empty = [label for label, count in zip(kept.classes, kept.counts, strict=True) if not count]
    if empty:
        more = f" (nor have {len(empty) - 1:,} others)" if len(empty) > 1 else ""
        raise UserError(
            f"{listing.source}: the class {empty[0]!r} has no readable training photo{more}: add "
            "some, or remove the class"
        )
    _warn_of_duplicates(kept, digests)
    return kept


def content_digests(photos: Sequence[Photo], cached: Path) -> dict[Photo, int]:
    """Return 64 bits of the content of every photo that can be decoded, and warn of the others.

    The file `cached` keeps them for the next run.
    """
    try:
        remembered = dict(np.load(cached, allow_pickle=False).reshape(-1, 2).tolist())
    except (OSError, ValueError, EOFError):
        remembered = {}
    # Raw pixels need no check: damage would have shown when their whole file was read.
    stored = [photo for photo in photos if isinstance(photo, StoredPhoto)]
    states = {photo: _state_of(photo) for photo in stored}
    new = [photo for photo, state in states.items() if state not in remembered]
    problems: dict[Photo, str] = {}
    good: dict[int, int] = {}
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            pending = (
                out for chunk in chunks(new, CHUNK) for out in pool.map(inspect_photo, chunk)
            )
            results = track(pending, "Checking photos", len(new))
            for photo, result in zip(new, results, strict=True):
                if isinstance(result, str):
                    problems[photo] = result
                else:
                    good[states[photo]] = result
    finally:
        if good and len(photos) >= LEAST_CACHED:
            rows = np.array(sorted((remembered | good).items()), np.uint64)
            write_cache_file(cached, lambda file: np.save(file, rows))
    for unusable, problem in list(problems.items())[:MOST_NAMED]:
        logger.warning("%s is left out: %s", unusable, problem)
    if len(problems) > MOST_NAMED:
        logger.warning("%d more photos are left out for such reasons", len(problems) - MOST_NAMED)
    raw = {photo: hash64(photo.pixels.tobytes()) for photo in photos if isinstance(photo, RawPhoto)}
    digests = remembered | good
    return raw | {photo: digests[state] for photo, state in states.items() if photo not in problems}


def inspect_photo(photo: StoredPhoto) -> int | str:
    """Return 64 bits of the photo's content or, if it cannot be used, the reason."""
    try:
        data = photo.read()
        decode(data, target=1)
    except UserError as error:
        return str(error)
    return hash64(data)


def hash64(data: bytes) -> int:
    """Return 64 bits of the BLAKE2b hash of `data`."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _state_of(photo: StoredPhoto) -> int:
    """Return 64 bits that change with the photo's file and with the limits of the check."""
    state = (photo.path, photo.start, photo.size, photo.changed, MAX_PIXELS, MAX_ASPECT)
    return hash64(os.fsencode("\0".join(map(str, state))))


def _check_labels(listing: Listing) -> None:
    """Raise `UserError` if a file is listed with two classes."""
    labels: dict[str, int] = {}
    for split in listing.splits.values():
        for photo, label in zip(split.photos, split.labels, strict=True):
            first = labels.setdefault(photo.name, label)
            if first != label:
                raise UserError(
                    f"{photo} is listed as {listing.classes[first]!r} and as "
                    f"{listing.classes[label]!r}: keep one of them"
                )


def _warn_of_duplicates(listing: Listing, digests: Mapping[Photo, int]) -> None:
    """Warn of photos with equal content in two splits, or with two classes."""
    first: dict[int, tuple[SplitName, int, Photo]] = {}
    leaked: list[tuple[Photo, Photo]] = []
    contradictory: list[tuple[Photo, Photo]] = []
    for name, split in listing.splits.items():
        for photo, label in zip(split.photos, split.labels, strict=True):
            seen = first.setdefault(digests[photo], (name, label, photo))
            first_split, first_label, duplicate = seen
            if first_split != name:
                leaked.append((photo, duplicate))
            if first_label != label:
                contradictory.append((photo, duplicate))
    if leaked:
        logger.warning(
            "%s: %d photos are in two splits, such as %s (%s): accuracies measured on them are too "
            "high",
            listing.source,
            len(leaked),
            *leaked[0],
        )
    if contradictory:
        logger.warning(
            "%s: %d photos are of two classes, such as %s (%s): remove one of the two",
            listing.source,
            len(contradictory),
            *contradictory[0],
        )
