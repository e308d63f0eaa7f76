"""Tests of the check for unusable and duplicate photos."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from taillift.models.errors import UserError
from taillift.training.data import check
from taillift.training.data.dataset import load_dataset
from taillift.training.data.photo import StoredPhoto
from taillift.training.data.survey import survey
from tests.support.tiny import COLOURS, write_photo, write_photos


def test_a_corrupt_photo_is_left_out_with_a_warning_that_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    broken = root / "train/red/001.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(str(root))
    assert dataset.counts == [2, 2]
    assert "train/red/001.png" not in [photo.name for photo in dataset.train.photos]
    (message,) = caplog.messages
    assert str(broken) in message
    assert "cannot be decoded" in message


def test_only_the_first_of_many_corrupt_photos_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_photos(tmp_path, {"red": 1, "blue": 2})
    for index in range(25):
        (root / f"train/red/bad-{index:02}.png").write_text("not a photo")
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(root)).counts == [2, 1]
    assert len(caplog.messages) == 11
    assert caplog.messages[-1] == "15 more photos are left out for such reasons"


def test_a_class_without_a_readable_photo_is_named(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 1})
    (root / "train/blue/000.png").write_text("not a photo")
    with pytest.raises(UserError, match="class 'blue' has no readable training photo"):
        load_dataset(str(root))


def test_a_split_without_a_readable_photo_is_named(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 1})
    (root / "val").mkdir()
    with pytest.raises(UserError, match="the split val has no readable photo"):
        load_dataset(str(root))


def test_a_photo_in_two_splits_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed, name in enumerate("ab"):
        write_photo(tmp_path / f"{name}.png", COLOURS["red"], seed=seed)
    table = tmp_path / "x.csv"
    table.write_text("path,label,split\na.png,x,train\nb.png,y,train\nb.png,y,test\n")
    with caplog.at_level(logging.WARNING):
        load_dataset(str(table))
    (message,) = caplog.messages
    assert "1 photos are in two splits, such as" in message
    assert "b.png" in message


@pytest.mark.parametrize(
    ("copy", "warning"),
    [
        ("test/red/copied.png", "1 photos are in two splits, such as"),
        ("train/blue/copied.png", "1 photos are of two classes, such as"),
    ],
)
def test_a_duplicate_under_another_name_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, copy: str, warning: str
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    (root / copy).parent.mkdir(parents=True, exist_ok=True)
    (root / copy).write_bytes((root / "train/red/001.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        load_dataset(str(root))
    (message,) = caplog.messages
    assert warning in message
    assert copy in message
    assert "train/red/001.png" in message


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_photo_that_is_there_again_in_its_class_and_split_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2}, ("train", "test"))
    for name in ("copy.png", "another.jpg", "third.webp"):
        shutil.copy(root / split / "red/001.png", root / split / "red" / name)
    with caplog.at_level(logging.WARNING):
        load_dataset(str(root))
    (message,) = caplog.messages
    assert "3 photos are there again in their class and split, such as" in message
    assert f"{split}/red/" in message


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_copy_without_its_metadata_is_a_copy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Services and messengers remove where a photo was taken, and leave its pixels."""
    root = write_photos(tmp_path / "photos", {"red": 3, "blue": 2})
    write_photo(tmp_path / "other.png", COLOURS["red"], seed=99)
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "camera"
    with Image.open(tmp_path / "other.png") as image:
        image.save(root / f"train/red/with.{kind}", exif=exif)
        image.save(root / f"train/red/without.{kind}")
    with caplog.at_level(logging.WARNING):
        load_dataset(str(root))
    (message,) = caplog.messages
    assert "1 photos are there again in their class and split, such as" in message
    assert f"without.{kind}" in message


