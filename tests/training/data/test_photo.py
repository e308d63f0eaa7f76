"""Tests of photos that are stored in files."""

from pathlib import Path

import pytest

from taillift.models.bundle.schema import Preprocessing
from taillift.models.errors import UserError
from taillift.training.data.photo import Split, StoredPhoto
from taillift.training.fit.inputs import evaluation_photos
from tests.support.tiny import COLOURS, write_photo


def test_a_part_of_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"0123456789")
    photo = StoredPhoto(tmp_path, "shard", size=3, changed=0, start=4, member="a.jpg")
    assert photo.read() == b"456"
    assert photo.name == "shard/a.jpg"


def test_the_error_for_a_missing_or_shrunk_file_names_it(tmp_path: Path) -> None:
    photo = StoredPhoto(tmp_path, "red/a.png", size=30, changed=0)
    with pytest.raises(UserError, match=r"red/a\.png cannot be read \(No such file"):
        photo.read()
    (tmp_path / "red").mkdir()
    (tmp_path / "red/a.png").write_bytes(b"short")
    with pytest.raises(UserError, match=r"red/a\.png has shrunk since it was listed"):
        photo.read()


def test_the_error_for_a_photo_damaged_after_the_check_names_it(
    tmp_path: Path,
) -> None:
    preprocessing = Preprocessing(
        size=8,
        expand=0,
        interpolation="bicubic",
        resize_mode="shortest",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    photos = []
    for name in ("a.png", "b.png"):
        write_photo(tmp_path / name, COLOURS["red"])
        photos.append(StoredPhoto(tmp_path, name, (tmp_path / name).stat().st_size, 0))
    inputs = evaluation_photos(Split(tuple(photos), (0, 1)), preprocessing)
    assert len(list(inputs.batches([(0, 0), (1, 0)], 1))) == 2
    (tmp_path / "b.png").write_bytes(bytes(photos[1].size))
    with pytest.raises(UserError, match=f"^{tmp_path}/b.png: .*; repair it, or remove it"):
        list(inputs.batches([(0, 0), (1, 0)], 1))
