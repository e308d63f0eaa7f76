"""Photos that can be used, found before training and not in the middle of it."""

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from models import UserError
from models.bundle.chunks import chunks
from models.bundle.images import decode
from models.bundle.limits import MAX_ASPECT, MAX_PIXELS
from training.data.cache import cache_file, keep
from training.data.listing import Listing
from training.data.photo import Photo, StoredPhoto
from training.data.split import Split, SplitName
from training.progress import track

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
    broken = unreadable(photos, cache_file("checked", listing.source, ".npy"))
    splits = {name: _without(split, broken) for name, split in listing.splits.items()}
    kept = replace(listing, splits=splits)
    _check_filled(kept)
    return kept


def unreadable(photos: Sequence[Photo], memory: Path) -> set[Photo]:
    """The photos that cannot be decoded, each warned of; `memory` keeps which could be."""
    known = _recall(memory)
    # Raw pixels cannot be damaged without the whole file being so.
    stored = [photo for photo in photos if isinstance(photo, StoredPhoto)]
    fresh = [(photo, mark) for photo in stored if (mark := _mark(photo)) not in known]
    problems: dict[Photo, str] = {}
    good: list[int] = []
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = (
                result
                for chunk in chunks(fresh, CHUNK)
                for result in pool.map(_problem, [photo for photo, _ in chunk])
            )
            results = track(found, "Checking photos", len(fresh))
            for (photo, mark), problem in zip(fresh, results, strict=True):
                if problem:
                    problems[photo] = problem
                else:
                    good.append(mark)
    finally:
        if good and len(photos) >= WORTHWHILE:
            _remember(memory, known.union(good))
    _warn(problems)
    return set(problems)


def _problem(photo: StoredPhoto) -> str | None:
    try:
        decode(photo.read(), target=1)
    except UserError as error:
        return str(error)
    return None


def _warn(problems: dict[Photo, str]) -> None:
    for photo, problem in list(problems.items())[:NAMED]:
        logger.warning("%s is left out: %s", photo, problem)
    if len(problems) > NAMED:
        logger.warning("%d more photos are left out for such reasons", len(problems) - NAMED)


def _without(split: Split, broken: set[Photo]) -> Split:
    if not broken:
        return split
    return split.only(i for i, photo in enumerate(split.photos) if photo not in broken)


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
    """No photo of two classes; and a warning where one is both trained and measured on."""
    seen: dict[str, tuple[SplitName, int]] = {}
    leaked: list[Photo] = []
    for name, split in listing.splits.items():
        for photo, label in zip(split.photos, split.labels, strict=True):
            other, known = seen.setdefault(photo.name, (name, label))
            if known != label:
                raise UserError(
                    f"{photo} is listed as {listing.classes[known]!r} and as "
                    f"{listing.classes[label]!r}: keep one of them"
                )
            if other != name:
                leaked.append(photo)
    if leaked:
        logger.warning(
            "%s: %d photos are in two splits, such as %s: what is measured on them says little",
            listing.source,
            len(leaked),
            leaked[0],
        )


def _mark(photo: StoredPhoto) -> int:
    """64 bits for a photo as it is now, and for the limits it is checked against."""
    facts = (photo.path, photo.start, photo.size, photo.changed, MAX_PIXELS, MAX_ASPECT)
    text = "\0".join(map(str, facts))
    digest = hashlib.blake2b(os.fsencode(text), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _recall(memory: Path) -> set[int]:
    try:
        return set(np.load(memory, allow_pickle=False).tolist())
    except (OSError, ValueError, EOFError):
        return set()


def _remember(memory: Path, marks: set[int]) -> None:
    keep(memory, lambda file: np.save(file, np.array(sorted(marks), np.uint64)))
