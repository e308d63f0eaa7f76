"""Classes added to a bundle and taken from it, by photos of colours."""

import json
import logging
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors import safe_open

from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.extension import extend, forget
from taillift.models.bundle.feature_statistics import FeatureStatistics
from taillift.models.bundle.folder import DELTA, MODEL, read_golden, read_manifest
from taillift.models.bundle.schema import Precision
from taillift.models.errors import UserError
from tests.support.cosine import COLOURS, WIDTH, write_colours, write_cosine_bundle
from tests.support.palette import make_first_schema
from tests.support.serving import running
from tests.support.wardrobe import DEMO

OLD = {"red": 30, "green": 22, "blue": 6}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    return write_cosine_bundle(folder / "bundle", write_colours(folder / "photos", OLD))


def constants(bundle: Path) -> dict[str, bytes]:
    graph = onnx.load(bundle / MODEL).graph
    return {one.name: numpy_helper.to_array(one).tobytes() for one in graph.initializer}


def accuracy(bundle: Path, folder: Path) -> dict[str, float]:
    """Return the share of new photos of each of the bundle's classes that are recognised."""
    classifier = Classifier.open(bundle)
    photos = write_colours(folder, dict.fromkeys(classifier.manifest.labels, 20), seed=1)
    return {
        label: float(
            np.mean([one.label == label for one in classifier.classify((photos / label).iterdir())])
        )
        for label in classifier.manifest.labels
    }


