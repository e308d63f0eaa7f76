"""Tests of the reader of WebDataset shards."""

import gzip
import io
import json
import logging
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taillift.models.errors import UserError
from taillift.training.data.dataset import load_dataset
from taillift.training.data.readers import shards
from taillift.training.data.readers.shards import expand

Members = Mapping[str, bytes]


def photo(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_set(folder: Path) -> Path:
    """Write two training shards and a test shard. Labels are numbers; green, 1, has most photos.

    A photo's brightness is a hundred times its label plus its position in the shard.
    """
    for shard, labels in (("train-000", [1, 0]), ("train-001", [1, 1, 2, 0]), ("test-0", [2])):
        members = {}
        for position, label in enumerate(labels):
            members[f"{position:03}.png"] = photo(100 * label + position)
            members[f"{position:03}.cls"] = f"{label}\n".encode()
        write_shard(folder / f"{shard}.tar", members)
    (folder / "classnames.txt").write_text("red\ngreen\nblue\n")
    return folder


def test_photos_are_read_from_their_places_in_the_shards(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_set(tmp_path / "colours")))
    assert dataset.name == "colours"
    assert dataset.classes == ("green", "red", "blue")
    assert dataset.counts == [3, 2, 1]
    assert dataset.val is None
    assert dataset.test is not None
    assert dataset.test.labels == (2,)
    levels = [
        int(np.asarray(Image.open(io.BytesIO(stored.read())))[0, 0, 0])
        for stored in dataset.train.photos
    ]
    assert levels == [100, 1, 100, 101, 202, 3]
    assert dataset.train.labels == (0, 1, 0, 0, 2, 1)
    assert str(dataset.train.photos[1]).endswith("colours/train-000.tar/001.png")


def test_a_pattern_selects_training_shards(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    dataset = load_dataset(f"{folder}/train-{{001..001}}.tar")
    assert dataset.counts == [2, 1, 1]
    assert dataset.test is not None
    with pytest.raises(UserError, match=r"train-002\.tar is missing: the pattern"):
        load_dataset(f"{folder}/train-{{000..003}}.tar")


def test_a_pattern_that_matches_no_shard_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    with pytest.raises(UserError, match=r"train-\{010\.\.000\}\.tar matches no shard"):
        load_dataset(f"{folder}/train-{{010..000}}.tar")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("{0..1}-{5..6}", ["0-5", "0-6", "1-5", "1-6"]),
    ],
)
def test_braces_stand_for_numbers(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


def test_labels_can_be_names(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "train-0.tar",
        {
            "x/a.png": photo(0),
            "x/a.json": json.dumps({"label": "deep_red"}).encode(),
            "x/a.txt": b"a caption",
            "b.PNG": photo(1),
            "b.txt": b"blue\n",
        },
    )
    dataset = load_dataset(str(tmp_path))
    assert dataset.classes == ("blue", "deep_red")
    assert dataset.names == ("blue", "deep red")
    write_shard(tmp_path / "val-0.tar", {"a.png": photo(0), "a.txt": b"blu"})
    with pytest.raises(
        UserError, match=r"val-0\.tar/a\.png: .* no class 'blu' \(did you mean \"blu"
    ):
        load_dataset(str(tmp_path))


def test_a_shard_is_indexed_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    folder = write_set(tmp_path)
    read: list[str] = []
    real = shards.read_shard

    def spy(path: Path) -> list[shards.ShardRow]:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(shards, "read_shard", spy)
    first = load_dataset(str(folder))
    assert sorted(read) == ["test-0.tar", "train-000.tar", "train-001.tar"]
    assert load_dataset(str(folder)) == first
    assert len(read) == 3
    write_shard(folder / "train-000.tar", {"a.png": photo(0), "a.cls": b"1"})
    assert load_dataset(str(folder)).counts == [3, 1, 1]
    assert read[3:] == ["train-000.tar"]
    for index in (cache / "shards").iterdir():
        index.write_text("{")
    assert load_dataset(str(folder)).counts == [3, 1, 1]
    assert len(read) == 7


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": photo(0)}, r"train-9\.tar/a has a photo and no label"),
        ({"a.png": photo(0), "b.cls": b"1"}, r"train-9\.tar/a has a photo and no label"),
        ({"a.png": photo(0), "a.cls": b"3"}, r"a\.png: there is no class 3: .* 0 to 2"),
        ({"a.png": photo(0), "a.cls": b"x"}, r"a\.png: the label 'x' is not a number"),
        ({"a.png": photo(0), "a.cls": b"\xff"}, r"train-9\.tar/a: the label cannot be read"),
        ({"a.png": photo(0), "a.json": b"{}"}, r"train-9\.tar/a: the label cannot be read"),
        ({"a.png": photo(0), "a.json": b"[1]"}, r"train-9\.tar/a: the label cannot be read"),
        ({"a.png": photo(0), "a.txt": b" \n"}, r"train-9\.tar/a: the label cannot be read"),
        *[
            (
                {"a.png": photo(0), "a.json": json.dumps({"label": label}).encode()},
                r"train-9\.tar/a: the label cannot be read",
            )
            for label in (None, True, 1.5, ["red"], {"red": 1}, "", " ")
        ],
    ],
)
def test_the_error_for_an_unusable_label_names_the_photo(
    tmp_path: Path, members: Members, message: str
) -> None:
    write_shard(write_set(tmp_path) / "train-9.tar", members)
    with pytest.raises(UserError, match=message):
        load_dataset(str(tmp_path))


def test_a_label_without_a_photo_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shard(write_set(tmp_path) / "train-9.tar", {"a.bmp": b"", "a.cls": b"1"})
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(tmp_path)).counts == [3, 2, 1]
    assert "1 keys have a label and no JPEG, PNG or WebP photo, such as a" in caplog.text


def test_numbers_without_class_names_are_refused(tmp_path: Path) -> None:
    (write_set(tmp_path) / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"classnames\.txt is missing"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("name", ["train-9.tar.gz", "train-9.tgz", "train-9.tar"])
def test_compressed_shards_are_refused(tmp_path: Path, name: str) -> None:
    folder = write_set(tmp_path)
    (folder / name).write_bytes(gzip.compress((folder / "train-000.tar").read_bytes()))
    with pytest.raises(UserError, match=f"{name} is compressed"):
        load_dataset(str(folder))


@pytest.mark.parametrize("length", [0, 100, 600, 1024 + 256, 2048, 3072])
def test_the_error_for_a_cut_shard_names_it(tmp_path: Path, length: int) -> None:
    """Two photos and two labels with their headers of 512 bytes each take 4,096 bytes."""
    path = write_set(tmp_path) / "train-000.tar"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"train-000\.tar (is not a whole tar file|ends too early)"):
        load_dataset(str(tmp_path))
