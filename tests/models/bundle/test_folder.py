"""A bundle is whole or refused, and what is refused is named in one line."""

import json
import shutil
from pathlib import Path

import pytest
from palette import palette_manifest, write_bundle

from models import UserError
from models.bundle.folder import new_bundle, read_golden, read_manifest, verify_files


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "copy")


def refusal(folder: Path) -> str:
    """The one line that the folder is refused with."""
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
        with new_bundle(tmp_path / name, palette_manifest) as folder:
            (folder / "report").mkdir()
            (folder / "report" / "note.txt").write_text(text)
        return read_manifest(tmp_path / name).version

    assert version("a", "one") == version("b", "one") != version("c", "two")


def test_golden_views_come_back_as_written(bundle: Path) -> None:
    pixels, logits = read_golden(bundle)
    assert (pixels.shape, logits.shape) == ((7, 8, 8, 3), (7, 7))


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert "is no bundle" in refusal(tmp_path)
    assert "is no bundle" in refusal(tmp_path / "nowhere")


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
    ("text", "where"), [("{}", "name"), ("not json", "the file"), ('{"schema_version": 9}', "name")]
)
def test_an_invalid_manifest_is_named_with_its_place(copy: Path, text: str, where: str) -> None:
    (copy / "manifest.json").write_text(text)
    line = refusal(copy)
    assert "manifest.json is not valid at" in line
    assert where in line or "schema_version" in line


def test_an_existing_bundle_is_not_overwritten_by_accident(bundle: Path) -> None:
    before = read_manifest(bundle)
    with pytest.raises(UserError, match="exists already: choose another name or pass --replace"):
        write_bundle(bundle)
    assert read_manifest(bundle) == before
