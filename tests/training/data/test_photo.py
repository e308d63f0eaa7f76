from pathlib import Path

import pytest

from taillift.models.bundle.schema import Preprocessing
from taillift.models.errors import UserError
from taillift.training.data.photo import StoredPhoto
from taillift.training.data.split import Split
from taillift.training.fit.inputs import evaluation_photos
from tests.support.tiny import COLOURS, write_photo


def test_a_part_of_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"0123456789")
    photo = StoredPhoto(tmp_path, "shard", size=3, changed=0, start=4, member="a.jpg")
    assert photo.read() == b"456"
    assert photo.name == "shard/a.jpg"


def test_a_file_that_went_away_or_shrank_is_named(tmp_path: Path) -> None:
    photo = StoredPhoto(tmp_path, "red/a.png", size=30, changed=0)
    with pytest.raises(UserError, match=r"red/a\.png cannot be read \(No such file"):
        photo.read()
    (tmp_path / "red").mkdir()
    (tmp_path / "red/a.png").write_bytes(b"short")
    with pytest.raises(UserError, match=r"red/a\.png is shorter than it was"):
        photo.read()


def test_a_photo_that_broke_since_it_was_checked_is_named_when_its_turn_comes(
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
    with pytest.raises(UserError, match=f"^{tmp_path}/b.png: .*; mend it, or remove it"):
        list(inputs.batches([(0, 0), (1, 0)], 1))
