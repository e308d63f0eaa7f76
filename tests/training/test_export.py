import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny import write_photos

from models import UserError
from models.bundle.classifier import Classifier
from models.bundle.ensemble import Ensemble
from models.bundle.folder import DELTA, MODEL, read_manifest, verify_files
from models.bundle.manifest import Method
from models.bundle.session import Session
from models.lift.backbone import load_backbone
from models.lift.model import merge
from training import export as module
from training.checkpoint import restore, save
from training.dataset import Dataset, load_dataset
from training.export import Exported, export
from training.recipe import Recipe
from training.train import Trainer

RANK_2 = [{"name": "adaptformer", "rank": 2}]


def trained(colours: Dataset, backbone: str, folder: Path, **fields: object) -> Path:
    """A checkpoint of a short run."""
    quick = {"epochs": 4, "batch": 16, "optimiser": {"head_rate": 0.05, "tuner_rate": 0.05}}
    recipe = Recipe.model_validate({"name": "short", **quick, **fields})
    run = Trainer(colours, load_backbone(backbone), torch.device("cpu")).train(recipe)
    path = folder / "short.safetensors"
    save(path, run.model, run.facts)
    return path


@pytest.fixture(scope="module")
def checkpoint(
    colours: Dataset, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return trained(colours, tiny_backbone, tmp_path_factory.mktemp("run"), tuners=RANK_2)


@pytest.fixture(scope="module")
def exported(
    checkpoint: Path, colours: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Exported]:
    target = tmp_path_factory.mktemp("bundles") / "colours"
    return target, export(checkpoint, colours, target)


@pytest.mark.parametrize("batch", [1, 2, 5, 32])
def test_the_graph_takes_any_batch_and_agrees_with_torch(
    exported: tuple[Path, Exported], checkpoint: Path, batch: int
) -> None:
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), np.uint8)
    outputs = Session(exported[0] / MODEL).run(pixels)
    model, _ = restore(checkpoint)
    with torch.no_grad():
        logits, features = model.eval()(torch.from_numpy(pixels))
    assert outputs.logits.shape == (batch, 3)
    assert np.abs(outputs.logits - logits.numpy()).max() < 1e-4
    assert np.abs(outputs.features - features.numpy()).max() < 1e-5
    assert np.allclose(np.linalg.norm(outputs.features, axis=-1), 1, atol=1e-5)


def test_the_graph_is_plain_and_smaller_than_the_unmerged_one(
    exported: tuple[Path, Exported],
) -> None:
    target, found = exported
    graph = onnx.load(target / MODEL).graph
    assert {node.domain for node in graph.node} <= {""}, "standard operators only"
    assert found.proof.nodes == len(graph.node) < found.proof.unmerged_nodes
    assert found.proof.merged < 1e-4
    assert found.proof.runtime < 1e-4
    assert [node.op_type for node in graph.node].count("LayerNormalization") == 1 + 2 * 2 + 1


def test_the_manifest_tells_what_was_made(
    exported: tuple[Path, Exported], colours: Dataset
) -> None:
    target, found = exported
    manifest = read_manifest(target)
    assert manifest == found.manifest
    assert manifest.labels == list(colours.classes)
    assert [one.group for one in manifest.classes] == ["medium", "medium", "few"]
    method = manifest.method
    assert (method.name, method.tuners, method.rank) == ("short", ("adaptformer",), 2)
    assert (method.loss, found.unmerged) == ("logit-adjusted", [])
    assert manifest.evaluation is not None
    assert manifest.evaluation.images == 6
    verify_files(target, manifest)
    listed = {MODEL, DELTA, "golden.npz", "report/metrics.json", "report/confusion.csv"}
    assert listed | {"report/classes.png"} == set(manifest.files)


