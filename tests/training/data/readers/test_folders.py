"""Tests of the reader of class folders."""

import json
import logging
import os
from pathlib import Path

import pytest

from taillift.models.errors import UserError
from taillift.training.data.dataset import load_dataset
from tests.support.tiny import write_photo, write_photos


def test_labels_are_the_folders_of_the_photos(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 2, "green": 2, "blue": 3}, ("train", "test"))
    dataset = load_dataset(str(root))
    for split in (dataset.train, dataset.test):
        assert split is not None
        labels = [dataset.classes[label] for label in split.labels]
        assert labels == [photo.name.split("/")[1] for photo in split.photos]


def test_classnames_json_gives_the_names_in_prompts(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 2, "blue": 3})
    (root / "train/red").rename(root / "train/deep_red")
    assert load_dataset(str(root)).names == ("blue", "deep red")
    (root / "classnames.json").write_text(json.dumps({"blue": "navy blue"}))
    dataset = load_dataset(str(root))
    assert dataset.classes == ("blue", "deep_red")
    assert dataset.names == ("navy blue", "deep red")


def test_two_classes_with_the_same_name_in_prompts_are_refused(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 2, "blue": 3})
    (root / "classnames.json").write_text(json.dumps({"blue": "red"}))
    with pytest.raises(UserError, match=r"classes 'blue' and 'red' are both called 'red'"):
        load_dataset(str(root))


@pytest.mark.parametrize("text", ["[1]", '{"red": 3}', '{"red": " "}', "{"])
def test_a_classnames_json_without_names_is_refused(tmp_path: Path, text: str) -> None:
    root = write_photos(tmp_path, {"red": 2, "blue": 3})
    (root / "classnames.json").write_text(text)
    with pytest.raises(UserError, match=r"classnames\.json (is not an object|cannot be read)"):
        load_dataset(str(root))


def test_files_that_are_not_photos_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    (root / "train/red/notes.txt").touch()
    (root / "train/red/more.jpg").mkdir()
    (root / "train/.cache").mkdir()
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(root)).counts == [3, 2]
    (message,) = caplog.messages
    assert "train: 2 entries are not JPEG, PNG or WebP files" in message
    assert "red/more.jpg" in message


def test_folders_that_tools_create_are_not_classes(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    (root / "train/red").rename(root / "train/@home")
    (root / "train/blue").rename(root / "train/__background__")
    for name in (".git", "@eaDir", "__MACOSX", "__pycache__"):
        (root / "train" / name).mkdir()
    dataset = load_dataset(str(root))
    assert (dataset.classes, dataset.counts) == (("@home", "__background__"), [3, 2])


def test_a_class_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    (root / "train/red").rename(root / "train" / "r\udcff")
    with pytest.raises(UserError, match="not UTF-8"):
        load_dataset(str(root))


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train has one class: at least two"):
        load_dataset(str(write_photos(tmp_path, {"red": 3})))


def test_the_error_for_an_untrained_held_out_class_suggests_a_trained_one(
    tmp_path: Path,
) -> None:
    root = write_photos(tmp_path, {"red": 2, "green": 2}, ("train", "test"))
    (root / "test/green").rename(root / "test/greens")
    with pytest.raises(
        UserError, match=r"test/greens: .*train has no class 'greens' \(did you mean \"green\"\?\)"
    ):
        load_dataset(str(root))


def test_a_class_without_held_out_photos_does_not_shift_the_others(tmp_path: Path) -> None:
    """red is only in train. blue, which follows it, keeps its index and its group."""
    root = write_photos(tmp_path, {"green": 4, "red": 3, "blue": 2}, ("train", "test"))
    for path in (root / "test/red").iterdir():
        path.unlink()
    dataset = load_dataset(str(root))
    assert dataset.classes == ("green", "red", "blue")
    assert dataset.counts == [4, 3, 2]
    assert dataset.test is not None
    assert dataset.test.labels == (2, 2, 0, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_the_error_for_a_forbidden_folder_is_one_line(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 2, "green": 2})
    (root / "train/red").chmod(0)
    with pytest.raises(UserError, match=r"train/red cannot be read \(Permission"):
        load_dataset(str(root))
    (root / "train/red").chmod(0o700)


def test_photos_of_every_format_that_is_served_are_found(tmp_path: Path) -> None:
    for suffix in ("jpg", "JPEG", "png", "webp"):
        write_photo(tmp_path / f"train/red/a.{suffix}", (200, 40, 40))
    write_photo(tmp_path / "train/blue/a.png", (40, 60, 200))
    assert load_dataset(str(tmp_path)).counts == [4, 1]
