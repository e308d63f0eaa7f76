"""Photos that can be used, found before training and not in the middle of it."""

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
from taillift.training.data.cache import cache_file, keep
from taillift.training.data.photo import Photo, RawPhoto, StoredPhoto
from taillift.training.data.readers.listing import Listing
from taillift.training.data.split import Split, SplitName

CHUNK: Final = 4096
# Fewer are decoded in a moment, and leave nothing in the cache.
WORTHWHILE: Final = 1000
NAMED: Final = 10

logger = logging.getLogger(__name__)


def usable(listing: Listing) -> Listing:
    """The listing without the photos that cannot be decoded, which are named in warnings.

    Every photo is decoded once, small, on all cores. Of a large set those that could be are
    remembered in the cache with size and time of change, and not decoded again the next time, even
    where the check was interrupted. A photo that is damaged later raises `UserError` with its name
    when it is read.

    Raises `UserError` where a split has no photo that can be used, a class has none to train on, or
    a photo is labelled with two classes.
    """
    _check_labels(listing)
    photos = [photo for split in listing.splits.values() for photo in split.photos]
    digests = readable(photos, cache_file("seen", listing.source, ".npy"))
    splits = {name: _without(split, digests) for name, split in listing.splits.items()}
    kept = replace(listing, splits=splits)
    _check_filled(kept)
    _warn_of_copies(kept, digests)
    return kept


def readable(photos: Sequence[Photo], memory: Path) -> dict[Photo, int]:
    """64 bits of the content of every photo that can be decoded; the others are warned of.

    `memory` keeps them for the next time.
    """
    known = _recall(memory)
    # Raw pixels cannot be damaged without the whole file being so.
    stored = [photo for photo in photos if isinstance(photo, StoredPhoto)]
    marks = {photo: _mark(photo) for photo in stored}
    fresh = [photo for photo, mark in marks.items() if mark not in known]
    problems: dict[Photo, str] = {}
    good: dict[int, int] = {}
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = (result for chunk in chunks(fresh, CHUNK) for result in pool.map(_look, chunk))
            results = track(found, "Checking photos", len(fresh))
            for photo, result in zip(fresh, results, strict=True):
                if isinstance(result, str):
                    problems[photo] = result
                else:
                    good[marks[photo]] = result
    finally:
        if good and len(photos) >= WORTHWHILE:
            _remember(memory, known | good)
    _warn(problems)
    raw = {photo: _bits(photo.pixels.tobytes()) for photo in photos if isinstance(photo, RawPhoto)}
    digests = known | good
    return raw | {photo: digests[mark] for photo, mark in marks.items() if photo not in problems}


def _look(photo: StoredPhoto) -> int | str:
    """64 bits of its content, or why it cannot be used."""
    try:
        data = photo.read()
        decode(data, target=1)
    except UserError as error:
        return str(error)
    return _bits(data)


def _warn(problems: dict[Photo, str]) -> None:
    for photo, problem in list(problems.items())[:NAMED]:
        logger.warning("%s is left out: %s", photo, problem)
    if len(problems) > NAMED:
        logger.warning("%d more photos are left out for such reasons", len(problems) - NAMED)


def _without(split: Split, usable: Mapping[Photo, int]) -> Split:
    if all(photo in usable for photo in split.photos):
        return split
    return split.only(i for i, photo in enumerate(split.photos) if photo in usable)


def _check_filled(listing: Listing) -> None:
    for split, found in listing.splits.items():
        if not len(found):
            raise UserError(
                f"{listing.source}: the split {split} has no readable photo: add some, or remove it"
            )
    lacking = [
        name for name, count in zip(listing.classes, listing.counts, strict=True) if not count
    ]
    if lacking:
        more = f" (nor have {len(lacking) - 1:,} others)" if len(lacking) > 1 else ""
        raise UserError(
            f"{listing.source}: the class {lacking[0]!r} has no readable training photo{more}: add "
            "some, or remove the class"
        )


def _check_labels(listing: Listing) -> None:
    """No file is listed with two classes."""
    seen: dict[str, int] = {}
    for split in listing.splits.values():
        for photo, label in zip(split.photos, split.labels, strict=True):
            known = seen.setdefault(photo.name, label)
            if known != label:
                raise UserError(
                    f"{photo} is listed as {listing.classes[known]!r} and as "
                    f"{listing.classes[label]!r}: keep one of them"
                )


def _warn_of_copies(listing: Listing, digests: Mapping[Photo, int]) -> None:
    """Of photos that are trained and measured on, or that show two classes, by their content."""
    seen: dict[int, tuple[SplitName, int, Photo]] = {}
    leaked: list[tuple[Photo, Photo]] = []
    torn: list[tuple[Photo, Photo]] = []
    for name, split in listing.splits.items():
        for photo, label in zip(split.photos, split.labels, strict=True):
            other, known, first = seen.setdefault(digests[photo], (name, label, photo))
            if other != name:
                leaked.append((photo, first))
            if known != label:
                torn.append((photo, first))
    if leaked:
        logger.warning(
            "%s: %d photos are in two splits, such as %s (%s): what is measured on them says "
            "little",
            listing.source,
            len(leaked),
            *leaked[0],
        )
    if torn:
        logger.warning(
            "%s: %d photos are of two classes, such as %s (%s): remove one of the two",
            listing.source,
            len(torn),
            *torn[0],
        )


def _mark(photo: StoredPhoto) -> int:
    """64 bits for a photo as it is now, and for the limits it is checked against."""
    facts = (photo.path, photo.start, photo.size, photo.changed, MAX_PIXELS, MAX_ASPECT)
    return _bits(os.fsencode("\0".join(map(str, facts))))


def _bits(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _recall(memory: Path) -> dict[int, int]:
    """The digests of photos by their marks."""
    try:
        return dict(np.load(memory, allow_pickle=False).reshape(-1, 2).tolist())
    except (OSError, ValueError, EOFError):
        return {}


def _remember(memory: Path, digests: dict[int, int]) -> None:
    keep(memory, lambda file: np.save(file, np.array(sorted(digests.items()), np.uint64)))
