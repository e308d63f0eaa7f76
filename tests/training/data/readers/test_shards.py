"""Tests of the reader of WebDataset shards."""

import gzip
import io
import json
import logging
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taillift.models.errors import UserError
from taillift.training.data.dataset import load_dataset
from taillift.training.data.readers import shards
from taillift.training.data.readers.shards import expand
from tests.support.tiny import write_photos

Members = Mapping[str, bytes] | Sequence[tuple[str, bytes]]


def photo(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
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

    def spy(path: Path) -> shards.ShardContent:
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


def red(key: str, level: int = 0) -> list[tuple[str, bytes]]:
    """Return a photo of the class red and its label, of one key."""
    return [(f"{key}.png", photo(level)), (f"{key}.txt", b"red")]


BLUE = [("blue.png", photo(9)), ("blue.txt", b"blue")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*red("0"), *red("1"), *red("0", 5)], r"train-0\.tar/0 comes again after other keys: two"),
        ([*red("0"), *red("0", 5)], r"train-0\.tar/0 has the member 0\.png twice: two shards"),
        (
            [("0.png", photo(1)), ("1.png", photo(2)), ("0.txt", b"red"), ("1.txt", b"red")],
            r"/0 has a photo and no label",
        ),
        ([*red("x/0"), *red("y/0", 4), *red("x/0", 5)], r"train-0\.tar/x/0 comes again"),
        (
            [("0.png", photo(1)), ("0.jpg", photo(2)), ("0.txt", b"red")],
            "photos 0.png and 0.jpg: k",
        ),
        (
            [("0.png", photo(1)), ("0.PNG", photo(2)), ("0.txt", b"red")],
            "photos 0.png and 0.PNG: k",
        ),
        ([("0.webp", photo(1)), ("0.txt", b"red"), ("0.jpeg", photo(2))], "0.webp and 0.jpeg: k"),
    ],
)
def test_a_key_with_two_photos_or_in_two_places_is_refused_with_its_name(
    tmp_path: Path, members: Members, message: str
) -> None:
    write_shard(tmp_path / "train-0.tar", [*BLUE, *members])
    with pytest.raises(UserError, match=message):
        load_dataset(str(tmp_path))


def test_shards_joined_by_tar_are_taken_if_their_keys_differ(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "train-0.tar", [*BLUE, *red("0")])
    second = write_shard(tmp_path / "second.tar", [*red("1", 5), *red("2", 6)])
    subprocess.run(["tar", "-A", "-f", first, second], check=True)
    second.unlink()
    assert load_dataset(str(tmp_path)).counts == [3, 1]
    write_shard(second, red("0", 7))
    subprocess.run(["tar", "-A", "-f", first, second], check=True)
    with pytest.raises(UserError, match=r"train-0\.tar/0 comes again after other keys"):
        load_dataset(str(tmp_path))


