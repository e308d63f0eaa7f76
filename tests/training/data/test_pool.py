"""Tests of unlabelled photos: where they are read from, and which of them are left out."""

import logging
import shutil
import tarfile
from pathlib import Path

import pytest

from taillift.models.errors import UserError
from taillift.training.data.dataset import load_dataset
from taillift.training.data.pool import (
    FOREIGN,
    UNKNOWN,
    own_pool,
    read_pool,
    with_right_labels,
    with_unlabelled,
)
from taillift.training.data.survey import survey
from taillift.training.data.survey_text import survey_text
from tests.support.tiny import COLOURS, write_photo, write_photos


def write_pool(folder: Path, count: int, colour: str = "red", seed: int = 1000) -> Path:
    for index in range(count):
        write_photo(folder / f"{colour}-{index}.png", COLOURS[colour], seed + index)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", {"red": 4, "blue": 3}, ("train", "val", "test"))


def test_photos_and_shards_count_at_any_depth_and_names_mean_nothing(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    write_pool(pool / "blue/train/deep", 2)
    write_pool(pool / ".trash", 1)
    write_pool(pool / "@eaDir", 1)
    (pool / "notes.txt").write_text("not a photo")
    loose = write_pool(tmp_path / "loose", 3, "green")
    with tarfile.open(pool / "more.tar", "w") as archive:
        for path in sorted(loose.iterdir()):
            archive.add(path, path.name)
    found, truth = read_pool(str(pool))
    assert [photo.name for photo in found] == [
        *(f"more.tar/green-{index}.png" for index in range(3)),
        *(f"blue/train/deep/red-{index}.png" for index in range(2)),
    ]
    assert found[0].read() == (loose / "green-0.png").read_bytes()
    assert truth == [""] * 5
    assert [photo.name for photo in read_pool(str(pool / "more.tar"))[0]] == [
        f"more.tar/green-{index}.png" for index in range(3)
    ]


def test_a_pattern_names_shards_that_must_exist(tmp_path: Path) -> None:
    loose = write_pool(tmp_path / "loose", 2)
    for number in range(2):
        with tarfile.open(tmp_path / f"pool-{number}.tar", "w") as archive:
            archive.add(loose / f"red-{number}.png", "photo.png")
    found, _ = read_pool(str(tmp_path / "pool-{0..1}.tar"))
    assert [photo.name for photo in found] == ["pool-0.tar/photo.png", "pool-1.tar/photo.png"]
    with pytest.raises(UserError, match=r"pool-2\.tar does not exist: check --unlabelled"):
        read_pool(str(tmp_path / "pool-{0..2}.tar"))


def test_a_table_gives_the_truth_which_may_be_foreign(tmp_path: Path, photos: Path) -> None:
    write_pool(tmp_path / "pool", 2, "red")
    write_pool(tmp_path / "pool", 1, "green")
    table = tmp_path / "pool.csv"
    table.write_text("path,label\npool/red-0.png,red\npool/red-1.png,red\npool/green-0.png,green\n")
    dataset = with_unlabelled(load_dataset(str(photos)), str(table))
    assert dataset.unlabelled is not None
    assert dataset.classes[0] == "red"
    assert dataset.unlabelled.labels == (0, 0, FOREIGN)


def test_known_contents_are_left_out_with_a_count(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = write_pool(photos / "unlabelled", 3)
    shutil.copy(pool / "red-0.png", pool / "again.png")
    shutil.copy(photos / "test/red/000.png", pool / "leak-1.png")
    shutil.copy(photos / "val/blue/001.png", pool / "leak-2.png")
    shutil.copy(photos / "train/blue/001.png", pool / "known.png")
    (pool / "broken.jpg").write_bytes(b"no image")
    assert own_pool(str(photos)) == str(pool)
    assert own_pool(str(photos / "train")) == str(pool), "train/ stands for the set"
    with caplog.at_level(logging.WARNING):
        dataset = with_unlabelled(load_dataset(str(photos)), str(pool))
    assert dataset.unlabelled is not None
    names = [photo.name for photo in dataset.unlabelled.photos]
    assert names == ["again.png", "red-1.png", "red-2.png"]
    assert dataset.unlabelled.labels == (UNKNOWN,) * 3
    text = caplog.text
    assert "2 unlabelled photos are also in val or test and are left out" in text
    assert "1 unlabelled photos are also in train, with a label and are left out" in text
    assert "1 unlabelled photos are copies of another unlabelled photo" in text
    assert "broken.jpg is left out" in text

    made = survey(str(photos))
    assert not made.refusals
    assert not made.unused
    assert made.unlabelled is not None
    assert made.unlabelled.model_dump() == {
        "photos": 8,
        "readable": 7,
        "usable": 3,
        "held_out": 2,
        "labelled": 1,
        "repeated": 1,
    }
    assert "unlabelled          8         7         3 of use" in survey_text(made)
    assert any("also in val or test" in line for line in made.warnings)


def test_a_pool_without_a_new_photo_is_refused(photos: Path, tmp_path: Path) -> None:
    dataset = load_dataset(str(photos))
    copies = tmp_path / "copies"
    shutil.copytree(photos / "test", copies)
    with pytest.raises(UserError, match="has no unlabelled photo to use, of 4 that were found"):
        with_unlabelled(dataset, str(copies))
    (tmp_path / "empty").mkdir()
    for source, reason in (
        ("empty", "holds no JPEG, PNG or WebP photo"),
        ("missing", "is not a source of unlabelled photos"),
    ):
        with pytest.raises(UserError, match=reason):
            read_pool(str(tmp_path / source))
    assert survey(str(photos), unlabelled=str(tmp_path / "empty")).refusals
    (photos / "unlabelled").mkdir()
    made = survey(str(photos))
    assert not made.refusals, "training looks there only if a recipe says so"
    assert "holds no JPEG, PNG or WebP photo" in made.warnings[0]


def test_right_labels_are_drawn_by_the_seed_from_photos_of_known_class(
    tmp_path: Path, photos: Path
) -> None:
    write_pool(tmp_path / "pool", 5, "blue")
    write_pool(tmp_path / "pool", 1, "green")
    rows = [f"pool/blue-{index}.png,blue" for index in range(5)]
    table = tmp_path / "pool.csv"
    table.write_text("\n".join(["path,label", *rows, "pool/green-0.png,green"]))
    dataset = with_unlabelled(load_dataset(str(photos)), str(table))
    more = with_right_labels(dataset, 3, 0)
    assert more.unlabelled is None
    assert more.counts == [4, 6]
    assert more.train.photos[:7] == dataset.train.photos
    assert len(more.train.contents) == 10
    draws = {with_right_labels(dataset, 3, seed).train.photos for seed in range(5)}
    assert len(draws) > 1
    assert with_right_labels(dataset, None, 0).counts == [4, 8], "the foreign one is left out"
    with pytest.raises(UserError, match="right labels of 6 unlabelled photos are needed and 5 are"):
        with_right_labels(dataset, 6, 0)


def test_only_the_pools_own_fingerprint_depends_on_the_pool(photos: Path) -> None:
    plain = load_dataset(str(photos))
    pool = write_pool(photos / "unlabelled", 2)
    first = with_unlabelled(plain, str(pool))
    write_pool(pool, 1, "blue")
    second = with_unlabelled(plain, str(pool))
    assert first.fingerprint == second.fingerprint == load_dataset(str(photos)).fingerprint
    assert plain.pool_fingerprint == ""
    assert len({plain.pool_fingerprint, first.pool_fingerprint, second.pool_fingerprint}) == 3


def test_what_is_not_looked_into_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = write_pool(tmp_path / "pool", 2)
    for name in ("a.heic", "more.tar.gz", "README.md", ".DS_Store"):
        (pool / name).touch()
    (pool / "round").symlink_to(pool)
    with caplog.at_level(logging.WARNING):
        assert len(read_pool(str(pool))[0]) == 2
    link, others = caplog.messages
    assert f"1 links to folders are not followed, such as {pool / 'round'}" in link
    assert "2 files are neither JPEG, PNG or WebP nor tar, and are left out" in others
    assert others.endswith(f"such as {pool / 'a.heic'}")
