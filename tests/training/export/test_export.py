import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import DELTA, MODEL, read_manifest, verify_files
from taillift.models.bundle.images import views
from taillift.models.bundle.manifest import Method
from taillift.models.bundle.posterior import Prior, log_prior
from taillift.models.bundle.schema import Precision
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from taillift.models.lift.backbone import load_backbone
from taillift.models.lift.model import merge
from taillift.models.lift.onnx_export import write_graph
from taillift.training.data.dataset import Dataset, Split, load_dataset
from taillift.training.evaluation import class_rates, view_logits
from taillift.training.export import export as module
from taillift.training.export import graphs
from taillift.training.export.export import Exported, export
from taillift.training.export.graphs import Graphs, node_count
from taillift.training.fit.checkpoint import restore, save
from taillift.training.fit.inputs import evaluation_photos
from taillift.training.recipe.recipe import Recipe
from taillift.training.train import Trainer
from tests.support.sources import write
from tests.support.tiny import write_photos

ENSEMBLES = {"single": Ensemble.OFF, "full": Ensemble.FULL, "adaptive": Ensemble.ADAPTIVE}
RANK_2 = [{"name": "adaptformer", "rank": 2}]


def trained(colours: Dataset, backbone: str, folder: Path, **fields: object) -> Path:
    """Train for a short time and return the checkpoint."""
    quick = {"epochs": 4, "batch": 16, "optimiser": {"head_rate": 0.05, "tuner_rate": 0.05}}
    recipe = Recipe.model_validate({"name": "short", **quick, **fields})
    run = Trainer(colours, load_backbone(backbone), torch.device("cpu")).train(recipe)
    path = folder / "short.safetensors"
    save(path, run.model, run.metadata)
    return path


def predictions(
    classifier: Classifier, split: Split, ensemble: Ensemble
) -> tuple[np.ndarray, np.ndarray]:
    """Return each photo's predicted class and number of views, [N], under the uniform prior."""
    canvases = [classifier.canvas(photo.read()) for photo in split.photos]
    logits, views = classifier.mean_logits(canvases, ensemble)
    target = log_prior(Prior.UNIFORM, classifier.manifest.counts)
    shares = classifier.predictor.probabilities(logits, views, ensemble, target)
    return shares.argmax(-1), views


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


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("deit_distilled_test", ""),
        ("deit3_test", ""),
        ("flexivit_test", "@48"),
        ("vit_reg4_dinov2_test", "@24"),
        ("vit_reg2_map_test", ""),
    ],
)
def test_deit_flexivit_and_towers_with_registers_are_trained_exported_and_served(
    kind: str, size: str, colours: Dataset, tmp_path: Path
) -> None:
    backbone = f"{write(f'timm:{kind}', tmp_path)[0]}{size}"
    tuners = [{"name": "adaptformer", "rank": 2}, {"name": "vpt-deep", "prompts": 2}]
    path = trained(
        colours, backbone, tmp_path, tuners=tuners, head={"initial": {"name": "class-mean"}}
    )
    made = export(path, colours, tmp_path / "bundle", calibrated=False, photos_shown=False)
    assert made.unmerged == []
    assert max(made.proof.merged, made.proof.runtime) < 1e-4
    classifier = Classifier.open(tmp_path / "bundle")
    assert colours.test is not None
    canvases = [classifier.canvas(photo.read()) for photo in colours.test.photos]
    served, _ = classifier.mean_logits(canvases, Ensemble.OFF)
    model, facts = restore(path)
    assert facts.preprocessing.size == int(size[1:] or 32)
    photos = evaluation_photos(colours.test, facts.preprocessing)
    logits = view_logits(model, photos, torch.device("cpu"))[:, 0]
    assert np.allclose(served, logits, atol=1e-3)


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
    exported: tuple[Path, Exported], checkpoint: Path, tmp_path: Path
) -> None:
    target, result = exported
    graph = onnx.load(target / MODEL).graph
    assert {node.domain for node in graph.node} <= {""}, "standard operators only"
    unmerged = restore(checkpoint)[0].eval().requires_grad_(False)
    Graphs(np.zeros((2, 32, 32, 3), np.uint8)).write_plain(unmerged, tmp_path / MODEL)
    assert result.proof.nodes == len(graph.node) < node_count(tmp_path / MODEL)
    assert result.proof.merged < 1e-4
    assert result.proof.runtime < 1e-4
    assert [node.op_type for node in graph.node].count("LayerNormalization") == 1 + 2 * 2 + 1


