"""Photos on their way to the tower.

They are decoded, cropped and batched on demand, or come from the cache of frozen features.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from taillift.models.bundle.arrays import Pixels, chunks
from taillift.models.bundle.images import RESAMPLING, VIEWS, decode, load, views
from taillift.models.bundle.schema import Preprocessing
from taillift.training.data.photo import Photo, RawPhoto, Split, naming
from taillift.training.fit.distributed import Processes
from taillift.training.recipe.recipe import Augmentation

# A photo's index in its split, and the epoch that its crop is for.
Pick = tuple[int, int]
# Returns a photo's crops in an epoch, uint8 [R, S, S, 3].
Crop = Callable[[int, int], Pixels]
# Rows [B * R, ...] and labels [B] of B photos.
Batch = tuple[Tensor, Tensor]

# Share of a photo's area, and width / height, of a random crop.
AREA: Final = (0.08, 1.0)
RATIO: Final = (3 / 4, 4 / 3)


class Inputs(Protocol):
    """Labelled rows for the tower behind its first `stage` stages; pixels if `stage` is 0.

    Each photo has `rows` rows, one for each crop. `batches` yields rows [B * rows, ...] and labels
    [B] of the photos in `order`, as each epoch augments them, `size` photos at a time.
    """

    @property
    def stage(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def labels(self) -> Tensor: ...

    def batches(self, order: Sequence[Pick], size: int) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Photos:
    """Rows that are cropped from photos on demand: uint8 [B * rows, S, S, 3].

    The photos are those of `split`, and `settings` names all else that the rows of an epoch depend
    on. Without them, what is made of the rows is not kept for other runs.
    """

    crop: Crop
    rows: int
    labels: Tensor
    stage: int = 0
    split: Split | None = None
    settings: str = ""

    def fingerprint(self, order: Sequence[Pick]) -> str | None:
        """Return a sha256, in hex, that changes with the rows of the photos in `order`.

        None if it is not known what these depend on.
        """
        if self.split is None:
            return None
        digests = photo_digests(self.split)
        lines = (f"{photo} {epoch} {digests[photo]}\n" for photo, epoch in order)
        return hashlib.sha256("".join([self.settings, "\n", *lines]).encode()).hexdigest()

    def batches(self, order: Sequence[Pick], size: int) -> Iterator[Batch]:
        waiting: deque[tuple[list[Future[Pixels]], Tensor]] = deque()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for chunk in chunks(order, size):
                crops = [pool.submit(self.crop, *pick) for pick in chunk]
                waiting.append((crops, self.labels[[photo for photo, _ in chunk]]))
                # The pool prepares this batch while the caller works on the one before it.
                if len(waiting) > 1:
                    yield _stacked(*waiting.popleft())
            for crops, labels in waiting:
                yield _stacked(crops, labels)


@dataclass(frozen=True)
class DerivedInputs:
    """Inputs that are made of others, `whole`; a subclass says which photos or labels differ."""

    whole: Inputs

    @property
    def stage(self) -> int:
        return self.whole.stage

    @property
    def rows(self) -> int:
        return self.whole.rows

    @property
    def labels(self) -> Tensor:
        return self.whole.labels


@dataclass(frozen=True)
class Subset(DerivedInputs):
    """The photos of `whole` at `indices`, counted from 0 in that order."""

    indices: Sequence[int]

    @property
    def labels(self) -> Tensor:
        return self.whole.labels[list(self.indices)]

    def batches(self, order: Sequence[Pick], size: int) -> Iterator[Batch]:
        yield from self.whole.batches(
            [(self.indices[photo], epoch) for photo, epoch in order], size
        )


@dataclass(frozen=True)
class CuedInputs(DerivedInputs):
    """The photos of `whole`, whose batches have labels [B, 1 + K]: the class and its look-alikes.

    `look_alikes` is int64 [N, K]. The labels of all photos stay [N].
    """

    look_alikes: Tensor

    def batches(self, order: Sequence[Pick], size: int) -> Iterator[Batch]:
        parts = zip(chunks(order, size), self.whole.batches(order, size), strict=True)
        for chunk, (rows, labels) in parts:
            others = self.look_alikes[[photo for photo, _ in chunk]]
            yield rows, torch.cat([labels[:, None], others], 1)


@dataclass(frozen=True)
class CachedFeatures:
    """Rows behind the tower's first `stage` stages: `tokens` [sum(copies), rows, ...].

    `copies` [N] is the number of augmented copies of each photo. The copies of one photo follow
    each other, in the order in which the `epochs` use them.
    """

    tokens: Tensor
    copies: Tensor
    labels: Tensor
    stage: int
    epochs: int = 1

    @property
    def rows(self) -> int:
        return self.tokens.shape[1]

    def batches(self, order: Sequence[Pick], size: int) -> Iterator[Batch]:
        starts = self.copies.cumsum(0) - self.copies
        for chunk in chunks(order, size):
            photos, epochs = torch.tensor(chunk).unbind(1)
            indices = starts[photos] + epochs * self.copies[photos] // self.epochs
            yield self.tokens[indices].flatten(0, 1).float(), self.labels[photos]


def first_copies(photos: int) -> list[Pick]:
    """Return every photo once, in order, with the crops of the first epoch."""
    return [(photo, 0) for photo in range(photos)]


def epoch_order(photos: int, seed: int, epoch: int) -> list[Pick]:
    """Return every photo once, shuffled; the same for the same seed and epoch."""
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return [(photo, epoch) for photo in random.permutation(photos).tolist()]


@lru_cache(maxsize=4)
def photo_digests(split: Split) -> list[str]:
    """Return the sha256, in hex, of each photo's file, or of its raw pixels."""

    def digest(photo: Photo) -> "hashlib._Hash":
        if isinstance(photo, RawPhoto):
            return hashlib.sha256(f"{photo.pixels.shape}".encode() + photo.pixels.tobytes())
        return hashlib.sha256(photo.read())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [found.hexdigest() for found in pool.map(digest, split.photos)]


