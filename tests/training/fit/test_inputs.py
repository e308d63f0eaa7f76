"""Photos become the crops, views and batches that a run asks for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from taillift.models.bundle.images import load, views
from taillift.models.bundle.schema import Preprocessing
from taillift.training.data.dataset import Dataset
from taillift.training.fit.inputs import (
    AREA,
    CachedFeatures,
    CuedInputs,
    Subset,
    copy_epochs,
    evaluation_photos,
    minimalist_crop,
    random_resized_crop,
    smallest_area,
    training_photos,
)
from taillift.training.recipe.recipe import Augmentation

PREPROCESSING = Preprocessing(
    size=32,
    expand=12,
    interpolation="bicubic",
    resize_mode="shortest",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


@given(width=st.integers(1, 2000), height=st.integers(1, 2000), seed=st.integers(0, 2**32))
def test_a_crop_lies_in_the_image_and_within_its_limits(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = random_resized_crop(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width + 1e-6
    assert 0 <= top < bottom <= height + 1e-6
    ratio = (right - left) / (bottom - top)
    assert 3 / 4 - 1e-6 <= ratio <= 4 / 3 + 1e-6
    if 3 / 4 <= width / height <= 4 / 3:
        assert (right - left) * (bottom - top) >= 0.08 * width * height - 1e-6


@pytest.mark.parametrize("name", ["resized", "minimalist"])
def test_crops_are_the_same_for_the_same_seed_and_differ_between_epochs(
    colours: Dataset, name: str
) -> None:
    augmentation = Augmentation.model_validate({"name": name})

    def crops(seed: int, epoch: int) -> torch.Tensor:
        photos = training_photos(colours.train, PREPROCESSING, augmentation, 3, seed)
        return torch.cat(
            [rows for rows, _ in photos.batches([(photo, epoch) for photo in range(6)], 4)]
        )

    assert crops(0, 0).shape == (6, 32, 32, 3)
    assert torch.equal(crops(0, 0), crops(0, 0))
    assert not torch.equal(crops(0, 0), crops(0, 1))
    assert not torch.equal(crops(0, 0), crops(1, 0))


def test_batches_have_rows_and_labels_in_the_given_order(colours: Dataset) -> None:
    assert colours.test is not None
    photos = evaluation_photos(colours.test, PREPROCESSING)
    order = [5, 0, 3, 1, 4, 2, 0]
    batches = list(photos.batches([(photo, 0) for photo in order], 2))
    assert [len(labels) for _, labels in batches] == [2, 2, 2, 1]
    labels = torch.cat([labels for _, labels in batches])
    assert labels.tolist() == [colours.test.labels[index] for index in order]
    rows = torch.cat([rows for rows, _ in batches]).view(len(order), 5, 32, 32, 3)
    for index, five in zip(order, rows, strict=True):
        canvas = load(colours.test.photos[index].read(), PREPROCESSING)
        assert np.array_equal(five.numpy(), views(canvas, 32))


def test_cued_batches_also_name_the_look_alikes_of_each_photo(colours: Dataset) -> None:
    assert colours.test is not None
    photos, look_alikes = (
        evaluation_photos(colours.test, PREPROCESSING),
        torch.arange(12).view(6, 2),
    )
    cued = CuedInputs(Subset(photos, [1, 0, 2, 3, 4, 5]), look_alikes)
    batches = list(cued.batches([(5, 0), (0, 0), (3, 0)], 2))
    own = [colours.test.labels[photo] for photo in (5, 1, 3)]
    labels = torch.cat([labels for _, labels in batches])
    assert labels.tolist() == [[own[0], 10, 11], [own[1], 0, 1], [own[2], 6, 7]]
    ((rows, _),) = photos.batches([(5, 0), (1, 0), (3, 0)], 3)
    assert torch.equal(torch.cat([rows for rows, _ in batches]), rows)
    assert cued.labels.shape == (6,)


@given(
    width=st.integers(1, 2000),
    height=st.integers(1, 2000),
    smallest=st.floats(0.08, 1),
    seed=st.integers(0, 2**32),
)
def test_a_minimalist_crop_is_a_square_as_large_as_fits(
    width: int, height: int, smallest: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    left, top, right, bottom = minimalist_crop(width, height, smallest, random)
    assert right - left == pytest.approx(bottom - top)
    assert 0 <= left < right <= width + 1e-6
    assert 0 <= top < bottom <= height + 1e-6
    least = min(smallest * width * height, min(width, height) ** 2)
    assert (right - left) ** 2 >= least * (1 - 1e-6)


@pytest.mark.parametrize(
    ("schedule", "middle"),
    [("convex", 0.134), ("linear", 0.5), ("concave", 0.866), ("min", 0.0), ("max", 1.0)],
)
def test_minimalist_crops_grow_along_their_schedule(schedule: str, middle: float) -> None:
    """Half-way through the training, as a share of the way from 8 to 100 % of the area."""
    least, most = AREA
    assert smallest_area(schedule, 0.5) == pytest.approx(least + middle * (most - least), abs=1e-3)
    if schedule not in ("min", "max"):
        assert smallest_area(schedule, 0) == least
        assert smallest_area(schedule, 1) == most


@given(copies=st.integers(1, 12), more=st.integers(0, 20))
def test_each_copy_serves_the_epochs_around_its_own(copies: int, more: int) -> None:
    epochs = copies + more
    chosen = copy_epochs(copies, epochs)
    assert chosen[0] == 0
    assert copies == 1 or chosen[-1] == epochs - 1
    assert [epoch * copies // epochs for epoch in chosen] == list(range(copies))


def test_the_epochs_use_the_copies_of_a_photo_in_order() -> None:
    """Three photos with one, three and two copies: tokens 0; 1, 2, 3; 4, 5."""
    tokens = torch.arange(6.0).half().reshape(6, 1, 1)
    copies, labels = torch.tensor([1, 3, 2]), torch.tensor([7, 8, 9])
    cached = CachedFeatures(tokens, copies, labels, stage=1, epochs=4)
    for epoch, expected in enumerate([[4, 0, 1], [4, 0, 1], [5, 0, 2], [5, 0, 3]]):
        ((rows, classes),) = cached.batches([(2, epoch), (0, epoch), (1, epoch)], 8)
        assert rows.flatten().tolist() == expected
        assert classes.tolist() == [9, 7, 8]


@pytest.mark.parametrize(("width", "height"), [(400, 300), (1600, 900), (300, 400), (224, 224)])
@pytest.mark.parametrize("smallest", [0.0, 0.08, 0.3, 0.7, 1.0])
def test_areas_of_minimalist_crops_are_uniform_up_to_the_largest_square(
    width: int, height: int, smallest: float
) -> None:
    random = np.random.default_rng(0)
    boxes = np.array([minimalist_crop(width, height, smallest, random) for _ in range(20_000)])
    sides = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])
    largest = min(width, height) / max(width, height)
    lowest = min(smallest, largest)
    shares = sides.prod(1) / (width * height)
    if lowest == largest:
        np.testing.assert_allclose(shares, largest)
    else:
        # LIFT+'s code cuts both bounds to the largest square's share, and draws between them.
        assert kstest(shares, "uniform", (lowest, largest - lowest)).statistic < 0.02


@pytest.mark.parametrize("size", [(400, 300), (1600, 900), (300, 400)])
def test_few_minimalist_crops_are_the_whole_short_side(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    boxes = np.array([minimalist_crop(*size, 0.08, random) for _ in range(5_000)])
    whole = boxes[:, 2] - boxes[:, 0] > min(size) - 0.5
    assert whole.mean() < 0.01