def test_the_manifest_describes_what_was_made(
    exported: tuple[Path, Exported], colours: Dataset
) -> None:
    target, result = exported
    manifest = read_manifest(target)
    assert manifest == result.manifest
    assert manifest.labels == list(colours.classes)
    assert [info.group for info in manifest.classes] == ["medium", "medium", "few"]
    method = manifest.method
    assert (method.name, method.tuners, method.rank) == ("short", ("adaptformer",), 2)
    assert (method.loss, result.unmerged) == ("logit-adjusted", [])
    assert method.prior == "uniform", "logit adjustment leaves none"
    assert [info.prior for info in manifest.classes] == pytest.approx([1 / 3] * 3)
    (variant,) = manifest.variants.values()
    assert variant.evaluation is not None
    assert (variant.evaluation.data, variant.evaluation.images) == ("colours test", 6)
    assert variant.exit is not None
    assert (variant.exit.data, variant.exit.source) == ("colours val", "validation")
    assert variant.notes == ()
    verify_files(target, manifest)
    listed = {MODEL, DELTA, "golden.npz", "calibration.fp32.npz", "statistics.npz"}
    report = {
        "metrics.json",
        "confusion.csv",
        "confusion.png",
        "classes.png",
        "reliability.png",
        "tau.png",
        "report.html",
    }
    assert listed | {f"report/{name}" for name in report} == set(manifest.files)


