"""Tests that a bundle is whole, or is refused with one line that names the fault."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final
from zipfile import ZIP_BZIP2, ZIP_LZMA, ZipFile

import numpy as np
import pytest

from taillift.models.bundle import folder
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble, ImageOutputs
from taillift.models.bundle.folder import (
    MAX_ARRAYS,
    content_version,
    new_bundle,
    read_golden,
    read_manifest,
    upgrade,
    verify_files,
    write_golden,
)
from taillift.models.errors import UserError
from tests.support.palette import (
    make_first_schema,
    palette_manifest,
    write_bundle,
    write_confusion,
)
from tests.support.wardrobe import DEMO


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "copy")


def refusal(bundle: Path) -> str:
    """Return the one line that the folder is refused with."""
    with pytest.raises(UserError) as caught:
        verify_files(bundle, read_manifest(bundle))
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
            return bundle.finish(partial(palette_manifest, "")).version

    assert version("a", "one") == version("b", "one") != version("c", "two")


def test_golden_views_come_back_as_written(bundle: Path) -> None:
    pixels, logits = read_golden(bundle)
    assert (pixels.shape, logits.shape) == ((7, 8, 8, 3), (7, 7))


def test_a_path_that_is_not_a_bundle_is_told_what_it_is(tmp_path: Path) -> None:
    assert "is not a bundle (it has no manifest.json): make one" in refusal(tmp_path)
    assert "nowhere is not a bundle (it does not exist)" in refusal(tmp_path / "nowhere")
    checkpoint, store = tmp_path / "lift-0.safetensors", tmp_path / "store"
    checkpoint.write_bytes(b"")
    assert f"pass it to `taillift export {checkpoint} PHOTOS`" in refusal(checkpoint)
    (store / "versions").mkdir(parents=True)
    assert "is not a bundle (it is a store): serve it with --store" in refusal(store)


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
    make_first_schema(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["golden.npz"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert f"says version {manifest['version']} and lists the files of version" in refusal(copy)


Document = dict[str, Any]


def exchange_two_labels(document: Document) -> None:
    first, second = document["classes"][:2]
    first["label"], second["label"] = second["label"], first["label"]


def change_a_temperature(document: Document) -> None:
    document["variants"]["fp32"]["calibration"]["full"]["pooled"] = 1.5


def change_a_prior(document: Document) -> None:
    document["classes"][0]["prior"] += 0.01


def change_a_hash(document: Document) -> None:
    document["files"]["golden.npz"]["sha256"] = "0" * 64


def change_a_lead(document: Document) -> None:
    document["variants"]["fp32"]["exit"]["leads"] = [4.9]


def change_the_size(document: Document) -> None:
    document["preprocessing"]["expand"] += 1


def call_it_first_schema(document: Document) -> None:
    document["schema_version"] = 1


@pytest.mark.parametrize(
    "change",
    [
        exchange_two_labels,
        change_a_temperature,
        change_a_prior,
        change_a_hash,
        change_a_lead,
        change_the_size,
        call_it_first_schema,
    ],
)
def test_whatever_is_changed_in_a_manifest_is_refused(
    copy: Path, change: Callable[[Document], None]
) -> None:
    document = json.loads((copy / "manifest.json").read_text())
    change(document)
    (copy / "manifest.json").write_text(json.dumps(document))
    assert f"says version {document['version']} and " in refusal(copy)


def test_a_manifest_may_be_formatted_anew(copy: Path) -> None:
    document = json.loads((copy / "manifest.json").read_text())
    text = json.dumps(dict(reversed(document.items())), indent=7)
    (copy / "manifest.json").write_text(text)
    assert read_manifest(copy).version == document["version"]


def test_a_bundle_of_the_first_schema_is_read_with_one_line(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_first_schema(copy)
    manifest = read_manifest(copy)
    verify_files(copy, read_manifest(copy))
    assert (manifest.schema_version, manifest.version) == (1, content_version(manifest.files))
    (line,) = caplog.messages
    assert "does not cover the manifest" in line
    assert "taillift upgrade-bundle" in line


def test_an_upgrade_in_place_changes_the_manifest_alone(copy: Path) -> None:
    second = read_manifest(copy)
    make_first_schema(copy)
    (copy / "manifest.json").chmod(0o640)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    upgraded = upgrade(copy)
    after = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert upgraded == read_manifest(copy) == second
    assert {name for name in after if after[name] != before.get(name)} == {"manifest.json"}
    assert before.keys() == after.keys()
    assert (copy / "manifest.json").stat().st_mode & 0o777 == 0o640


def test_an_upgrade_of_a_copy_leaves_the_bundle_as_it_was(copy: Path, tmp_path: Path) -> None:
    write_confusion(copy, {})
    (copy / "note.txt").write_text("nobody lists this file")
    first = make_first_schema(copy)
    upgraded = upgrade(copy, tmp_path / "new")
    assert read_manifest(copy) == first
    assert upgraded == read_manifest(tmp_path / "new")
    verify_files(tmp_path / "new", upgraded)
    assert upgraded.files == first.files
    assert (upgraded.schema_version, upgraded.version != first.version) == (2, True)
    with pytest.raises(UserError, match="exists already"):
        upgrade(copy, tmp_path / "new")


def test_what_cannot_be_upgraded_is_one_line_and_stays(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is of schema 2 already: use it as it is"):
        upgrade(copy)
    make_first_schema(copy)
    before = (copy / "manifest.json").read_bytes()
    (copy / "golden.npz").write_bytes(b"other")
    for target in (None, tmp_path / "new"):
        with pytest.raises(UserError, match=r"golden\.npz is not the file that the manifest lists"):
            upgrade(copy, target)
    assert (copy / "manifest.json").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_the_demo_bundle_is_read_and_upgraded(tmp_path: Path) -> None:
    with tarfile.open(DEMO) as archive:
        archive.extractall(tmp_path / "demo", filter="data")
    classifier = Classifier.open(tmp_path / "demo")
    assert classifier.manifest.version == "094fa30b5c34"
    before = classifier.predictor.predict(golden_outputs(classifier), Ensemble.OFF)
    upgrade(tmp_path / "demo")
    classifier = Classifier.open(tmp_path / "demo")
    after = classifier.predictor.predict(golden_outputs(classifier), Ensemble.OFF)
    assert classifier.manifest.version != "094fa30b5c34"
    np.testing.assert_array_equal(before.requested, after.requested)


def golden_outputs(classifier: Classifier) -> ImageOutputs:
    pixels = np.zeros((1, *[classifier.manifest.preprocessing.size] * 2, 3), np.uint8)
    logits, features = classifier.run(pixels)
    return ImageOutputs(logits[0], features[0], 1)


Place = tuple[str | int, ...]
EXIT: Final[Place] = ("variants", "fp32", "exit")
CALIBRATION: Final[Place] = ("variants", "fp32", "calibration")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("classes", 2, "prior"), -0.1),
        (("classes", 2, "prior"), 0),
        (("classes", 0, "prior"), 1e-300),
        (("classes", 2, "prior"), 7),
        (("classes", 1, "count"), -5),
        (("classes", 1, "count"), 2.5),
        (("classes", 1, "count"), 10**30),
        (("classes", 3, "accuracy", "full"), 101),
        (("classes", 3, "accuracy", "single"), -1),
        ((*CALIBRATION, "off", "pooled"), 0.001),
        ((*CALIBRATION, "full", "pooled"), 1e9),
        ((*CALIBRATION, "images"), -1),
        ((*EXIT, "leads", 0), -3),
        ((*EXIT, "mean_views"), 0.5),
        ((*EXIT, "mean_views"), 6),
        ((*EXIT, "images"), 1.5),
        ((*EXIT, "disagreement"), 100.5),
        ((*EXIT, "overall", "bound"), 1_000),
        (("preprocessing", "size"), 10**9),
        (("preprocessing", "expand"), -1),
        (("preprocessing", "std", 1), 0),
        (("preprocessing", "std", 2), -1),
        (("preprocessing", "mean", 0), 124),
        (("method", "trainable_parameters"), -1),
        (("thresholds", "few"), -1),
        (("files", "golden.npz", "size"), -1),
    ],
)
def test_a_number_out_of_its_range_is_named(copy: Path, place: Place, value: float) -> None:
    document = json.loads((copy / "manifest.json").read_text())
    entry: Any = document
    for part in place[:-1]:
        entry = entry[part]
    entry[place[-1]] = value
    (copy / "manifest.json").write_text(json.dumps(document))
    where = ".".join(map(str, place))
    assert f"manifest.json is not valid at {where} (Input should be" in refusal(copy)


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_priors_that_are_no_shares_are_refused(copy: Path, share: float) -> None:
    document = json.loads((copy / "manifest.json").read_text())
    for info in document["classes"]:
        info["prior"] = share
    (copy / "manifest.json").write_text(json.dumps(document))
    assert f"at classes (the priors add up to {7 * share:.6g} instead of 1)" in refusal(copy)


def test_thresholds_in_the_wrong_order_are_refused(copy: Path) -> None:
    document = json.loads((copy / "manifest.json").read_text())
    document["thresholds"] = {"many": 20, "few": 100}
    (copy / "manifest.json").write_text(json.dumps(document))
    assert "at thresholds (few=100 is more than many=20)" in refusal(copy)


def test_a_manifest_of_many_megabytes_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MAX_MANIFEST", 1_000)
    assert "manifest.json has more than 1,000 bytes" in refusal(copy)


@pytest.mark.parametrize(
    ("variants", "name"),
    [
        ({"fp32": {}, "int8": {}}, "model.int8.onnx"),
        ({"fp32": {}, "fp16": {}}, "model.fp16.onnx"),
        (
            {
                "fp32": {
                    "sets": {
                        "interpolation": {"pull": 1},
                        "photos": 0,
                        "reach": {},
                        "data": "none",
                    }
                }
            },
            "calibration.fp32.npz",
        ),
    ],
)
def test_a_file_that_is_used_has_to_be_listed(
    copy: Path, variants: dict[str, object], name: str
) -> None:
    document = json.loads((copy / "manifest.json").read_text())
    document["variants"] = variants
    (copy / "manifest.json").write_text(json.dumps(document))
    assert f"manifest.json does not list {name}: export the bundle again" in refusal(copy)


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


def golden_refusal(bundle: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_golden(bundle)
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
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1048576, 1048576, 64), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (9, 9, 9, 9), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '|u1', 'shape': ",
    ],
)
def test_golden_views_with_a_wrong_header_are_one_line(copy: Path, header: str) -> None:
    size = (len(header) + 1).to_bytes(2, "little")
    with ZipFile(copy / "golden.npz", "w") as archive:
        for name in ("pixels", "fp32"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + size + header.encode() + b"\n")
    assert "golden.npz is damaged" in golden_refusal(copy)


@pytest.mark.parametrize("method", [ZIP_LZMA, ZIP_BZIP2])
def test_golden_views_that_were_packed_otherwise_and_damaged_are_one_line(
    copy: Path, method: int
) -> None:
    with ZipFile(copy / "golden.npz", "w", method) as archive:
        for name in ("pixels", "fp32"):
            archive.writestr(f"{name}.npy", bytes(10_000))
    data = bytearray((copy / "golden.npz").read_bytes())
    data[60:80] = bytes(20)
    (copy / "golden.npz").write_bytes(data)
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


def test_a_listed_file_outside_the_folder_is_refused_before_it_is_read(copy: Path) -> None:
    manifest = read_manifest(copy)
    record = manifest.files["golden.npz"]
    for name in ("../outside", "/etc/hostname", "a\0b"):
        other = manifest.model_copy(update={"files": {**manifest.files, name: record}})
        with pytest.raises(UserError, match="which is outside the folder"):
            verify_files(copy, other)


@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e999"])
def test_a_number_that_is_not_finite_is_refused(copy: Path, number: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["classes"][0]["prior"] = "NUMBER"
    text = json.dumps(manifest).replace('"NUMBER"', number)
    (copy / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json is not valid at"):
        read_manifest(copy)


def test_arrays_that_unpack_to_too_much_are_refused_before_they_are(tmp_path: Path) -> None:
    pixels = np.zeros((MAX_ARRAYS // 2**20 + 1, 1, 1, 2**20), np.uint8)
    write_golden(tmp_path, pixels, np.zeros((len(pixels), 2), np.float32))
    assert (tmp_path / "golden.npz").stat().st_size < 2**20
    with pytest.raises(UserError, match="more than 268,435,456"):
        read_golden(tmp_path)
