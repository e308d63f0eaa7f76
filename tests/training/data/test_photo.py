from pathlib import Path

import pytest
from tiny import COLOURS, write_photo

from models import UserError
from models.bundle.images import decode
from training.data.photo import StoredPhoto, naming


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


def test_a_photo_that_broke_since_it_was_checked_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_photo(path, COLOURS["red"])
    data = path.read_bytes()
    path.write_bytes(bytes(len(data)))
    photo = StoredPhoto(tmp_path, "a.png", len(data), 0)
    with pytest.raises(UserError, match=f"^{path}: .*; mend it, or remove it"), naming(photo):
        decode(photo.read(), 8)