def test_the_reported_accuracy_is_what_the_bundle_does(
    exported: tuple[Path, Exported], colours: Dataset
) -> None:
    target, _ = exported
    metrics = json.loads((target / "report/metrics.json").read_text())["fp32"]
    assert colours.test is not None
    for name, ensemble in ENSEMBLES.items():
        predicted, taken = predictions(Classifier.open(target), colours.test, ensemble)
        rate = 100 * float((predicted == np.array(colours.test.labels)).mean())
        assert metrics[name]["overall"] == pytest.approx(rate)
        assert ensemble is not Ensemble.ADAPTIVE or metrics["adaptive_views"] == taken.mean()
        assert set(metrics[name]) == {
            *("overall", "mean_class", "many", "medium", "few"),
            *("worst_class", "harmonic_mean", "geometric_mean", "macro_f1"),
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


def test_what_cannot_be_merged_is_named_and_still_served(
    colours: Dataset, tiny_backbone: str, tmp_path: Path
) -> None:
    tuners = [{"name": "adapter", "rank": 2}, {"name": "vpt-shallow"}, {"name": "lora", "rank": 1}]
    path = trained(colours, tiny_backbone, tmp_path, tuners=tuners, loss={"name": "focal"})
    result = export(path, colours, tmp_path / "bundle", calibrated=False)
    assert result.unmerged == ["adapter", "vpt-shallow"]
    method = result.manifest.method
    assert (method.tuners, method.rank) == (("adapter", "vpt-shallow", "lora"), 2)
    assert method.loss == "focal"
    assert result.proof.merged < 1e-4


def test_a_bundle_of_what_was_not_trained_says_so(
    colours: Dataset, tiny_backbone: str, tmp_path: Path
) -> None:
    path = trained(colours, tiny_backbone, tmp_path, tuners=RANK_2, epochs=0)
    method = export(path, colours, tmp_path / "bundle", calibrated=False).manifest.method
    assert (method.tuners, method.rank, method.loss) == ((), None, "none")
    assert method.trainable_parameters == 0


def test_a_manifest_from_before_tuners_were_named_is_read() -> None:
    text = '{"name": "lift", "rank": 4, "trainable_parameters": 9, "loss": "logit-adjusted"}'
    assert Method.model_validate_json(text).tuners == ()


def test_the_same_checkpoint_gives_the_same_version(
    exported: tuple[Path, Exported],
    checkpoint: Path,
    colours: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphs, "write_graph", write_graph)  # Not the one that was kept.
    again = export(checkpoint, colours, tmp_path / "again")
    assert again.manifest.version == exported[1].manifest.version


def test_a_bundle_without_held_out_photos_says_nothing_of_accuracy(
    checkpoint: Path, colours: Dataset, tmp_path: Path
) -> None:
    bare = replace(colours, val=None, test=None)
    manifest = export(checkpoint, bare, tmp_path / "bare", calibrated=False).manifest
    (variant,) = manifest.variants.values()
    assert variant.evaluation is None
    assert manifest.classes[0].accuracy is None
    assert (variant.exit, variant.calibration, variant.sets, variant.review) == (None,) * 4
    assert variant.notes == ("not calibrated: it was not asked for",)


def test_photos_set_aside_are_measured_only_by_models_that_start_as_the_checkpoint_did(
    colours: Dataset, tiny_backbone: str, tmp_path: Path
) -> None:
    """Without a val split, calibration trains again from the current descriptions."""
    sentences = tmp_path / "sentences.json"
    sentences.write_text(json.dumps({name: [f"a jolly {name}"] for name in colours.names}))
    initial = {"name": "descriptions", "path": str(sentences)}
    checkpoint = trained(colours, tiny_backbone, tmp_path, epochs=1, head={"initial": initial})
    sentences.write_text(json.dumps({name: [f"a gloomy {name}"] for name in colours.names}))
    bare = replace(colours, val=None)
    with pytest.raises(UserError, match="the file that its head started from has changed since"):
        export(checkpoint, bare, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert export(checkpoint, colours, tmp_path / "bundle").manifest.variants


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
    export(checkpoint, colours, target, calibrated=False)
    (target / "mark").touch()
    with pytest.raises(UserError, match="exists already"):
        export(checkpoint, colours, target)
    assert (target / "mark").exists()
    export(checkpoint, colours, target, replace=True, calibrated=False)
    assert not (target / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_other_photos_than_those_of_the_checkpoint_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    other = load_dataset(str(write_photos(tmp_path, {"red": 2, "blue": 3})))
    with pytest.raises(UserError, match="was trained on other photos"):
        export(checkpoint, other, tmp_path / "bundle")


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(
    checkpoint: Path, colours: Dataset, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "write_graph", write_graph)  # Not the one that was kept.
    with pytest.raises(UserError, match=r"the disk is full .* free some space") as raised:
        export(checkpoint, colours, small_disk / "bundle")
    assert "\n" not in str(raised.value)
    assert list(small_disk.iterdir()) == []


def test_every_variant_has_an_evaluation_calibration_and_scores_of_its_own(
    checkpoint: Path, colours: Dataset, tmp_path: Path
) -> None:
    target, wanted = tmp_path / "bundle", [Precision.INT8, Precision.FP16]
    exported = export(checkpoint, colours, target, variants=wanted)
    manifest = exported.manifest
    assert set(manifest.variants) == set(Precision)
    assert list(exported.comparisons) == wanted
    metrics = json.loads((target / "report/metrics.json").read_text())
    logits = set()
    assert colours.test is not None
    assert manifest.variants[Precision.FP32].made is None
    made = [manifest.variants[precision].made or "" for precision in wanted]
    assert made[0].startswith(("dynamic", "static", "mixed"))
    assert all("% of training views keep their first class" in text for text in made)
    for precision, variant in manifest.variants.items():
        assert variant.calibration is not None
        logits.add(manifest.files[f"calibration.{precision}.npz"].sha256)
        classifier = Classifier.open(target, precision=precision)
        assert classifier.predictor.variant == variant
        predicted, _ = predictions(classifier, colours.test, Ensemble.FULL)
        rate = 100 * float((predicted == np.array(colours.test.labels)).mean())
        assert metrics[precision]["full"]["overall"] == pytest.approx(rate)
        if comparison := exported.comparisons.get(precision):
            predicted, _ = predictions(classifier, colours.test, comparison.new.ensemble)
            rates = class_rates(predicted, np.array(colours.test.labels), 3)
            compared = comparison.groups["all"]
            assert compared.new.accuracy == pytest.approx(100 * rates.mean())
            assert compared.photos == len(colours.test)
            assert comparison.new.milliseconds > 0
            assert metrics[precision]["against_fp32"]["sentence"] == comparison.sentence
            assert comparison.sentence in (target / "report/report.html").read_text()
    assert len(logits) == 3, "each is calibrated on its own logits"


def test_a_prior_in_the_logits_is_named_and_not_in_the_reported_accuracy(
    colours: Dataset, tiny_backbone: str, tmp_path: Path
) -> None:
    path = trained(colours, tiny_backbone, tmp_path, loss={"name": "cross-entropy"}, epochs=1)
    manifest = export(path, colours, tmp_path / "bundle").manifest
    assert manifest.method.prior == "train"
    assert [info.prior for info in manifest.classes] == pytest.approx([30 / 56, 21 / 56, 5 / 56])
    assert colours.test is not None
    evaluation = manifest.variants[Precision.FP32].evaluation
    assert evaluation is not None
    classifier = Classifier.open(tmp_path / "bundle")
    labels = np.array(colours.test.labels)
    for name, ensemble in ENSEMBLES.items():
        predicted, _ = predictions(classifier, colours.test, ensemble)
        rate = 100 * float((predicted == labels).mean())
        assert getattr(evaluation, name).overall == pytest.approx(rate)
    canvases = [classifier.canvas(photo.read()) for photo in colours.test.photos]
    raw = classifier.session.run(np.stack([views(canvas, 32, 1)[0] for canvas in canvases])).logits
    plain = raw - np.log([30 / 56, 21 / 56, 5 / 56])
    served = classifier.mean_logits(canvases, Ensemble.OFF).logits
    np.testing.assert_allclose(served - served[:, :1], plain - plain[:, :1], atol=1e-4)


def test_copies_of_a_photo_count_once_for_a_bundles_groups(
    tmp_path: Path, tiny_backbone: str
) -> None:
    root = write_photos(tmp_path / "photos", {"red": 21, "blue": 19}, ("train", "val"))
    for name in ("a.png", "b.png", "c.png"):
        shutil.copy(root / "train/blue/001.png", root / "train/blue" / name)
    dataset = load_dataset(str(root))
    checkpoint = trained(dataset, tiny_backbone, tmp_path, tuners=RANK_2)
    manifest = export(checkpoint, dataset, tmp_path / "bundle", calibrated=False).manifest
    assert [(one.label, one.count, one.group) for one in manifest.classes] == [
        ("blue", 22, "few"),
        ("red", 21, "medium"),
    ]
