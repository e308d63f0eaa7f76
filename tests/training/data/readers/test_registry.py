"""Tests of the choice of a reader, and of the sample sets."""

import logging
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from taillift.models.errors import UserError
from taillift.training.data.cache import unpack_sample
from taillift.training.data.dataset import load_dataset
from tests.support.tiny import write_photos


def test_the_error_for_an_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a set of photos: .*train/CLASS.*wardrobe-lt"):
        load_dataset(str(tmp_path))
    with pytest.raises(
        UserError, match=r"/none does not exist, and it is not a sample set .*wardrobe-lt"
    ):
        load_dataset(str(tmp_path / "none"))


def test_class_folders_without_train_are_told_where_they_belong(tmp_path: Path) -> None:
    photos = write_photos(tmp_path, {"red": 3, "blue": 2}) / "train"
    for folder in (photos / "red", photos / "blue"):
        folder.rename(tmp_path / folder.name)
    photos.rmdir()
    line = rf"has photos in blue/ but no train/: .* move them into {tmp_path}/train"
    with pytest.raises(UserError, match=line):
        load_dataset(str(tmp_path))


def test_a_description_chooses_between_two_layouts(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    (root / "ImageNet_LT_train.txt").write_text("train/red/000.png 1\ntrain/blue/000.png 0\n")
    (root / "classnames.txt").write_text("blue\nred\n")
    with tarfile.open(root / "train-000.tar", "w") as archive:
        archive.add(root / "train/red/000.png", "0.png")
    with pytest.raises(UserError, match=r"holds list files .* and WebDataset .*/dataset\.yaml"):
        load_dataset(str(root))
    (root / "dataset.yaml").write_text("train: ImageNet_LT_train.txt\n")
    assert load_dataset(str(root)).counts == [1, 1]


@pytest.mark.parametrize("folder", ["train/", ""], ids=["from the set", "from train/"])
def test_lists_of_the_photos_in_class_folders_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2}, ("train", "test"))
    lines = [f"{folder}red/000.png 1", f"{folder}red/002.png 1", f"{folder}blue/001.png 0"]
    (root / "ImageNet_LT_train.txt").write_text("\n".join(lines))
    (root / "classnames.txt").write_text("blue\nred\n")
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(str(root))
    assert (dataset.classes, dataset.counts, dataset.test) == (("red", "blue"), [2, 1], None)
    assert [photo.name for photo in dataset.train.photos] == [
        "train/red/000.png",
        "train/red/002.png",
        "train/blue/001.png",
    ]
    entries, unlisted = caplog.messages
    assert "1 entries are not used, such as test" in entries
    assert "2 photos are in no list and are left out" in unlisted
    assert "train/blue/000.png" in unlisted


@pytest.mark.parametrize(
    "text", ["red/000.png\nblue/000.png\n", "x/1.png 0\n", "Take the train at nine.\n", ""]
)
def test_a_text_next_to_class_folders_that_is_no_list_of_them_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    (root / "train.txt").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(root)).counts == [3, 2]
    (message,) = caplog.messages
    assert "1 entries are not used, such as train.txt" in message


def test_without_a_home_folder_there_is_no_cache_and_no_sample_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert load_dataset(str(write_photos(tmp_path, {"red": 3, "blue": 2}))).counts == [3, 2]
    with pytest.raises(UserError, match="no home folder for the cache: set HOME, or XDG_CACHE"):
        load_dataset("wardrobe-lt")


def test_a_sample_set_is_unpacked_once(cache: Path) -> None:
    folder = unpack_sample("wardrobe-lt")
    assert cache in folder.parents
    assert (folder / "train/t-shirt/0000.jpg").is_file()
    (folder / "mark").touch()
    assert unpack_sample("wardrobe-lt") == folder
    assert (folder / "mark").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["wardrobe-lt"]


def test_a_sample_set_can_be_unpacked_several_times_at_once(cache: Path) -> None:
    together = Barrier(3)

    def unpack(_: int) -> Path:
        together.wait()
        return unpack_sample("wardrobe-lt")

    with ThreadPoolExecutor(3) as pool:
        (folder,) = set(pool.map(unpack, range(3)))
    assert cache in folder.parents
    assert [path.name for path in folder.parent.iterdir()] == ["wardrobe-lt"]
    assert len(list((folder / "train/t-shirt").iterdir())) > 0


def test_a_sample_set_that_cannot_be_unpacked_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taillift").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"wardrobe-lt cannot be written"):
        unpack_sample("wardrobe-lt")


def test_a_users_folder_comes_before_a_sample_set_of_the_same_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_photos(tmp_path / "wardrobe-lt", {"red": 3, "blue": 2})
    monkeypatch.chdir(tmp_path)
    assert load_dataset("wardrobe-lt").classes == ("red", "blue")


def test_the_train_folder_of_a_set_stands_for_the_set(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", {"red": 3, "blue": 2}, ("train", "val"))
    whole = load_dataset(str(tmp_path / "photos"))
    for source in (tmp_path / "photos/train", f"{tmp_path}/photos/train/"):
        assert load_dataset(str(source)) == whole


def test_a_set_that_is_called_train_is_itself(tmp_path: Path) -> None:
    inner = write_photos(tmp_path / "photos/train", {"red": 3, "blue": 2})
    assert load_dataset(str(inner)).name == "train"


def test_the_name_of_a_set_is_utf_8_whatever_its_folder_is_called(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "se\udcf1or", {"red": 2, "blue": 1})
    assert load_dataset(str(root)).folder == "se\\udcf1or"
