"""Tests of data sets: classes, splits and fingerprints."""

import shutil
from pathlib import Path

from taillift.models.bundle.manifest import Thresholds
from taillift.training.data.dataset import Dataset, load_dataset
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