def test_new_classes_are_known_afterwards_and_the_old_ones_still_are(
    old: Path, tmp_path: Path
) -> None:
    photos = write_colours(tmp_path / "new", {"orange": 25, "grey": 4, "purple": 1})
    changed = extend(old, photos, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest == changed.manifest
    assert manifest.labels == ["red", "orange", "green", "blue", "grey", "purple"]
    assert manifest.counts == [30, 25, 22, 6, 4, 1]
    groups = ["medium", "medium", "medium", "few", "few", "few"]
    assert [info.group for info in manifest.classes] == groups
    assert sum(info.prior for info in manifest.classes) == pytest.approx(1)
    assert manifest.schema_version == 2
    found = accuracy(tmp_path / "out", tmp_path / "test")
    assert min(found.values()) >= 0.9, found
    assert read_golden(tmp_path / "out")[1].shape[1] == 6


def test_the_tower_is_the_same_to_the_bit(old: Path, tmp_path: Path) -> None:
    extend(old, write_colours(tmp_path / "new", {"orange": 3}), tmp_path / "out")
    before, after = constants(old), constants(tmp_path / "out")
    assert before.pop("head.weight") != after.pop("head.weight")
    assert before == after


def test_the_service_knows_a_new_class(old: Path, tmp_path: Path) -> None:
    photos = write_colours(tmp_path / "new", {"orange": 10})
    extend(old, photos, tmp_path / "out")
    with running(tmp_path / "out") as client:
        data = (photos / "orange" / "000.png").read_bytes()
        answer = client.post("/classify", files={"images": ("one.png", data)}).json()
        assert answer["results"][0]["predictions"][0]["label"] == "orange"


def test_calibration_and_variants_are_left_out_and_said(old: Path, tmp_path: Path) -> None:
    assert read_manifest(old).variants[Precision.FP32].calibration
    changed = extend(old, write_colours(tmp_path / "new", {"orange": 3}), tmp_path / "out")
    (variant,) = changed.manifest.variants.values()
    assert (variant.calibration, variant.exit, variant.sets, variant.review) == (None,) * 4
    assert [line.partition(":")[0] for line in changed.left_out] == [
        "int8",
        "calibration and report",
    ]
    version = read_manifest(old).version
    assert variant.notes == (f"photos of orange were added to bundle {version}", *changed.left_out)
    assert sorted(changed.manifest.files) == [DELTA, "golden.npz", MODEL, "statistics.npz"]


def test_the_same_seed_gives_the_same_bytes(old: Path, tmp_path: Path) -> None:
    photos = write_colours(tmp_path / "new", {"orange": 5, "grey": 2})
    versions = [
        extend(old, photos, tmp_path / name, seed=seed).manifest.version
        for name, seed in (("one", 3), ("same", 3), ("other", 4))
    ]
    assert versions[0] == versions[1] != versions[2]


def test_adding_twice_is_as_good_as_adding_once(old: Path, tmp_path: Path) -> None:
    first, second = {"orange": 9, "grey": 7}, {"purple": 8, "teal": 3}
    extend(old, write_colours(tmp_path / "a", first), tmp_path / "half")
    extend(tmp_path / "half", write_colours(tmp_path / "b", second), tmp_path / "twice")
    extend(old, write_colours(tmp_path / "c", first | second), tmp_path / "once")
    twice, once = (read_manifest(tmp_path / name) for name in ("twice", "once"))
    assert (twice.labels, twice.counts) == (once.labels, once.counts)
    both = [FeatureStatistics.read(tmp_path / name, 7, WIDTH) for name in ("twice", "once")]
    assert np.allclose(both[0].means, both[1].means, atol=1e-5)
    assert min(accuracy(tmp_path / "twice", tmp_path / "test").values()) >= 0.9


def test_more_photos_of_an_old_class_count(old: Path, tmp_path: Path) -> None:
    photos = write_colours(tmp_path / "new" / "train", {"blue": 20, "grey": 2}, seed=2)
    with pytest.raises(UserError, match=r"has photos of 'blue', and so has .*: pass --more"):
        extend(old, photos.parent, tmp_path / "out")
    manifest = extend(old, photos.parent, tmp_path / "out", more=True).manifest
    assert dict(zip(manifest.labels, manifest.counts, strict=True)) == {
        "red": 30,
        "blue": 26,
        "green": 22,
        "grey": 2,
    }
    assert manifest.classes[1].group == "medium"
    statistics = FeatureStatistics.read(tmp_path / "out", 4, WIDTH)
    assert statistics.counts.tolist() == [30, 26, 22, 2]
    assert min(accuracy(tmp_path / "out", tmp_path / "test").values()) >= 0.9


def test_copies_and_broken_photos_are_left_out_and_named(
    old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = write_colours(tmp_path / "new", {"orange": 3})
    shutil.copyfile(photos / "orange" / "000.png", photos / "orange" / "copy.png")
    (photos / "orange" / "broken.jpg").write_bytes(b"nothing")
    with caplog.at_level(logging.WARNING):
        manifest = extend(old, photos, tmp_path / "out").manifest
    assert manifest.counts == [30, 22, 6, 3]
    assert "1 copies of other photos are left out" in caplog.text
    assert "broken.jpg is left out: " in caplog.text


def test_a_name_in_the_other_unicode_form_is_the_same_class(old: Path, tmp_path: Path) -> None:
    photos = write_colours(tmp_path / "new", {"orange": 2})
    (photos / "orange").rename(photos / "cafe\u0301")
    assert "caf\u00e9" in extend(old, photos, tmp_path / "out").manifest.labels
    with pytest.raises(UserError, match="pass --more"):
        extend(tmp_path / "out", photos, tmp_path / "again")


def test_the_checkpoint_in_the_bundle_has_the_new_rows(old: Path, tmp_path: Path) -> None:
    extend(old, write_colours(tmp_path / "new", {"orange": 3}), tmp_path / "out")
    with safe_open(tmp_path / "out" / DELTA, "np") as file:
        document = json.loads(file.metadata()["taillift"])
        rows = file.get_tensor("head.weight")
    assert document["classes"] == ["red", "green", "blue", "orange"]
    assert document["counts"] == [30, 22, 6, 3]
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_what_cannot_be_added_is_one_line(old: Path, tmp_path: Path) -> None:
    def refused(match: str, photos: Path, bundle: Path = old) -> None:
        with pytest.raises(UserError, match=match) as error:
            extend(bundle, photos, tmp_path / "out")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    good = write_colours(tmp_path / "good", {"orange": 1})
    refused("is not a folder: put new photos", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    refused("has no classes", tmp_path / "empty")
    (tmp_path / "splits" / "val" / "orange").mkdir(parents=True)
    refused("has no classes", tmp_path / "splits")
    (tmp_path / "hollow" / "orange").mkdir(parents=True)
    refused("has no photos: add some", tmp_path / "hollow")
    (tmp_path / "hollow" / "orange" / "one.jpg").write_bytes(b"nothing")
    refused("has no photo that can be used", tmp_path / "hollow")
    refused("is not a bundle: make one of a checkpoint", good, old / DELTA)
    without = write_cosine_bundle(
        tmp_path / "without", write_colours(tmp_path / "photos", OLD), old=True
    )
    refused("has no statistics.npz, because an older taillift made it", good, without)


def test_another_head_than_a_cosine_one_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no cosine head"):
        forget(bundle, ["red"], tmp_path / "out")


def test_an_existing_bundle_is_kept_unless_replacing_is_asked_for(
    old: Path, tmp_path: Path
) -> None:
    photos = write_colours(tmp_path / "new", {"orange": 2})
    extend(old, photos, tmp_path / "out")
    with pytest.raises(UserError, match="exists already"):
        extend(old, photos, tmp_path / "out")
    extend(old, photos, tmp_path / "out", replace=True)


def test_a_forgotten_class_leaves_no_row_and_no_mean(old: Path, tmp_path: Path) -> None:
    changed = forget(old, ["green"], tmp_path / "out")
    assert changed.manifest.labels == ["red", "blue"]
    assert [info.prior for info in changed.manifest.classes] == pytest.approx([0.5, 0.5])
    before = FeatureStatistics.read(old, 3, WIDTH)
    after = FeatureStatistics.read(tmp_path / "out", 2, WIDTH)
    assert after.means.tolist() == before.means[[0, 2]].tolist()
    heads = [
        numpy_helper.to_array(one)
        for path in (old, tmp_path / "out")
        for one in onnx.load(path / MODEL).graph.initializer
        if one.name == "head.weight"
    ]
    assert heads[1].tolist() == heads[0][[0, 2]].tolist()
    assert min(accuracy(tmp_path / "out", tmp_path / "test").values()) >= 0.9
    with pytest.raises(UserError, match=r"no class 'gren' \(did you mean \"green\"\?\)"):
        forget(old, ["gren"], tmp_path / "no")
    with pytest.raises(UserError, match="would keep 1 of its classes"):
        forget(old, ["green", "blue"], tmp_path / "no")


def test_a_bundle_of_the_first_schema_forgets_and_becomes_one_of_the_second(
    tmp_path: Path,
) -> None:
    first = write_cosine_bundle(
        tmp_path / "first", write_colours(tmp_path / "photos", OLD), old=True
    )
    make_first_schema(first)
    manifest = forget(first, ["blue"], tmp_path / "out").manifest
    assert (manifest.schema_version, manifest.labels) == (2, ["red", "green"])
    assert list(COLOURS)[:2] == manifest.labels


def test_the_demo_bundle_forgets_a_class_and_says_that_it_cannot_learn_one(tmp_path: Path) -> None:
    with tarfile.open(DEMO) as archive:
        archive.extractall(tmp_path / "demo", filter="data")
    manifest = forget(tmp_path / "demo", ["hat", "polo shirt"], tmp_path / "out").manifest
    assert len(manifest.labels) == 15
    # The remaining logits of the golden views are those of the old bundle.
    old, new = read_golden(tmp_path / "demo")[1], read_golden(tmp_path / "out")[1]
    labels = read_manifest(tmp_path / "demo").labels
    assert np.allclose(new, old[:, [labels.index(label) for label in manifest.labels]], atol=1e-4)
    photos = write_colours(tmp_path / "new", {"orange": 1})
    with pytest.raises(UserError, match="has no statistics"):
        extend(tmp_path / "demo", photos, tmp_path / "more")


def test_without_the_package_onnx_the_error_is_one_line(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"^onnx is not installed, .*: pip install onnx"):
        forget(old, ["red"], tmp_path / "out")