def copy_epochs(copies: int, epochs: int) -> list[int]:
    """Return the epochs whose crops are kept as copies, the first and the last among them.

    There are at most as many `copies` as epochs. Epoch `copy_epochs(...)[c]` uses copy c.
    """
    return [-(-copy * (epochs - 1) // max(1, copies - 1)) for copy in range(copies)]


def sharded(
    inputs: Inputs, batches: Sequence[Sequence[Pick]], processes: Processes
) -> Iterator[tuple[int, Batch | None]]:
    """Yield the length of every batch with this process's part of it, None if it has none.

    All batches but the last have the same length, and so all parts but the last have, too.
    """
    shards = [processes.shard(batch) for batch in batches]
    length = max([1, *map(len, shards)])
    rows = inputs.batches([pick for shard in shards for pick in shard], length)
    for batch, shard in zip(batches, shards, strict=True):
        yield len(batch), next(rows) if shard else None


def training_photos(
    split: Split, preprocessing: Preprocessing, augmentation: Augmentation, epochs: int, seed: int
) -> Photos:
    """Return photos with one random crop each, a new one in each of the epochs.

    The crops of an epoch are the same for the same seed, however many epochs there are, unless they
    grow.
    """
    resampling = RESAMPLING[preprocessing.interpolation]
    size = preprocessing.size

    def crop(index: int, epoch: int) -> Pixels:
        random = np.random.default_rng((seed, epoch, index))
        photo = split.photos[index]
        with naming(photo):
            image = decode(photo.read(), size + preprocessing.expand, split.max_pixels)
        if augmentation.name == "minimalist":
            smallest = smallest_area(augmentation.schedule, epoch / max(1, epochs - 1))
            box = minimalist_crop(*image.size, smallest, random)
        else:
            box = random_resized_crop(*image.size, random)
        cropped = image.resize((size, size), resampling, box)
        if augmentation.flip and random.random() < 0.5:
            cropped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(cropped)[None]

    areas = (augmentation.schedule, augmentation.grows and epochs, AREA, RATIO)
    settings = ("crops", augmentation.name, areas, augmentation.flip, seed, preprocessing)
    return Photos(crop, 1, torch.tensor(split.labels), 0, split, repr(settings))


def evaluation_photos(split: Split, preprocessing: Preprocessing) -> Photos:
    """Return photos with the five views that the service takes of an image, centre first."""

    def crop(index: int, _: int) -> Pixels:
        photo = split.photos[index]
        with naming(photo):
            canvas = load(photo.read(), preprocessing, split.max_pixels)
        return views(canvas, preprocessing.size)

    settings = repr(("views", VIEWS, preprocessing))
    return Photos(crop, VIEWS, torch.tensor(split.labels), 0, split, settings)


def centre_photos(split: Split, preprocessing: Preprocessing) -> Photos:
    """Return photos with the centre view alone."""
    photos = evaluation_photos(split, preprocessing)
    return replace(
        photos,
        crop=lambda photo, epoch: photos.crop(photo, epoch)[:1],
        rows=1,
        settings=repr(("centre view", preprocessing)),
    )


def random_resized_crop(
    width: int, height: int, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return a box (left, top, right, bottom) of 8 to 100 % of the area, aspect 3/4 to 4/3.

    If ten tries do not fit, it is the largest centred box within those aspects (Szegedy et al.
    2015).
    """
    for _ in range(10):
        area = width * height * random.uniform(*AREA)
        ratio = np.exp(random.uniform(*np.log(RATIO)))
        wide, high = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if wide <= width and high <= height:
            left, top = random.uniform(0, width - wide), random.uniform(0, height - high)
            return left, top, left + wide, top + high
    ratio = np.clip(width / height, *RATIO)
    wide, high = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def minimalist_crop(
    width: int, height: int, smallest: float, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return a square box (left, top, right, bottom) of at least `smallest` of the area.

    Its area is uniform between that and the largest square's; if the largest square is smaller, it
    is the box. From LIFT+ (arXiv 2504.13282), minimalist data augmentation.
    """
    largest = min(width, height) / max(width, height)
    area = random.uniform(min(smallest, largest), largest)
    side = min(width, height, np.sqrt(width * height * area))
    left, top = random.uniform(0, width - side), random.uniform(0, height - side)
    return left, top, left + side, top + side


def smallest_area(schedule: str, done: float) -> float:
    """Return the least area of a minimalist crop, as a share of the photo (LIFT+).

    `done`, 0 to 1, is the share of the training that has passed.
    """
    growth = {
        "convex": 1 - np.sqrt(1 - done**2),
        "linear": done,
        "concave": np.sqrt(1 - (1 - done) ** 2),
        "min": 0.0,
        "max": 1.0,
    }[schedule]
    return float(AREA[0] + (AREA[1] - AREA[0]) * growth)


def _stacked(crops: list[Future[Pixels]], labels: Tensor) -> Batch:
    return torch.from_numpy(np.concatenate([crop.result() for crop in crops])), labels
