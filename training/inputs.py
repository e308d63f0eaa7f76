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

from models.bundle.chunks import chunks
from models.bundle.images import RESAMPLING, VIEWS, Pixels, decode, load, views
from models.bundle.manifest import Preprocessing
from training.dataset import Split

# A photo's index and the number of its augmented copy, and what makes uint8 [R, S, S, 3] of them.
Pick = tuple[int, int]
Crop = Callable[[int, int], Pixels]

AREA: Final = (0.08, 1.0)
RATIO: Final = (3 / 4, 4 / 3)


class Inputs(Protocol):
    """Labelled rows for the tower, of which the first `stage` stages are already done.

    `rows` is how many each crop of a photo has. `batches` yields rows [B * rows, ...] and labels
    [B] of the photos and copies in `order`, `size` of them at a time.
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
class Cached:
    """Rows behind the tower's first `stage` stages: `tokens` [sum(copies), rows, ...].

    `copies` [N] says how many each photo has, one photo's behind the other's. Asked for more, they
    take turns.
    """

    tokens: Tensor
    copies: Tensor
    labels: Tensor
    stage: int

    @property
    def rows(self) -> int:
        return self.tokens.shape[1]

    def batches(self, order: Sequence[Pick], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        starts = self.copies.cumsum(0) - self.copies
        for chunk in chunks(order, size):
            photos, copies = torch.tensor(chunk).unbind(1)
            places = starts[photos] + copies % self.copies[photos]
            yield self.tokens[places].flatten(0, 1).float(), self.labels[photos]


def first_copies(photos: int) -> list[Pick]:
    """Every photo once."""
    return [(photo, 0) for photo in range(photos)]


def training_photos(split: Split, preprocessing: Preprocessing, seed: int) -> Photos:
    """One random crop a photo, another in each copy; the same for the same seed."""
    crop = partial(_training_crop, split, preprocessing, seed)
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


def _training_crop(
    split: Split, preprocessing: Preprocessing, seed: int, index: int, copy: int
) -> Pixels:
    random = np.random.default_rng((seed, copy, index))
    size = preprocessing.size
    image = decode(split.paths[index].read_bytes(), size + preprocessing.expand)
    box = random_resized_crop(*image.size, random)
    resampling = RESAMPLING[preprocessing.interpolation]
    crop = image.resize((size, size), resampling, box)
    if random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop)[None]


def _evaluation_views(split: Split, preprocessing: Preprocessing, index: int, copy: int) -> Pixels:
    del copy
    return views(load(split.paths[index].read_bytes(), preprocessing), preprocessing.size)


def _stacked(crops: list[Future[Pixels]], labels: Tensor) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.concatenate([crop.result() for crop in crops])), labels
