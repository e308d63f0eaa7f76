"""Tests that a bundle is whole, or is refused with one line that names the fault."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from taillift.models.bundle.folder import (
    new_bundle,
    read_golden,
    read_manifest,
    verify_files,
    write_golden,
)
from taillift.models.errors import UserError
from tests.support.palette import palette_manifest, write_bundle


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "copy")


def refusal(folder: Path) -> str:
    """Return the one line that the folder is refused with."""
    with pytest.raises(UserError) as caught:
        verify_files(folder, read_manifest(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bundle_lists_every_file_and_is_whole(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    assert set(manifest.files) == {"model.onnx", "golden.npz"}
    assert manifest.files["model.onnx"].size == (bundle / "model.onnx").stat().st_size


def test_the_version_is_that_of_the_contents(tmp_path: Path) -> None:
    def version(name: str, text: str) -> str:
        with new_bundle(tmp_path / name) as bundle:
            (bundle.path / "report").mkdir()
            (bundle.path / "report" / "note.txt").write_text(text)
            bundle.finish(palette_manifest)
        return read_manifest(tmp_path / name).version

    assert version("a", "one") == version("b", "one") != version("c", "two")


def test_golden_views_come_back_as_written(bundle: Path) -> None:
    pixels, logits = read_golden(bundle)
    assert (pixels.shape, logits.shape) == ((7, 8, 8, 3), (7, 7))


def test_a_folder_without_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    assert "is not a bundle" in refusal(tmp_path)
    assert "is not a bundle" in refusal(tmp_path / "nowhere")


def test_an_altered_file_is_named(copy: Path) -> None:
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(data)
    assert "model.onnx is not the file that the manifest lists" in refusal(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "golden.npz").unlink()
    assert "golden.npz is missing" in refusal(copy)


def test_a_manifest_that_does_not_list_the_model_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["files"]["model.onnx"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "does not list model.onnx" in refusal(copy)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"{}", "name"),
        (b"not json", "the file"),
        (b"\xff\xfe{}", "the file"),
        (b'{"schema_version": 9}', "schema_version"),
        (
            b'{"name": "a", "version": "b", "taillift_version": "c", "backbone": {}}',
            "backbone.architecture",
        ),
    ],
)
def test_an_invalid_manifest_is_named_with_its_place(copy: Path, text: bytes, where: str) -> None:
    (copy / "manifest.json").write_bytes(text)
    assert refusal(copy).startswith(f"{copy}/manifest.json is not valid at {where} (")


def test_a_version_that_is_not_that_of_the_files_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["golden.npz"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert f"says version {manifest['version']} and lists the files of version" in refusal(copy)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "golden.npz", "."])
def test_a_file_that_may_not_be_read_is_named_with_the_remedy(copy: Path, name: str) -> None:
    (copy / name).chmod(0)
    copy.parent.chmod(0o755)
    code = (
        "import os; from pathlib import Path\n"
        "from taillift.models.errors import UserError\n"
        "from taillift.models.bundle.folder import read_manifest, verify_files\n"
        "if os.geteuid() == 0: os.setuid(10001)\n"  # Root may read everything.
        "try: verify_files(Path('copy'), read_manifest(Path('copy')))\n"
        "except UserError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command, cwd=copy.parent, env=environment, capture_output=True, text=True, check=True
    )
    unreadable = "manifest.json" if name == "." else name
    assert run.stdout.startswith(f"copy/{unreadable} may not be read by this user: run `chmod -R ")
    assert run.stdout.count("\n") == 1


def test_a_manifest_that_is_a_folder_is_one_line(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").mkdir()
    assert "manifest.json cannot be read (Is a directory)" in refusal(copy)


def golden_refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_golden(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("cut", [0, 3, 100, -30])
def test_damaged_golden_views_are_one_line(copy: Path, cut: int) -> None:
    whole = (copy / "golden.npz").read_bytes()
    (copy / "golden.npz").write_bytes(whole[:cut])
    assert "golden.npz is damaged" in golden_refusal(copy)


def test_golden_views_that_break_within_are_one_line(copy: Path) -> None:
    data = bytearray((copy / "golden.npz").read_bytes())
    data[60:90] = bytes(30)
    (copy / "golden.npz").write_bytes(data)
    assert "golden.npz is damaged" in golden_refusal(copy)


def test_golden_views_without_logits_are_one_line(copy: Path) -> None:
    np.savez(copy / "golden.npz", pixels=np.zeros((1, 8, 8, 3), np.uint8))
    assert "golden.npz is damaged" in golden_refusal(copy)


@pytest.mark.parametrize(
    ("pixels", "logits"),
    [
        (np.zeros((2, 8, 8, 3), "u1"), np.zeros((3, 7), "f4")),
        (np.zeros((0, 8, 8, 3), "u1"), np.zeros((0, 7), "f4")),
        (np.zeros((2, 8, 8, 3), "f4"), np.zeros((2, 7), "f4")),
        (np.zeros((2, 8, 8), "u1"), np.zeros((2, 7), "f4")),
        (np.zeros((2, 8, 8, 3), "u1"), np.zeros(2, "f4")),
    ],
)
def test_golden_views_of_another_shape_are_one_line(
    copy: Path, pixels: np.ndarray, logits: np.ndarray
) -> None:
    write_golden(copy, pixels, logits)
    assert "not uint8 [N, S, S, 3] and float32 [N, C]" in golden_refusal(copy)


def test_an_existing_bundle_is_not_overwritten_by_accident(bundle: Path) -> None:
    before = read_manifest(bundle)
    with pytest.raises(UserError, match="exists already: choose another name or pass --replace"):
        write_bundle(bundle)
    assert read_manifest(bundle) == before
