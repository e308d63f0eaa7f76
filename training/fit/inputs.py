"""Photos on their way to the tower: decoded, cropped and batched as they are asked for, or
already through the tower's frozen stages.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from taillift.models.bundle.arrays import Pixels, chunks
from taillift.models.bundle.images import RESAMPLING, VIEWS, decode, load, views
from taillift.models.bundle.schema import Preprocessing
from taillift.training.data.photo import naming
from taillift.training.data.split import Split
from taillift.training.recipe.recipe import Augmentation

# A photo's index and the epoch that asks for it, and what makes uint8 [R, S, S, 3] of them.
Pick = tuple[int, int]
Crop = Callable[[int, int], Pixels]

AREA: Final = (0.08, 1.0)
RATIO: Final = (3 / 4, 4 / 3)


class Inputs(Protocol):
    """Labelled rows for the tower, of which the first `stage` stages are already done.

    `rows` is how many each crop of a photo has. `batches` yields rows [B * rows, ...] and labels
    [B] of the photos in `order`, as each epoch augments them, `size` of them at a time.
    """

    @property
    def stage(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def labels(self) -> Tensor: ...

    def batches(self, order: Sequence[Pick], size: int) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Photos:
    """Rows cropped from photos as they are asked for: uint8 [B * rows, S, S, 3]."""

    crop: Crop
    rows: int
    labels: Tensor
    stage: int = 0

    def batches(self, order: Sequence[Pick], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        waiting: deque[tuple[list[Future[Pixels]], Tensor]] = deque()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for chunk in chunks(order, size):
                crops = [pool.submit(self.crop, *pick) for pick in chunk]
                waiting.append((crops, self.labels[[photo for photo, _ in chunk]]))
                # One batch is prepared while the one before it is worked on.
                if len(waiting) > 1:
                    yield _stacked(*waiting.popleft())
            for ready in waiting:
                yield _stacked(*ready)


@dataclass(frozen=True)
class Subset:
    """Some photos of `whole`, counted from 0 in the order of `indices`."""

    whole: Inputs
    indices: Sequence[int]

    @property
    def stage(self) -> int:
        return self.whole.stage

    @property
    def rows(self) -> int:
        return self.whole.rows

    @property
    def labels(self) -> Tensor:
        return self.whole.labels[list(self.indices)]

    def batches(self, order: Sequence[Pick], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.whole.batches([(self.indices[photo], one) for photo, one in order], size)


@dataclass(frozen=True)
class Cached:
    """Rows behind the tower's first `stage` stages: `tokens` [sum(copies), rows, ...].

    `copies` [N] says how many augmented copies each photo has, one photo's behind the other's, in
    the order of the `epochs` over which they are spread.
    """

    tokens: Tensor
    copies: Tensor
    labels: Tensor
    stage: int
    epochs: int = 1

    @property
    def rows(self) -> int:
        return self.tokens.shape[1]

    def batches(self, order: Sequence[Pick], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        starts = self.copies.cumsum(0) - self.copies
        for chunk in chunks(order, size):
            photos, epochs = torch.tensor(chunk).unbind(1)
            places = starts[photos] + epochs * self.copies[photos] // self.epochs
            yield self.tokens[places].flatten(0, 1).float(), self.labels[photos]


def first_copies(photos: int) -> list[Pick]:
    """Every photo once."""
    return [(photo, 0) for photo in range(photos)]


def copy_epochs(copies: int, epochs: int) -> list[int]:
    """The epochs whose crops stand for all, the first and the last among them.

    Of `copies`, at most `epochs`, copy c is the one that is used in epoch `copy_epochs[c]`.
    """
    return [-(-copy * (epochs - 1) // max(1, copies - 1)) for copy in range(copies)]


def training_photos(
    split: Split, preprocessing: Preprocessing, augmentation: Augmentation, epochs: int, seed: int
) -> Photos:
    """One random crop a photo, another in each of the epochs; the same for the same seed."""
    crop = partial(_training_crop, split, preprocessing, augmentation, epochs, seed)
    return Photos(crop, 1, torch.tensor(split.labels))


def evaluation_photos(split: Split, preprocessing: Preprocessing) -> Photos:
    """The five views of each photo, as the service takes them."""
    crop = partial(_evaluation_views, split, preprocessing)
    return Photos(crop, VIEWS, torch.tensor(split.labels))


def random_resized_crop(
    width: int, height: int, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """A box (left, top, right, bottom) of 8 to 100 % of the area and an aspect of 3/4 to 4/3.

    Where ten tries do not fit, the largest centred box within those aspects (Szegedy et al. 2015).
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
    """A square box (left, top, right, bottom) of at least `smallest` of the area where it fits.

    LIFT+ (arXiv 2504.13282), minimalist data augmentation.
    """
    side = min(width, height, np.sqrt(width * height * random.uniform(smallest, 1)))
    left, top = random.uniform(0, width - side), random.uniform(0, height - side)
    return left, top, left + side, top + side


def smallest_area(schedule: str, done: float) -> float:
    """The least area of a minimalist crop after `done`, 0 to 1, of the training (LIFT+)."""
    share = {
        "convex": 1 - np.sqrt(1 - done**2),
        "linear": done,
        "concave": np.sqrt(1 - (1 - done) ** 2),
        "min": 0.0,
        "max": 1.0,
    }[schedule]
    return float(AREA[0] + (AREA[1] - AREA[0]) * share)


def _training_crop(
    split: Split,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    epochs: int,
    seed: int,
    index: int,
    epoch: int,
) -> Pixels:
    random = np.random.default_rng((seed, epoch, index))
    size = preprocessing.size
    photo = split.photos[index]
    with naming(photo):
        image = decode(photo.read(), size + preprocessing.expand)
    if augmentation.name == "minimalist":
        smallest = smallest_area(augmentation.schedule, epoch / max(1, epochs - 1))
        box = minimalist_crop(*image.size, smallest, random)
    else:
        box = random_resized_crop(*image.size, random)
    resampling = RESAMPLING[preprocessing.interpolation]
    crop = image.resize((size, size), resampling, box)
    if augmentation.flip and random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop)[None]


def _evaluation_views(split: Split, preprocessing: Preprocessing, index: int, epoch: int) -> Pixels:
    del epoch
    photo = split.photos[index]
    with naming(photo):
        return views(load(photo.read(), preprocessing), preprocessing.size)


def _stacked(crops: list[Future[Pixels]], labels: Tensor) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.concatenate([crop.result() for crop in crops])), labels