def test_the_reported_accuracy_is_what_the_bundle_does(
    exported: tuple[Path, Exported], colours: Dataset
) -> None:
    target, _ = exported
    metrics = json.loads((target / "report/metrics.json").read_text())
    classifier = Classifier.open(target)
    assert colours.test is not None
    canvases = [classifier.canvas(photo.read()) for photo in colours.test.photos]
    for name, ensemble in (("single", Ensemble.OFF), ("full", Ensemble.FULL)):
        predicted = classifier.logits(canvases, ensemble).argmax(-1)
        rate = 100 * float((predicted == np.array(colours.test.labels)).mean())
        assert metrics[name]["overall"] == pytest.approx(rate)
        assert set(metrics[name]) == {
            *("overall", "mean_class", "many", "medium", "few", "worst_class", "harmonic_mean")
        }
    assert metrics["full"]["many"] is None


def test_the_delta_gives_the_bundles_logits_when_merged_again(
    exported: tuple[Path, Exported],
) -> None:
    target, _ = exported
    model, _ = restore(target / DELTA)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    with torch.no_grad():
        logits = merge(model)(torch.from_numpy(pixels))[0].numpy()
    assert np.abs(Session(target / MODEL).run(pixels).logits - logits).max() < 1e-4


def test_what_cannot_be_merged_is_named_and_served_all_the_same(
    colours: Dataset, tiny_backbone: str, tmp_path: Path
) -> None:
    tuners = [{"name": "adapter", "rank": 2}, {"name": "vpt-shallow"}, {"name": "lora", "rank": 1}]
    path = trained(colours, tiny_backbone, tmp_path, tuners=tuners, loss={"name": "focal"})
    found = export(path, colours, tmp_path / "bundle")
    assert found.unmerged == ["adapter", "vpt-shallow"]
    method = found.manifest.method
    assert (method.tuners, method.rank) == (("adapter", "vpt-shallow", "lora"), 2)
    assert method.loss == "focal"
    assert found.proof.merged < 1e-4


def test_a_bundle_of_what_was_not_trained_says_so(
    colours: Dataset, tiny_backbone: str, tmp_path: Path
) -> None:
    path = trained(colours, tiny_backbone, tmp_path, tuners=RANK_2, epochs=0)
    method = export(path, colours, tmp_path / "bundle").manifest.method
    assert (method.tuners, method.rank, method.loss) == ((), None, "none")
    assert method.trainable_parameters == 0


def test_a_manifest_from_before_tuners_were_named_is_read() -> None:
    text = '{"name": "lift", "rank": 4, "trainable_parameters": 9, "loss": "logit-adjusted"}'
    assert Method.model_validate_json(text).tuners == ()


def test_the_same_checkpoint_gives_the_same_version(
    exported: tuple[Path, Exported], checkpoint: Path, colours: Dataset, tmp_path: Path
) -> None:
    again = export(checkpoint, colours, tmp_path / "again")
    assert again.manifest.version == exported[1].manifest.version


def test_a_bundle_without_held_out_photos_says_nothing_of_accuracy(
    checkpoint: Path, colours: Dataset, tmp_path: Path
) -> None:
    bare = replace(colours, val=None, test=None)
    manifest = export(checkpoint, bare, tmp_path / "bare").manifest
    assert manifest.evaluation is None
    assert manifest.classes[0].accuracy is None


def test_logits_that_are_off_are_refused_and_nothing_is_left(
    checkpoint: Path, colours: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match=r"no bundle was written: .* changes a logit by"):
        export(checkpoint, colours, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_kept_unless_replacing_is_asked_for(
    checkpoint: Path, colours: Dataset, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    export(checkpoint, colours, target)
    (target / "mark").touch()
    with pytest.raises(UserError, match="exists already"):
        export(checkpoint, colours, target)
    assert (target / "mark").exists()
    export(checkpoint, colours, target, replace=True)
    assert not (target / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_other_photos_than_those_of_the_checkpoint_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    other = load_dataset(str(write_photos(tmp_path, {"red": 2, "blue": 3})))
    with pytest.raises(UserError, match="was trained on other photos"):
        export(checkpoint, other, tmp_path / "bundle")


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(
    checkpoint: Path, colours: Dataset, small_disk: Path
) -> None:
    with pytest.raises(UserError, match=r"the disk is full .* free some space") as raised:
        export(checkpoint, colours, small_disk / "bundle")
    assert "\n" not in str(raised.value)
    assert list(small_disk.iterdir()) == []
