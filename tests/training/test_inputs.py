import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.bundle.images import load, views
from models.bundle.manifest import Preprocessing
from training.dataset import Dataset
from training.inputs import Cached, evaluation_photos, random_resized_crop, training_photos

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


def test_crops_repeat_with_their_seed_and_differ_between_copies(colours: Dataset) -> None:
    def crops(seed: int, copy: int) -> torch.Tensor:
        photos = training_photos(colours.train, PREPROCESSING, seed)
        return torch.cat(
            [rows for rows, _ in photos.batches([(photo, copy) for photo in range(6)], 4)]
        )

    assert crops(0, 0).shape == (6, 32, 32, 3)
    assert torch.equal(crops(0, 0), crops(0, 0))
    assert not torch.equal(crops(0, 0), crops(0, 1))
    assert not torch.equal(crops(0, 0), crops(1, 0))


def test_batches_keep_rows_and_labels_in_the_order_asked_for(colours: Dataset) -> None:
    assert colours.test is not None
    photos = evaluation_photos(colours.test, PREPROCESSING)
    order = [5, 0, 3, 1, 4, 2, 0]
    batches = list(photos.batches([(photo, 0) for photo in order], 2))
    assert [len(labels) for _, labels in batches] == [2, 2, 2, 1]
    labels = torch.cat([labels for _, labels in batches])
    assert labels.tolist() == [colours.test.labels[index] for index in order]
    rows = torch.cat([rows for rows, _ in batches]).unflatten(0, (-1, 5))
    for index, five in zip(order, rows, strict=True):
        canvas = load(colours.test.photos[index].read(), PREPROCESSING)
        assert np.array_equal(five.numpy(), views(canvas, 32))


def test_cached_copies_of_a_photo_take_turns() -> None:
    """Three photos with one, three and two copies: tokens 0; 1, 2, 3; 4, 5."""
    tokens = torch.arange(6.0).half().reshape(6, 1, 1)
    cached = Cached(tokens, torch.tensor([1, 3, 2]), torch.tensor([7, 8, 9]), stage=1)
    for copy, expected in enumerate([[4, 0, 1], [5, 0, 2], [4, 0, 3], [5, 0, 1]]):
        ((rows, labels),) = cached.batches([(2, copy), (0, copy), (1, copy)], 8)
        assert rows.flatten().tolist() == expected
        assert labels.tolist() == [9, 7, 8]
