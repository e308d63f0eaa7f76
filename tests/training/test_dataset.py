import logging
from pathlib import Path

import pytest
from tiny import write_photos

from models import UserError
from models.bundle.manifest import Thresholds
from training.dataset import Dataset, class_name, load_dataset, unpack_sample


def test_classes_come_in_frequency_order_then_by_name(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_photos(tmp_path, {"red": 2, "green": 2, "blue": 3})))
    assert dataset.classes == ("blue", "green", "red")
    assert dataset.counts == [3, 2, 2]
    labels = [dataset.classes[label] for label in dataset.train.labels]
    assert labels == [path.parent.name for path in dataset.train.paths]


def test_models_are_measured_on_test_else_on_val_else_not_at_all(
    colours: Dataset, tmp_path: Path
) -> None:
    assert colours.held_out == ("test", colours.test)
    counts = {"red": 2, "blue": 2}
    with_val = load_dataset(str(write_photos(tmp_path / "a", counts, ("train", "val"))))
    assert with_val.held_out == ("val", with_val.val)
    assert load_dataset(str(write_photos(tmp_path / "b", counts))).held_out is None


def test_a_corrupt_photo_is_left_out_with_a_warning_that_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    broken = root / "train/red/001.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(str(root))
    assert dataset.counts == [2, 2]
    assert broken not in dataset.train.paths
    (message,) = caplog.messages
    assert str(broken) in message
    assert "cannot be decoded" in message


def test_what_is_no_photo_by_name_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    (root / "train/red/notes.txt").touch()
    (root / "train/red/more").mkdir()
    (root / "train/.cache").mkdir()
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(root)).counts == [3, 2]
    (message,) = caplog.messages
    assert "train: 2 entries are not JPEG, PNG or WebP files" in message
    assert "red/more" in message


def test_a_folder_called_like_a_photo_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    (root / "train/red/x.jpg").mkdir()
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(root)).counts == [3, 2]
    assert "x.jpg is left out: Is a directory" in caplog.text


def test_a_class_name_that_cannot_be_written_down_is_refused(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    (root / "train/red").rename(root / "train" / "r\udcff")
    with pytest.raises(UserError, match="not UTF-8"):
        load_dataset(str(root))


def test_a_class_without_a_readable_photo_is_named(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 1})
    (root / "train/blue/000.png").write_text("not a photo")
    with pytest.raises(UserError, match=r"train/blue has no readable photo"):
        load_dataset(str(root))


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two"):
        load_dataset(str(write_photos(tmp_path, {"red": 3})))


def test_a_held_out_class_that_is_not_trained_is_named(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 2, "green": 2, "blue": 2}, ("train", "test"))
    for path in (root / "train/blue").iterdir():
        path.unlink()
    (root / "train/blue").rmdir()
    with pytest.raises(UserError, match="test/blue has photos of a class that train/ lacks"):
        load_dataset(str(root))


def test_a_folder_without_train_names_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder train/: .*wardrobe-lt"):
        load_dataset(str(tmp_path))


def test_underscores_in_folder_names_are_spaces_to_a_reader() -> None:
    assert class_name("polo_shirt") == "polo shirt"


def test_the_sample_set_has_its_long_tail() -> None:
    dataset = load_dataset("wardrobe-lt")
    groups = [Thresholds().group(count) for count in dataset.counts]
    assert [groups.count(group) for group in ("many", "medium", "few")] == [5, 6, 6]
    assert (dataset.counts[0], dataset.counts[-1]) == (300, 5)
    assert dataset.test is not None
    assert dataset.val is not None
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (1303, 166, 332)


def test_a_sample_set_is_unpacked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = unpack_sample("wardrobe-lt")
    assert (folder / "train/t-shirt/0000.jpg").is_file()
    (folder / "mark").touch()
    assert unpack_sample("wardrobe-lt") == folder
    assert (folder / "mark").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["wardrobe-lt"]


def test_a_folder_of_ones_own_comes_before_a_sample_set_of_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_photos(tmp_path / "wardrobe-lt", {"red": 3, "blue": 2})
    monkeypatch.chdir(tmp_path)
    assert load_dataset("wardrobe-lt").classes == ("red", "blue")
