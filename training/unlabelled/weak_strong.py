"""A weak and a strong view of each unlabelled photo, and the order in which photos are taken."""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.images import load, views
from taillift.models.bundle.schema import Preprocessing
from taillift.training.data.photo import Split, naming
from taillift.training.fit.inputs import Photos, Pick
from taillift.training.recipe.semi_supervision import StrongView

# A weak view is shifted by up to this share of its side; what is missing is reflected.
SHIFT: Final = 1 / 8
GREY: Final = (128, 128, 128)

# Changes an image by an amount of -1 to 1. Those without a direction use its size alone.
Operation = Callable[[Image.Image, float], Image.Image]


def weak_strong_photos(
    split: Split, preprocessing: Preprocessing, strong: StrongView, seed: int
) -> Photos:
    """Return photos with two rows each, a weak view and then a strong one, new in every pass.

    A weak view is the centre view, shifted and perhaps flipped. A strong view is such a view, with
    a flip and a shift of its own, after RandAugment (Cubuk et al. 2020) and a cutout. The views are
    the same for the same seed.
    """

    def crop(index: int, passes: int) -> Pixels:
        random = np.random.default_rng((seed, passes, index, 1))
        photo = split.photos[index]
        with naming(photo):
            canvas = load(photo.read(), preprocessing, split.max_pixels)
        centre = views(canvas, preprocessing.size, 1)[0]
        weak, other = shifted(centre, random), shifted(centre, random)
        return np.stack([weak, strengthened(other, strong, random)])

    settings = repr(("weak and strong", SHIFT, strong, seed, preprocessing))
    return Photos(crop, 2, torch.tensor(split.labels), 0, split, settings)


def shifted(view: Pixels, random: np.random.Generator) -> Pixels:
    """Return a view uint8 [S, S, 3] shifted by up to `SHIFT` each way, and flipped or not."""
    size = len(view)
    margin = round(SHIFT * size)
    padded = np.pad(view, ((margin, margin), (margin, margin), (0, 0)), "reflect")
    top, left = random.integers(0, 2 * margin + 1, 2)
    crop = padded[top : top + size, left : left + size]
    return crop[:, ::-1] if random.random() < 0.5 else crop


def strengthened(view: Pixels, strong: StrongView, random: np.random.Generator) -> Pixels:
    """Return a view uint8 [S, S, 3] after random operations and a cutout.

    Every operation has an amount that is uniform up to strength / 10 of its largest (ours: the
    sources disagree on the scales).
    """
    image = Image.fromarray(np.ascontiguousarray(view))
    for index in random.choice(len(OPERATIONS), strong.operations):
        amount = random.uniform(-1, 1) * strong.strength / 10
        image = OPERATIONS[index](image, amount)
    pixels = np.array(image)
    side = round(strong.cutout * len(view))
    top, left = random.integers(0, len(view) - side + 1, 2)
    pixels[top : top + side, left : left + side] = GREY
    return pixels


def unlabelled_picks(photos: int, size: int, step: int, seed: int) -> list[Pick]:
    """Return the `size` photos that `step` takes of so many `photos`, each with its pass.

    In every pass each photo comes once, in a new order. What a step takes depends on nothing but
    its number, so a run that continues needs no memory of earlier steps.
    """
    positions = range(step * size, (step + 1) * size)
    passes = (divmod(position, photos) for position in positions)
    return [(_order(photos, seed, number)[index], number) for number, index in passes]


def passes_needed(photos: int, size: int, steps: int) -> int:
    """Return how many passes over so many photos so many steps of `size` photos begin."""
    return -(-size * steps // photos)


@lru_cache(maxsize=4)
def _order(photos: int, seed: int, number: int) -> list[int]:
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, 1)))
    order: list[int] = random.permutation(photos).tolist()
    return order


def _affine(coefficients: Callable[[float, int], tuple[float, ...]]) -> Operation:
    """Return the operation with the affine map that an amount and a side in pixels give."""

    def apply(image: Image.Image, amount: float) -> Image.Image:
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            coefficients(amount, image.size[0]),
            Image.Resampling.BILINEAR,
            fillcolor=GREY,
        )

    return apply


def _enhanced(enhance: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """Return the operation that scales a quality of the image by 0.1 to 1.9."""
    return lambda image, amount: enhance(image).enhance(1 + 0.9 * amount)


# The fourteen operations that the papers use, with their largest sizes.
OPERATIONS: Final[tuple[Operation, ...]] = (
    lambda image, _: image,
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
    lambda image, amount: image.rotate(30 * amount, Image.Resampling.BILINEAR, fillcolor=GREY),
    lambda image, amount: ImageOps.solarize(image, round(256 * (1 - abs(amount)))),
    lambda image, amount: ImageOps.posterize(image, 8 - round(4 * abs(amount))),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
    _affine(lambda amount, side: (1, 0.3 * amount, -0.15 * amount * side, 0, 1, 0)),
    _affine(lambda amount, side: (1, 0, 0, 0.3 * amount, 1, -0.15 * amount * side)),
    _affine(lambda amount, side: (1, 0, 0.3 * amount * side, 0, 1, 0)),
    _affine(lambda amount, side: (1, 0, 0, 0, 1, 0.3 * amount * side)),
)
