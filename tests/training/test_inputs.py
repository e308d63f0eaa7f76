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
        return torch.cat([rows for rows, _ in photos.batches(range(6), 4, copy)])

    assert crops(0, 0).shape == (6, 32, 32, 3)
    assert torch.equal(crops(0, 0), crops(0, 0))
    assert not torch.equal(crops(0, 0), crops(0, 1))
    assert not torch.equal(crops(0, 0), crops(1, 0))


def test_batches_keep_rows_and_labels_in_the_order_asked_for(colours: Dataset) -> None:
    assert colours.test is not None
    photos = evaluation_photos(colours.test, PREPROCESSING)
    order = [5, 0, 3, 1, 4, 2, 0]
    batches = list(photos.batches(order, 2))
    assert [len(labels) for _, labels in batches] == [2, 2, 2, 1]
    labels = torch.cat([labels for _, labels in batches])
    assert labels.tolist() == [colours.test.labels[index] for index in order]
    rows = torch.cat([rows for rows, _ in batches]).unflatten(0, (-1, 5))
    for index, five in zip(order, rows, strict=True):
        canvas = load(colours.test.paths[index].read_bytes(), PREPROCESSING)
        assert np.array_equal(five.numpy(), views(canvas, 32))


def test_cached_copies_take_turns() -> None:
    tokens = torch.arange(2 * 3 * 1 * 4).reshape(2, 3, 1, 4).half()
    cached = Cached(tokens, torch.tensor([7, 8, 9]), stage=1)
    for copy in range(4):
        ((rows, labels),) = cached.batches([2, 0], 8, copy)
        assert labels.tolist() == [9, 7]
        assert torch.equal(rows, tokens[copy % 2, [2, 0], 0].float())
