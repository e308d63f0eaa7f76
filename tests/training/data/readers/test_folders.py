"""Tests of the reader of class folders."""

import json
import logging
import os
from pathlib import Path

import pytest

from taillift.models.errors import UserError
from taillift.training.data.dataset import load_dataset
from tests.support.tiny import COLOURS, write_photo, write_photos


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
    suffixes = ("jpg", "JPEG", "jfif", "jpe", "JFIF", "png", "webp")
    for seed, suffix in enumerate(suffixes):
        write_photo(tmp_path / f"train/red/{seed}.{suffix}", (200, 40, 40), seed)
    write_photo(tmp_path / "train/blue/a.png", (40, 60, 200))
    assert load_dataset(str(tmp_path)).counts == [len(suffixes), 1]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "valid", "testing"),
        ("Train", "validation", "Test"),
        ("training", "Val", "TEST"),
    ],
)
def test_the_folders_of_splits_have_several_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, train: str, val: str, test: str
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2}, ("train", "val", "test"))
    for old, new in (("train", train), ("val", val), ("test", test)):
        (root / old).rename(root / new)
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(str(root))
    assert dataset.counts == [3, 2]
    assert dataset.val is not None
    assert dataset.test is not None
    assert (dataset.val.photos[0].name, len(dataset.test)) == (f"{val}/blue/000.png", 4)
    assert caplog.messages == []


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2}, ("train", "val"))
    (root / "valid").mkdir()
    with pytest.raises(UserError, match="has the folders val and valid, which are both for val"):
        load_dataset(str(root))


@pytest.mark.parametrize("name", ["holdout/red/1.png", "labels.csv", "class_list.txt", "eval.json"])
def test_an_entry_that_nothing_reads_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    for other in (name, "README.md", ".DS_Store", "LICENSE"):
        (root / other).touch()
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(root)).counts == [3, 2]
    (message,) = caplog.messages
    assert message.endswith(f"1 entries are not used, such as {name.partition('/')[0]}")


def test_photos_above_and_below_the_class_folders_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2}, ("train", "test"))
    for index in range(4):
        write_photo(root / f"train/red/more/and/{index}.png", COLOURS["red"], index)
    write_photo(root / "test/loose.png", COLOURS["red"])
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(root)).counts == [3, 2]
    below, loose = caplog.messages
    assert "train: 4 photos are in folders below the class folders" in below
    assert "red/more/and/0.png" in below
    assert "test: 1 files are in no class folder and are left out, such as loose.png" in loose


def test_what_systems_put_into_class_folders_is_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    thumbnail = "@eaDir/000.png/SYNOPHOTO_THUMB_M.jpg"
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png", thumbnail):
        (root / "train/red" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "train/red" / name).touch()
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(root)).counts == [3, 2]
    assert caplog.messages == []


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_a_name_is_the_same_class_in_both_unicode_forms(tmp_path: Path) -> None:
    names = {"red": DECOMPOSED, "blue": "\u212b", "green": "\uac00"}
    forms = {"red": COMPOSED, "blue": "\u00c5", "green": "\u1100\u1161"}
    root = write_photos(tmp_path, {"red": 4, "blue": 3, "green": 2}, ("train", "test"))
    for old, new in names.items():
        (root / "train" / old).rename(root / "train" / new)
        (root / "test" / old).rename(root / "test" / forms[old])
    (root / "classnames.json").write_text(json.dumps({"\u00c5": "unit", COMPOSED: "bar"}))
    dataset = load_dataset(str(root))
    assert dataset.classes == (COMPOSED, "\u00c5", "\uac00")
    assert dataset.names == ("bar", "unit", "\uac00")
    assert dataset.test is not None
    assert sorted(dataset.test.labels) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("split", ["train", "test"])
def test_both_unicode_forms_in_one_split_are_refused(tmp_path: Path, split: str) -> None:
    root = write_photos(tmp_path, {"red": 2, "blue": 3, "green": 2}, ("train", "test"))
    (root / "train/red").rename(root / "train" / COMPOSED)
    (root / "test/red").rename(root / "test" / COMPOSED)
    (root / split / "blue").rename(root / split / DECOMPOSED)
    with pytest.raises(UserError, match=r"U\+0065 U\+0301 and U\+0063 .*U\+00E9\)") as error:
        load_dataset(str(root))
    assert f"{split} has the name 'caf\u00e9' in two Unicode forms" in str(error.value)


def test_imagenets_class_list_names_the_folders(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 4, "blue": 3, "green": 2}, ("train", "val"))
    for split in ("train", "val"):
        for old, new in (("red", "n03773504"), ("blue", "n01440764"), ("green", "n04008634")):
            (root / split / old).rename(root / split / new)
    (root / "classnames.txt").write_text(
        "n01440764 tench\nn01443537 goldfish\nn03773504 missile\nn04008634 missile\n"
    )
    dataset = load_dataset(str(root))
    assert dataset.classes == ("n03773504", "n01440764", "n04008634")
    assert dataset.names == ("missile", "tench", "missile")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("r_1 a deep red\nb_2 blue\n", ("a deep red", "blue")),
        ("r_1 red\n", ("r 1", "b 2")),
        ("something else\n", ("r 1", "b 2")),
    ],
)
def test_a_class_list_counts_if_it_names_every_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, names: tuple[str, str]
) -> None:
    root = write_photos(tmp_path, {"red": 4, "blue": 3})
    (root / "train/red").rename(root / "train/r_1")
    (root / "train/blue").rename(root / "train/b_2")
    (root / "classnames.txt").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(root)).names == names
    unused = ["such as classnames.txt" in message for message in caplog.messages]
    assert unused == ([] if names == ("a deep red", "blue") else [True])