def test_a_second_archive_after_the_end_of_the_first_is_not_overlooked(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "train-0.tar", [*BLUE, *red("0")])
    path.write_bytes(path.read_bytes() + path.read_bytes())
    with pytest.raises(UserError, match=r"train-0\.tar has more after its end: .* by `cat`"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("members", "words", "example"),
    [
        (
            [("img.v1.png", b""), ("img.v1.json", b""), ("img.v2.png", b"")],
            "2 images",
            "img.v1.png",
        ),
        ([("0.input.jpg", b""), ("0.output.json", b"{}")], "1 images", "0.input.jpg"),
        ([("0.seg.PNG", b""), *red("1")], "1 images", "0.seg.PNG"),
        ([("0.heic", b""), ("0.txt", b"red"), ("1.tiff", b"")], "2 images", "0.heic"),
        ([*red("0"), ("0.npy", b""), ("0.json.bak", b"")], "2 other members", "0.npy"),
        (
            [("0.png", photo(2)), ("0.json", b'{"label": "red"}'), ("0.txt", b"")],
            "1 other",
            "0.txt",
        ),
    ],
)
def test_members_that_are_not_used_are_counted_and_one_is_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    members: Sequence[tuple[str, bytes]],
    words: str,
    example: str,
) -> None:
    write_shard(tmp_path / "train-0.tar", [*members, *BLUE, *red("last", 3)])
    for _ in ("first", "cached"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load_dataset(str(tmp_path))
        assert any(
            f"train-0.tar: {words}" in line and line.endswith(f"such as {example}")
            for line in caplog.messages
        ), caplog.messages


def test_a_set_without_one_plain_photo_says_what_there_is(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", {"0.input.jpg": b"", "0.output.json": b"{}"})
    with pytest.raises(
        UserError, match=r"no photo with a label.* 1 images are not.* 0\.input\.jpg"
    ):
        load_dataset(str(tmp_path))


def test_links_and_files_of_macos_in_a_shard_are_no_photos(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_shard(tmp_path / "train-0.tar", [("._0.png", b"x"), *red("0"), ("._0.txt", b"")])
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        archive.addfile(link)
        for name, content in BLUE:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(tmp_path)).counts == [1, 1]
    (message,) = caplog.messages
    assert "1 images are not used" in message
    assert message.endswith("such as 1.jpg")


@pytest.mark.parametrize(
    "names",
    [
        ("train_000", "val_000"),
        ("imagenet1k-train-0000", "imagenet1k-validation-00"),
        ("Train-1", "my.valid.07"),
        ("00-training", "00-val"),
    ],
)
def test_shards_are_found_by_the_word_in_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, str]
) -> None:
    write_shard(tmp_path / f"{names[0]}.tar", [*BLUE, *red("0")])
    write_shard(tmp_path / f"{names[1]}.tar", red("0", 5))
    write_shard(tmp_path / "train-and-val-0.tar", red("1"))
    (tmp_path / "extra").mkdir()
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(str(tmp_path))
    assert dataset.counts == [1, 1]
    assert dataset.val is not None
    assert len(dataset.val) == 1
    assert caplog.messages == [
        f"{tmp_path}: 2 entries are not used, such as extra",
    ]


def test_an_archive_of_the_class_folders_next_to_them_is_no_shard(tmp_path: Path) -> None:
    write_photos(tmp_path, {"red": 3, "blue": 2})
    write_shard(tmp_path / "train.tar", {"red/000.png": photo(0)})
    assert load_dataset(str(tmp_path)).counts == [3, 2]


def test_labels_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"

    def cafe(name: str, level: int) -> dict[str, bytes]:
        return {"cafe.png": photo(level), "cafe.txt": name.encode()}

    write_shard(tmp_path / "train-0.tar", [*BLUE, *cafe(decomposed, 1).items()])
    write_shard(tmp_path / "val-0.tar", cafe(composed, 2))
    dataset = load_dataset(str(tmp_path))
    assert dataset.classes == ("blue", composed)
    assert dataset.val is not None
    assert dataset.val.labels == (1,)
    write_shard(tmp_path / "train-1.tar", cafe(composed, 3))
    with pytest.raises(UserError, match=r"two Unicode forms, .*U\+0065 U\+0301.*U\+00E9"):
        load_dataset(str(tmp_path))


def test_names_of_members_may_have_any_bytes(tmp_path: Path) -> None:
    # A label that an editor on Windows has saved begins with a mark.
    blue = [("blue.png", photo(9)), ("blue.txt", b"\xef\xbb\xbfblue\r\n")]
    with tarfile.open(tmp_path / "train-0.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in (*red("caf\udce9"), *blue):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for _ in range(2):  # The second time from the cache.
        dataset = load_dataset(str(tmp_path))
        assert (dataset.classes, dataset.counts) == (("blue", "red"), [1, 1])
        assert any(photo.name.endswith("/caf\\xe9.png") for photo in dataset.train.photos)


def test_companions_of_files_on_macos_are_no_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", [*red("0"), *BLUE])
    (tmp_path / "._train-0.tar").write_bytes(b"\0\x05\x16\x07")
    (tmp_path / "._train-0.tar.gz").write_bytes(b"\0\x05\x16\x07")
    assert load_dataset(str(tmp_path)).counts == [1, 1]