def test_the_groups_count_a_photo_of_a_class_once(tmp_path: Path) -> None:
    """19 photos are few-shot, and stay so with two of them copied or listed again."""
    root = write_photos(tmp_path, {"red": 21, "blue": 19, "green": 20})
    for name in ("a.png", "b.png", "c.png"):
        shutil.copy(root / "train/blue/001.png", root / "train/blue" / name)
    dataset = load_dataset(str(root))
    assert (dataset.classes, dataset.counts) == (("blue", "red", "green"), [22, 21, 20])
    assert dataset.groups == ["few", "medium", "medium"]
    rows = [f"train/{name}/{n:03}.png,{name}" for name in ("red", "blue") for n in range(19)]
    table = tmp_path / "x.csv"
    table.write_text("\n".join(["path,label", *rows, *rows[:2]]))
    dataset = load_dataset(str(table))
    assert (dataset.counts, dataset.groups) == ([21, 19], ["few", "few"])


def test_the_groups_are_counted_after_a_cut_to_a_long_tail(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 40, "blue": 40})
    for index in range(30):
        shutil.copy(root / "train/red/001.png", root / f"train/red/copy{index}.png")
    dataset = load_dataset(str(root), imbalance=2)
    assert dataset.counts == [70, 35]
    assert dataset.groups == ["medium", "medium"]
    assert len(dataset.train.contents) == 105


@pytest.fixture
def cached_when_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the check use the cache for small sets, too."""
    monkeypatch.setattr(check, "LEAST_CACHED", 1)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the photos that the check decoded, in this order."""
    names: list[str] = []
    real = check.inspect_photo

    def spy(photo: StoredPhoto, max_pixels: int) -> int | str:
        names.append(photo.name)
        if photo.name == "train/stop":
            raise KeyboardInterrupt
        return real(photo, max_pixels)

    monkeypatch.setattr(check, "inspect_photo", spy)
    return names


def stored(root: Path, files: Sequence[str]) -> list[StoredPhoto]:
    photos = []
    for file in files:
        status = (root / file).stat()
        photos.append(StoredPhoto(root, file, status.st_size, status.st_mtime_ns))
    return photos


@pytest.mark.usefixtures("cached_when_small")
def test_only_changed_and_failed_photos_are_decoded_again(
    tmp_path: Path, decoded: list[str]
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    (root / "train/red/bad.png").write_text("not a photo")
    load_dataset(str(root))
    assert len(decoded) == 6
    decoded.clear()
    write_photo(root / "train/blue/001.png", COLOURS["blue"], seed=9)
    load_dataset(str(root))
    assert sorted(decoded) == ["train/blue/001.png", "train/red/bad.png"]


@pytest.mark.usefixtures("cached_when_small")
def test_an_interrupted_check_continues_where_it_stopped(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "CHUNK", 2)
    root = write_photos(tmp_path, {"red": 3})
    (root / "train/stop").touch()
    files = [f"train/red/{index:03}.png" for index in range(3)]
    cached = tmp_path / "cached.npy"
    with pytest.raises(KeyboardInterrupt):
        check.content_digests(stored(root, [*files[:2], "train/stop"]), cached)
    decoded.clear()
    assert len(check.content_digests(stored(root, files), cached)) == len(files)
    assert decoded == files[2:]


def test_a_small_set_leaves_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    load_dataset(str(write_photos(tmp_path, {"red": 3, "blue": 2})))
    assert not cache.exists()


@pytest.mark.usefixtures("cached_when_small")
def test_a_cache_that_cannot_be_read_or_written_stops_nothing(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    load_dataset(str(root))
    (cached,) = (cache / "seen").iterdir()
    cached.write_bytes(cached.read_bytes()[:-3])
    assert load_dataset(str(root)).counts == [3, 2]
    cached.unlink()
    (cache / "seen").rmdir()
    (cache / "seen").touch()
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(root)).counts == [3, 2]
    assert "the work is repeated next time" in caplog.text


def test_the_largest_photo_is_the_users_choice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    Image.new("RGB", (100, 90)).save(root / "train/red/large.png")
    assert load_dataset(str(root), max_pixels=9_000).counts == [4, 2]
    assert load_dataset(str(root), max_pixels=9_000).train.max_pixels == 9_000
    assert not caplog.records
    assert load_dataset(str(root), max_pixels=8_999).counts == [3, 2]
    assert "large.png is left out: the image has 100 x 90 pixels, more than the 8,999" in (
        caplog.text
    )
    unreadable = survey(str(root), 8_999).unreadable
    assert [(one.words, one.count) for one in unreadable] == [("too many pixels", 1)]
