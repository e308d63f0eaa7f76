"""Photos of further sources that are trained on with those of a set: `taillift train --add`.

All sources have one list of classes: that of the set, and behind it what is new in the others.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from taillift.models.errors import UserError, did_you_mean
from taillift.training.data.check import MOST_NAMED
from taillift.training.data.classes import Vocabulary, names_in_prompts
from taillift.training.data.photo import Photo, Split
from taillift.training.data.readers.listing import AddedPhotos, Listing
from taillift.training.data.readers.registry import read_source

logger = logging.getLogger(__name__)


def read_sources(source: str, add: Sequence[str] = (), least: int = 2) -> Listing:
    """List the photos of `source` and, as its `added` photos, the training photos of others.

    Raises `UserError` as `read_source` does, if a source in `add` has no training photo, and if all
    of them together have fewer classes than `least`, 1 or 2.
    """
    listing = read_source(source)
    for other in add:
        listing = with_added(listing, read_source(other, labelled_only=True), other)
    if least > 1:
        listing.vocabulary.refuse_single()
    return listing


def with_added(listing: Listing, other: Listing, source: str) -> Listing:
    """Return the listing with the training photos of another source, and with its new classes."""
    train, own = other.splits["train"], listing.vocabulary
    used = {other.classes[label] for label in set(train.labels)}
    if not used:
        raise UserError(f"{source} has no labelled photo to add: label some, or leave out --add")
    new = [name for name in other.classes if name in used and name not in own.indices]
    prompts = names_in_prompts(other.folder, other.vocabulary) if new else other.classes
    called = dict(zip(other.classes, prompts, strict=True))
    prompt_names = {**own.prompt_names, **{name: called[name] for name in new}}
    vocabulary = Vocabulary((*own.classes, *new), own.source, own.shared_names, prompt_names)
    labels = [vocabulary.indices.get(name, -1) for name in other.classes]
    for name, split in other.splits.items():
        if name != "train":
            logger.warning(
                "%s: its %s (%d photos) is not used: only training photos are added",
                source,
                name,
                len(split),
            )
    return replace(
        listing,
        vocabulary=vocabulary,
        added=(*listing.added, AddedPhotos(source, other.name, train.relabelled(labels))),
        unused=(*listing.unused, *other.unused),
    )


def joined(listing: Listing) -> Listing:
    """Return the listing with its added photos behind its own training photos.

    The splits have the contents of their photos. Copies of photos that are there already, with the
    same class, are left out. Log lines tell of them, of new classes, and of photos that have
    another class elsewhere. Raises `UserError` with the first of `leaks`.
    """
    for reason in leaks(listing):
        raise UserError(reason)
    train = listing.splits["train"]
    first = dict(zip(reversed(train.contents), reversed(train.photos), strict=True))
    known = set(zip(train.contents, train.labels, strict=True))
    old = {listing.classes[label] for label in train.labels}
    kept = []
    for addition in listing.added:
        more, indices = addition.photos, []
        contradictory: list[tuple[Photo, Photo]] = []
        for index, (photo, label, content) in enumerate(
            zip(more.photos, more.labels, more.contents, strict=True)
        ):
            if (content, label) in known:
                continue
            if content in first:
                contradictory.append((photo, first[content]))
            known.add((content, label))
            first.setdefault(content, photo)
            indices.append(index)
        only = more.only(indices)
        kept.append(replace(addition, photos=only))
        train = train.with_more(only)
        for line in _told(addition.source, len(more), only, contradictory):
            logger.warning("%s", line)
        for line in new_classes(addition.source, only, listing.classes, old):
            logger.warning("%s", line)
        logger.info("%s: %d photos are added", addition.source, len(only))
    return replace(listing, splits={**listing.splits, "train": train}, added=tuple(kept))


def leaks(listing: Listing) -> Iterator[str]:
    """Yield a reason for a refusal for each added source that has held-out photos, by content."""
    held_out = {
        content: (name, photo)
        for name, split in listing.splits.items()
        if name != "train"
        for photo, content in zip(split.photos, split.contents, strict=True)
    }
    for addition in listing.added:
        found = [
            (photo, *held_out[content])
            for photo, content in zip(addition.photos.photos, addition.photos.contents, strict=True)
            if content in held_out
        ]
        if found:
            photo, name, twin = found[0]
            more = f" ({len(found) - 1:,} more are held out, too)" if len(found) > 1 else ""
            yield (
                f"{photo} is also in {name} ({twin}){more}: accuracies that are measured on photos "
                f"in training are too high; remove them from {addition.source}, or from {name}"
            )


def new_classes(source: str, added: Split, classes: Sequence[str], old: set[str]) -> Iterator[str]:
    """Yield a line for each class that has added photos and no other, with their number."""
    counts = Counter(classes[label] for label in added.labels)
    new = [name for name in counts if name not in old]
    for name in new[:MOST_NAMED]:
        yield f"{source}: new class {name!r}{did_you_mean(name, old)}, photos: {counts[name]:,}"
    if len(new) > MOST_NAMED:
        photos = sum(counts[name] for name in new[MOST_NAMED:])
        yield f"{source}: {len(new) - MOST_NAMED:,} more new classes, photos: {photos:,}"


def _told(
    source: str, listed: int, kept: Split, contradictory: Sequence[tuple[Photo, Photo]]
) -> Iterator[str]:
    """Yield lines on added photos that are left out, and on those with two classes."""
    if copies := listed - len(kept):
        yield f"{source}: {copies:,} photos are in training already, and are left out"
    if contradictory:
        photo, twin = contradictory[0]
        yield (
            f"{source}: {len(contradictory):,} photos have another class elsewhere, such as "
            f"{photo} ({twin}): remove one of the two"
        )
