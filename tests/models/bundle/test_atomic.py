"""Tests that files and folders appear whole or not at all."""

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from taillift.models.bundle.atomic import atomic_file, atomic_folder, require_writable, swap
from taillift.models.bundle.folder import BundleBuilder, new_bundle
from taillift.models.bundle.manifest import FileRecord, Manifest
from taillift.models.errors import UserError
from tests.support.palette import palette_manifest


def half_a_file(target: Path) -> None:
    with atomic_file(target) as path:
        path.write_text("half")
        raise KeyError


def half_a_folder(target: Path) -> None:
    with atomic_folder(target) as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    with atomic_file(target) as path:
        path.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(KeyError):
        half_a_file(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_block_that_raises_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        half_a_folder(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def write_folder(target: Path, name: str, replace: str | None = "mark") -> None:
    with atomic_folder(target, replace) as folder:
        (folder / "mark").touch()
        (folder / name).touch()


def test_what_cannot_be_read_meanwhile_is_not_said_of_what_is_written(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "photo.jpg"
    target = tmp_path / "here" / "bundle"
    with pytest.raises(UserError) as caught, atomic_folder(target):
        elsewhere.read_bytes()
    assert str(caught.value) == (
        f"{elsewhere} cannot be used (No such file or directory): {target} was not written"
    )


def test_what_is_written_is_known_by_a_relative_name_and_by_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = tmp_path / "here" / "bundle" / "model.onnx"
    with pytest.raises(UserError, match="the disk is full"), atomic_folder(Path("here/bundle")):
        raise OSError(errno.ENOSPC, "No space left on device", str(inside))


def test_a_replaced_folder_is_the_new_one_alone(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for name in ("old", "new"):
        write_folder(target, name)
    assert sorted(path.name for path in target.iterdir()) == ["mark", "new"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_of_another_kind_is_never_replaced(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "mine.jpg").touch()
    with pytest.raises(UserError, match="has no mark and is not replaced"):
        write_folder(photos, "new")
    with pytest.raises(UserError, match="exists already"):
        write_folder(photos, "new", replace=None)
    assert [path.name for path in photos.iterdir()] == ["mine.jpg"]


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "bundle"

    def late() -> None:
        with atomic_folder(target) as folder:
            (folder / "late").touch()
            write_folder(target, "first", replace=None)

    with pytest.raises(UserError, match="exists already"):
        late()
    assert (target / "first").exists()
    assert list(tmp_path.iterdir()) == [target]


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    write_folder(target, "old")
    with pytest.raises(FileNotFoundError):
        swap(tmp_path / "vanished", target, tmp_path / "aside")
    assert (target / "old").exists()
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run\.safetensors cannot be written: File exists"):
        require_writable(tmp_path / "file" / "run.safetensors")
    with pytest.raises(UserError, match="is a folder: name a file"):
        require_writable(tmp_path)
    require_writable(tmp_path / "new" / "run.safetensors")


def fill(
    bundle: BundleBuilder,
    size: int,
    make_manifest: Callable[[dict[str, FileRecord]], Manifest],
) -> None:
    """Finish a bundle whose model has `size` bytes."""
    (bundle.path / "model.onnx").write_bytes(bytes(size))
    bundle.finish(make_manifest)


def test_a_manifest_that_cannot_be_made_leaves_no_bundle(tmp_path: Path) -> None:
    def manifest(files: dict[str, FileRecord]) -> Manifest:
        raise ValueError(files)

    with pytest.raises(ValueError, match="model"), new_bundle(tmp_path / "b") as bundle:
        fill(bundle, 0, manifest)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="was not finished"),
        new_bundle(tmp_path / "bundle") as bundle,
    ):
        (bundle.path / "model.onnx").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk: Path) -> None:
    with (
        pytest.raises(UserError, match=r"the disk is full \(0 MB free\) while writing .*: free"),
        new_bundle(small_disk / "bundle") as bundle,
    ):
        fill(bundle, 2**20, partial(palette_manifest, ""))
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(small_disk: Path) -> None:
    target = small_disk / "checkpoint"
    target.write_text("old")
    with pytest.raises(UserError, match="the disk is full"), atomic_file(target) as path:
        path.write_bytes(bytes(2**20))
    assert target.read_text() == "old"
    assert list(small_disk.iterdir()) == [target]
