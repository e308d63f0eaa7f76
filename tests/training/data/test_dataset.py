"""Tests of data sets: classes, splits, fingerprints, and the cut to a long tail."""

import logging
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.manifest import Thresholds
from taillift.models.errors import UserError
from taillift.training.data.dataset import Dataset, load_dataset, tail_counts, tail_indices
from tests.support.tiny import write_photo, write_photos


def test_classes_are_sorted_by_frequency_then_by_name(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_photos(tmp_path, {"red": 2, "green": 2, "blue": 3})))
    assert dataset.classes == ("blue", "green", "red")
    assert dataset.counts == [3, 2, 2]
    labels = [dataset.classes[label] for label in dataset.train.labels]
    assert labels == [photo.name.split("/")[1] for photo in dataset.train.photos]


def test_the_held_out_split_is_test_else_val_else_none(colours: Dataset, tmp_path: Path) -> None:
    assert colours.held_out == ("test", colours.test)
    counts = {"red": 2, "blue": 2}
    with_val = load_dataset(str(write_photos(tmp_path / "a", counts, ("train", "val"))))
    assert with_val.held_out == ("val", with_val.val)
    assert load_dataset(str(write_photos(tmp_path / "b", counts))).held_out is None


def test_an_imbalance_cuts_training_photos_only(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "c", {"red": 9, "green": 9, "blue": 9}, ("train", "test"))
    dataset = load_dataset(str(root), imbalance=9)
    assert dataset.name == "c-ir9"
    assert (dataset.classes, dataset.counts) == (("blue", "green", "red"), [9, 3, 1])
    assert dataset.test is not None
    assert dataset.test.labels == (0, 0, 1, 1, 2, 2)
    assert load_dataset(str(root), imbalance=9) == dataset


def test_a_fingerprint_depends_on_the_set_and_not_on_its_folder(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "a", {"red": 3, "blue": 2}, ("train", "test"))
    before = load_dataset(str(root)).fingerprint
    moved = Path(shutil.copytree(root, tmp_path / "b"))
    assert load_dataset(str(moved)).fingerprint == before
    (moved / "classnames.json").write_text('{"red": "scarlet"}')
    assert load_dataset(str(moved)).fingerprint != before
    (moved / "classnames.json").unlink()
    (moved / "test/red/000.png").unlink()
    assert load_dataset(str(moved)).fingerprint != before


def test_a_fingerprint_changes_with_a_photo(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    before = load_dataset(str(root)).fingerprint
    write_photo(root / "train/red/000.png", (1, 2, 3), seed=5)
    assert load_dataset(str(root)).fingerprint != before


def test_the_sample_set_has_its_long_tail() -> None:
    dataset = load_dataset("wardrobe-lt")
    groups = [Thresholds().group(count) for count in dataset.counts]
    assert [groups.count(group) for group in ("many", "medium", "few")] == [5, 6, 6]
    assert (dataset.counts[0], dataset.counts[-1]) == (300, 5)
    assert dataset.names[1] == "long-sleeve shirt"
    assert dataset.test is not None
    assert dataset.val is not None
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (1303, 166, 332)


@pytest.mark.parametrize(("ratio", "total"), [(10, 19_573), (50, 12_608), (100, 10_847)])
def test_counts_are_those_of_cifar_100_lt(ratio: float, total: int) -> None:
    counts = tail_counts(500, 100, ratio)
    assert sum(counts) == total
    assert (counts[0], counts[-1]) == (500, 500 / ratio)


@pytest.mark.parametrize("ratio", [2, 7, 49, 50])
def test_the_ratio_is_exact_if_it_divides_the_largest_count(ratio: int) -> None:
    counts = tail_counts(3 * ratio, 4, ratio)
    assert counts[0] / counts[-1] == ratio


def kept_of(counts: list[int], ratio: float) -> list[int]:
    """Return how many photos each class keeps."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    names = [f"{label:02}" for label in range(len(counts))]
    kept = Counter(labels[index] for index in tail_indices(labels, names, ratio))
    return [kept[label] for label in range(len(counts))]


@pytest.mark.parametrize(
    ("counts", "ratio", "kept"),
    [
        ([30, 21, 5], 10, [30, 9, 3]),
        ([5, 21, 30], 10, [3, 9, 30]),
        ([9, 300, 20, 5], 100, [9, 300, 20, 3]),
    ],
)
def test_an_uneven_set_gets_the_requested_ratio(
    counts: list[int], ratio: float, kept: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert kept_of(counts, ratio) == kept
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("counts", "ratio", "warning"),
    [
        ([30, 21, 1], 10, "ratio of 30 instead of 10: the largest class has 30, the smallest 1"),
        ([5, 5, 5], 10, "ratio of 5 instead of 10: the largest class has 5, the smallest 1"),
        ([19, 19], 10, "ratio of 19 instead of 10: the largest class has 19, the smallest 1"),
    ],
)
def test_another_ratio_than_the_requested_one_is_warned_of(
    counts: list[int], ratio: float, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        kept_of(counts, ratio)
    assert caplog.messages == [f"the photos give an imbalance {warning}"]


def test_equal_classes_shrink_in_the_order_of_their_names() -> None:
    labels = [0] * 100 + [1] * 100 + [2] * 100
    kept = tail_indices(labels, ["c", "a", "b"], 100)
    assert Counter(labels[index] for index in kept) == {1: 100, 2: 10, 0: 1}
    assert kept == sorted(kept)
    assert kept == tail_indices(labels, ["c", "a", "b"], 100)
    assert kept[:1] != [0], "the photo that stays is drawn at random; it is not the first"


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=12),
    ratio=st.floats(1, 1000),
)
def test_no_class_grows_or_vanishes(counts: list[int], ratio: float) -> None:
    wanted = tail_counts(max(counts), len(counts), ratio)
    falling = sorted(counts, reverse=True)
    kept = kept_of(counts, ratio)
    assert sorted(kept, reverse=True) == [min(pair) for pair in zip(falling, wanted, strict=True)]
    assert all(1 <= after <= before for before, after in zip(counts, kept, strict=True))


@pytest.mark.parametrize("ratio", [0.5, 0, -3, float("nan")])
def test_a_ratio_below_one_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="below 1"):
        tail_indices([0, 1], ["a", "b"], ratio)
