"""Finds unusable, contradictory and duplicate photos before training starts."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import chunks
from taillift.models.bundle.image_guard import pixel_content
from taillift.models.bundle.images import decode
from taillift.models.bundle.schema import MAX_ASPECT, MAX_PIXELS
from taillift.models.errors import UserError
from taillift.training.console import track
from taillift.training.data.cache import cache_file, write_cache_file
from taillift.training.data.photo import Photo, RawPhoto, Split, SplitName, StoredPhoto
from taillift.training.data.readers.listing import Listing

CHUNK: Final = 4096
# Checking fewer photos takes only a moment, so nothing about them is kept in the cache.
LEAST_CACHED: Final = 1000
MOST_NAMED: Final = 10

logger = logging.getLogger(__name__)


def drop_unreadable(listing: Listing, max_pixels: int = MAX_PIXELS) -> Listing:
    """Return the listing without the photos that cannot be decoded; warnings name these.

    Nor can those with more than `max_pixels`, in this check and later.

    Every photo is decoded once, at a small size, on all cores. For a large set the cache keeps
    which photos were good, with their size and time of change. These are not decoded again in the
    next run, even if the check was interrupted. If a photo is damaged later, reading it raises
    `UserError` with its name.

    Raises `UserError` if a split has no usable photo, if a class has none to train on, or if a
    photo is labelled with two classes.
    """
    for reason in conflicts(listing):
        raise UserError(reason)
    photos = [photo for split in listing.parts for photo in split.photos]
    digests = content_digests(photos, cache_file("seen", listing.source, ".npy"), max_pixels)
    kept = only_readable(listing, digests, max_pixels)
    for reason in gaps(kept):
        raise UserError(reason)
    for line in find_duplicates(kept).warnings(listing.source):
        logger.warning("%s", line)
    return kept


def only_readable(listing: Listing, digests: Mapping[Photo, int], max_pixels: int) -> Listing:
    """Return the listing with only the photos that have a digest of their content, and with it.

    Their limit is set to `max_pixels`.
    """

    def readable(split: Split) -> Split:
        kept = split.only(index for index, photo in enumerate(split.photos) if photo in digests)
        contents = tuple(digests[photo] for photo in kept.photos)
        return replace(kept, contents=contents, max_pixels=max_pixels)

    return replace(
        listing,
        splits={name: readable(split) for name, split in listing.splits.items()},
        added=tuple(replace(one, photos=readable(one.photos)) for one in listing.added),
    )


def conflicts(listing: Listing) -> Iterator[str]:
    """Yield a reason for a refusal for each photo that is listed with two classes."""
    labels: dict[tuple[Path | None, str], int] = {}
    for split in listing.parts:
        for photo, label in zip(split.photos, split.labels, strict=True):
            root = photo.root if isinstance(photo, StoredPhoto) else None
            first = labels.setdefault((root, photo.name), label)
            if first != label:
                yield (
                    f"{photo} is listed as {listing.classes[first]!r} and as "
                    f"{listing.classes[label]!r}: keep one of them"
                )


def gaps(listing: Listing) -> Iterator[str]:
    """Yield a reason for a refusal for each empty split, and one for classes without a photo."""
    for name, split in listing.splits.items():
        if not len(split):
            yield (
                f"{listing.source}: the split {name} has no readable photo: add some, or remove it"
            )
    train = (listing.splits["train"], *(addition.photos for addition in listing.added))
    trained = {label for split in train for label in split.labels}
    empty = [name for label, name in enumerate(listing.classes) if label not in trained]
    if empty:
        more = f" (nor have {len(empty) - 1:,} others)" if len(empty) > 1 else ""
        sources = " and ".join((str(listing.source), *(one.source for one in listing.added)))
        yield (
            f"{sources}: the class {empty[0]!r} has no readable training photo{more}: add some, or "
            "remove the class"
        )


@dataclass(frozen=True)
class Duplicates:
    """Photos with the content of an earlier one, each with that one.

    `leaked` are in two splits, `contradictory` are of two classes, and `repeated` are there again
    in their class and split.
    """

    leaked: list[tuple[Photo, Photo]]
    contradictory: list[tuple[Photo, Photo]]
    repeated: list[tuple[Photo, Photo]]

    def warnings(self, source: Path) -> Iterator[str]:
        """Yield a line for each kind that there is, with its consequence and one example."""
        lines = (
            (self.leaked, "are in two splits", "accuracies measured on them are too high"),
            (self.contradictory, "are of two classes", "remove one of the two"),
            (
                self.repeated,
                "are there again in their class and split",
                "the groups many, medium and few count them once; remove the copies",
            ),
        )
        for pairs, words, consequence in lines:
            if pairs:
                photo, earlier = pairs[0]
                yield (
                    f"{source}: {len(pairs)} photos {words}, such as {photo} ({earlier}): "
                    f"{consequence}"
                )


def find_duplicates(listing: Listing) -> Duplicates:
    """Compare the content of all photos of a listing, whose splits have it."""
    first: dict[int, tuple[SplitName, int, Photo]] = {}
    own: dict[tuple[SplitName, int, int], Photo] = {}
    found = Duplicates([], [], [])
    for name, split in listing.splits.items():
        for photo, label, content in zip(split.photos, split.labels, split.contents, strict=True):
            first_split, first_label, earlier = first.setdefault(content, (name, label, photo))
            if first_split != name:
                found.leaked.append((photo, earlier))
            if first_label != label:
                found.contradictory.append((photo, earlier))
            twin = own.setdefault((name, label, content), photo)
            if twin is not photo:
                found.repeated.append((photo, twin))
    return found


def content_digests(
    photos: Sequence[Photo], cached: Path | None, max_pixels: int = MAX_PIXELS
) -> dict[Photo, int]:
    """Return 64 bits of the content of every photo that can be decoded, and warn of the others.

    The file `cached`, if any, keeps them for the next run.
    """
    remembered: dict[int, int] = {}
    if cached is not None:
        with suppress(OSError, ValueError, EOFError):
            remembered = dict(np.load(cached, allow_pickle=False).reshape(-1, 2).tolist())
    # Raw pixels need no check: damage would have shown when their whole file was read.
    stored = [photo for photo in photos if isinstance(photo, StoredPhoto)]
    looked_up = track(stored, "Looking up which photos were checked before", len(stored))
    states = {photo: _state_of(photo, max_pixels) for photo in looked_up}
    new = [photo for photo, state in states.items() if state not in remembered]
    problems: dict[Photo, str] = {}
    good: dict[int, int] = {}
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            pending = (
                out
                for chunk in chunks(new, CHUNK)
                for out in pool.map(inspect_photo, chunk, repeat(max_pixels))
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


def inspect_photo(photo: StoredPhoto, max_pixels: int) -> int | str:
    """Return 64 bits of the photo's pixels or, if it cannot be used, the reason."""
    try:
        data = photo.read()
        decode(data, 1, max_pixels)
    except UserError as error:
        return str(error)
    return content_hash(data)


def content_hash(data: bytes) -> int:
    """Return 64 bits of the pixels in an image file that can be decoded, as they are stored.

    Copies that differ in metadata alone have the same: services remove the place, for example.
    """
    return hash64(pixel_content(data))


def hash64(data: bytes) -> int:
    """Return 64 bits of the BLAKE2b hash of `data`."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _state_of(photo: StoredPhoto, max_pixels: int) -> int:
    """Return 64 bits that change with the photo's file and with the limits of the check.

    They are of what is remembered, too: that was the hash of whole files at first.
    """
    state = ("pixels", photo.path, photo.start, photo.size, photo.changed, max_pixels, MAX_ASPECT)
    return hash64(os.fsencode("\0".join(map(str, state))))
