"""Calibration of a finished bundle on other photos, some of them too few or too odd."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import read_manifest
from taillift.models.bundle.manifest import Variant
from taillift.models.bundle.schema import Precision
from taillift.models.errors import UserError
from taillift.models.lift.backbone import load_backbone
from taillift.training.data.dataset import Dataset, load_dataset
from taillift.training.data.photo import Split
from taillift.training.export.export import export
from taillift.training.export.recalibrate import recalibrate
from taillift.training.fit.checkpoint import save
from taillift.training.recipe.recipe import Recipe
from taillift.training.report.summary import summary
from taillift.training.train import Trainer
from tests.support.palette import make_first_schema
from tests.support.tiny import COLOURS, write_photo, write_photos

GRAPHS = ("model.onnx", "delta.safetensors", "golden.npz")


def trained(dataset: Dataset, backbone: str, path: Path) -> Path:
    recipe = Recipe.model_validate({"name": "short", "epochs": 1, "batch": 16})
    run = Trainer(dataset, load_backbone(backbone), torch.device("cpu")).train(recipe)
    save(path, run.model, run.metadata)
    return path


@pytest.fixture(scope="module")
def made(colours: Dataset, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without calibration."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint = trained(colours, tiny_backbone, folder / "short.safetensors")
    export(checkpoint, colours, folder / "bundle", calibrated=False)
    return folder / "bundle"


def hashes(bundle: Path) -> dict[str, str]:
    return {
        path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in bundle.rglob("*")
        if path.is_file()
    }


def fp32(bundle: Path) -> Variant:
    return read_manifest(bundle).variants[Precision.FP32]


def notes(variant: Variant) -> str:
    parts = (variant.exit, variant.calibration, variant.sets, variant.review)
    assert all(parts)
    return " | ".join(note for part in parts if part for note in part.notes)


def test_a_new_bundle_has_the_same_graphs_and_what_export_would_have_fitted(
    made: Path, colours: Dataset, tmp_path: Path
) -> None:
    before = hashes(made)
    manifest = recalibrate(made, colours, tmp_path / "new")
    after = hashes(tmp_path / "new")
    assert hashes(made) == before, "a bundle is never changed"
    assert {name: after[name] for name in GRAPHS} == {name: before[name] for name in GRAPHS}
    assert manifest.version != read_manifest(made).version
    variant = manifest.variants[Precision.FP32]
    assert variant.calibration is not None
    assert (variant.calibration.data, variant.calibration.source) == ("colours val", "validation")
    assert variant.evaluation is not None
    assert variant.evaluation.data == "colours test"
    again = export(made / "delta.safetensors", colours, tmp_path / "whole").manifest
    assert variant == again.variants[Precision.FP32], "the same code"
    assert after == hashes(tmp_path / "whole") | {"manifest.json": after["manifest.json"]}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_bundle_that_lacks_a_file_is_named_before_anything_is_measured(
    made: Path, colours: Dataset, tmp_path: Path, name: str
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(made, copied)
    (copied / name).unlink()
    with pytest.raises(UserError, match=f"copied/{name} is missing: copy the whole bundle again"):
        recalibrate(copied, colours, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_bundle_of_the_first_schema_becomes_one_of_the_second(
    made: Path, colours: Dataset, tmp_path: Path
) -> None:
    old = shutil.copytree(made, tmp_path / "old")
    make_first_schema(old)
    assert recalibrate(old, colours, tmp_path / "new") == read_manifest(tmp_path / "new")
    assert read_manifest(tmp_path / "new").schema_version == 2
    document = json.loads((old / "manifest.json").read_text())
    del document["files"]["delta.safetensors"]
    (old / "manifest.json").write_text(json.dumps(document))
    make_first_schema(old)
    with pytest.raises(UserError, match=r"has no delta\.safetensors in its list of files"):
        recalibrate(old, colours, tmp_path / "newer")


def test_photos_are_in_the_report_unless_it_is_made_without(
    made: Path, colours: Dataset, tmp_path: Path
) -> None:
    for shown in (True, False):
        target = tmp_path / f"{shown}"
        recalibrate(made, colours, target, photos_shown=shown)
        report = (target / "report/report.html").read_text("utf-8")
        assert ("data:image/jpeg" in report) is shown
        assert ("of the held-out photos, at most" in report) is shown


def test_classes_are_matched_by_label_whatever_their_order(
    made: Path, colours: Dataset, tmp_path: Path
) -> None:
    """The most frequent class comes first: blue in these photos, red in the bundle."""
    root = write_photos(tmp_path / "other", {"blue": 9, "green": 5, "red": 2}, ("train", "val"))
    other = load_dataset(str(root))
    assert other.classes == tuple(reversed(colours.classes))
    manifest = recalibrate(made, other, tmp_path / "new")
    assert manifest.labels == list(colours.classes)
    assert manifest.counts == colours.counts, "what it was trained on"
    classifier = Classifier.open(tmp_path / "new")
    assert other.val is not None
    canvases = [classifier.canvas(photo.read()) for photo in other.val.photos]
    predicted = classifier.mean_logits(canvases, Ensemble.FULL).logits.argmax(-1)
    right = [
        manifest.labels[index] == other.classes[label]
        for index, label in zip(predicted, other.val.labels, strict=True)
    ]
    evaluation = manifest.variants[Precision.FP32].evaluation
    assert evaluation is not None
    assert evaluation.full.overall == pytest.approx(100 * np.mean(right))


def test_what_cannot_be_calibrated_on_is_one_line(
    made: Path, colours: Dataset, tmp_path: Path
) -> None:
    without = replace(colours, val=None)
    with pytest.raises(UserError, match=r"no val/ photos .* `taillift export`, .* cross-fitting"):
        recalibrate(made, without, tmp_path / "new")
    unknown = replace(colours, classes=("red", "green", "violet"))
    with pytest.raises(UserError, match="has no class 'violet', and colours has"):
        recalibrate(made, unknown, tmp_path / "new")
    with pytest.raises(UserError, match="exists already"):
        recalibrate(made, colours, made)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "copies", "said"),
    [
        ((0, 0, 1, 1), False, "1 of 3 classes have no held-out photo"),
        ((0, 1, 2), False, "so few photos (3) leave every temperature near 1 or uncertain"),
        ((0, 0, 0, 1, 1, 2), True, "are duplicates of others and count once"),
        ((1,), False, "2 of 3 classes have no held-out photo"),
    ],
    ids=["a class is missing", "one photo a class", "identical photos", "one photo"],
)
def test_a_set_that_is_too_little_gives_a_bundle_that_says_so(
    made: Path, colours: Dataset, tmp_path: Path, labels: tuple[int, ...], copies: bool, said: str
) -> None:
    assert colours.val is not None
    of_class = {label: colours.val.labels.index(label) for label in labels}
    if copies:
        photos = [colours.val.photos[of_class[label]] for label in labels]
    else:
        taken: dict[int, int] = {}
        photos = []
        for label in labels:
            nth = taken[label] = taken.get(label, -1) + 1
            photos.append(colours.val.photos[of_class[label] + nth])
    little = replace(colours, val=Split(tuple(photos), labels))
    variant = recalibrate(made, little, tmp_path / "new").variants[Precision.FP32]
    assert said in notes(variant)
    assert variant.exit is not None
    assert not variant.exit.certified or variant.exit.mean_views == 5
    assert variant.exit.notes
    classifier = Classifier.open(tmp_path / "new")
    canvases = [classifier.canvas(photo.read()) for photo in colours.val.photos]
    for ensemble in Ensemble:
        logits, views = classifier.mean_logits(canvases, ensemble)
        shares = classifier.predictor.probabilities(logits, views, ensemble)
        assert np.isfinite(shares).all()
        sets = classifier.predictor.sets(shares, ensemble, 0.9)
        assert sets is not None
        assert sets[np.arange(len(sets)), shares.argmax(-1)].all()


def test_a_bundle_is_made_of_single_photos_and_says_what_it_could_not_do(
    tiny_backbone: str, tmp_path: Path
) -> None:
    for name, colour in COLOURS.items():
        write_photo(tmp_path / "ones" / "train" / name / "0.png", colour)
    ones = load_dataset(str(tmp_path / "ones"))
    checkpoint = trained(ones, tiny_backbone, tmp_path / "short.safetensors")
    made = export(checkpoint, ones, tmp_path / "bundle").manifest.variants[Precision.FP32]
    assert made == fp32(tmp_path / "bundle")
    assert (made.exit, made.calibration, made.sets, made.review) == (None,) * 4
    (note,) = made.notes
    assert note.startswith("not calibrated: there is no val/, and every class has a single")
    assert note in list(summary(made))
    Classifier.open(tmp_path / "bundle")
