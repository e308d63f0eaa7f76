"""The two views of an unlabelled photo, and the order in which photos are taken."""

import numpy as np
import pytest
from PIL import Image

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.schema import Preprocessing
from taillift.training.data.dataset import Dataset
from taillift.training.recipe.semi_supervision import StrongView
from taillift.training.unlabelled.weak_strong import (
    GREY,
    OPERATIONS,
    passes_needed,
    shifted,
    strengthened,
    unlabelled_picks,
    weak_strong_photos,
)


@pytest.fixture
def view() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def test_a_weak_view_is_the_centre_shifted_and_reflected(
    view: Pixels,
) -> None:
    padded = np.pad(view, ((4, 4), (4, 4), (0, 0)), "reflect")
    crops = {
        (top, left, flip): padded[top : top + 32, left : left + 32][:, :: -1 if flip else 1]
        for top in range(9)
        for left in range(9)
        for flip in (False, True)
    }
    random = np.random.default_rng(1)
    weak = [shifted(view, random) for _ in range(60)]
    found = [[key for key, crop in crops.items() if np.array_equal(crop, one)] for one in weak]
    assert all(len(keys) == 1 for keys in found)
    tops, lefts, flips = (set(parts) for parts in zip(*(keys[0] for keys in found), strict=True))
    assert tops == lefts == set(range(9))
    assert flips == {False, True}


def test_a_strong_view_differs_and_has_a_grey_square_of_the_stated_side(
    view: Pixels,
) -> None:
    random = np.random.default_rng(2)
    only_cutout = strengthened(view, StrongView(operations=0, cutout=0.25), random)
    grey = (only_cutout == GREY).all(-1)
    rows, columns = np.flatnonzero(grey.any(1)), np.flatnonzero(grey.any(0))
    assert len(rows) == len(columns) == 8
    assert grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert np.array_equal(only_cutout[~grey], view[~grey])
    changed = [strengthened(view, StrongView(cutout=0), random) for _ in range(20)]
    assert sum(np.array_equal(other, view) for other in changed) < 3
    still = strengthened(view, StrongView(operations=0, cutout=0), random)
    assert np.array_equal(still, view)


def test_every_operation_keeps_the_shape_at_its_largest_size(
    view: Pixels,
) -> None:
    image = Image.fromarray(view)
    changes = 0
    for operation in OPERATIONS:
        for amount in (-1.0, 0.3, 1.0):
            changed = operation(image, amount)
            assert changed.size == image.size
            assert changed.mode == "RGB"
            changes += changed.tobytes() != image.tobytes()
    assert len(OPERATIONS) == 14
    assert changes >= 3 * 11, "all but the first; some do nothing to noise"


def test_the_views_of_a_photo_are_new_in_every_pass_and_the_same_for_the_same_seed(
    colours: Dataset,
) -> None:
    preprocessing = Preprocessing(
        size=32,
        expand=12,
        interpolation="bicubic",
        resize_mode="shortest",
        long_side="cut",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    first, again = (weak_strong_photos(colours.train, preprocessing, StrongView(), 3),) * 2
    other = weak_strong_photos(colours.train, preprocessing, StrongView(), 4)
    crops = first.crop(5, 0)
    assert crops.shape == (2, 32, 32, 3)
    assert np.array_equal(crops, again.crop(5, 0))
    assert not np.array_equal(crops, first.crop(5, 1))
    assert not np.array_equal(crops, other.crop(5, 0))
    assert not np.array_equal(crops[0], crops[1])


def test_each_pass_takes_every_photo_once_in_a_new_order_across_steps() -> None:
    picks = [pick for step in range(6) for pick in unlabelled_picks(10, 4, step, 7)]
    assert passes_needed(10, 4, 6) == 3
    assert [number for _, number in picks] == [0] * 10 + [1] * 10 + [2] * 4
    first, second = ([photo for photo, own in picks if own == number] for number in (0, 1))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert unlabelled_picks(10, 4, 3, 7) == picks[12:16]
    assert unlabelled_picks(10, 4, 3, 8) != picks[12:16]
