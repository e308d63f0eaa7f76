"""From photos to a bundle, to a bundle with one class more, to one that is calibrated again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from taillift.cli import app
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.feature_statistics import FeatureStatistics
from taillift.models.bundle.folder import read_manifest
from taillift.models.bundle.schema import Precision
from taillift.models.lift.backbone import load_backbone
from taillift.training.data.dataset import Dataset
from taillift.training.export.export import export
from taillift.training.fit.checkpoint import read_metadata, save
from taillift.training.recipe.recipe import Recipe
from taillift.training.train import Trainer
from tests.support.cosine import write_colours


def command(*arguments: object) -> str:
    """Run a command, which must succeed, and return what it printed."""
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.usefixtures("one_thread")
def test_a_trained_bundle_is_extended_and_calibrated_again(
    colours: Dataset, tiny_backbone: str, tmp_path: Path
) -> None:
    quick = {"epochs": 4, "batch": 16, "optimiser": {"head_rate": 0.05, "tuner_rate": 0.05}}
    recipe = Recipe.model_validate({"name": "short", **quick})
    run = Trainer(colours, load_backbone(tiny_backbone), torch.device("cpu")).train(recipe)
    save(tmp_path / "short.safetensors", run.model, run.metadata)
    bundle = tmp_path / "bundle"
    export(tmp_path / "short.safetensors", colours, bundle, calibrated=False)

    # The statistics are those of the served features.
    classifier = Classifier.open(bundle)
    width = classifier.session.run(np.zeros((1, 32, 32, 3), np.uint8)).features.shape[1]
    statistics = FeatureStatistics.read(bundle, 3, width)
    assert statistics.counts.tolist() == [30, 21, 5]
    pairs = zip(colours.train.photos, colours.train.labels, strict=True)
    canvases = [classifier.canvas(photo.read()) for photo, label in pairs if label == 0]
    features = [one.features for one in classifier.outputs(canvases, Ensemble.OFF)]
    assert np.allclose(statistics.means[0], np.mean(features, 0), atol=1e-5)

    photos = write_colours(tmp_path / "new", {"orange": 8})
    printed = command("extend", bundle, photos, "--out", tmp_path / "more")
    manifest = read_manifest(tmp_path / "more")
    assert printed.splitlines()[0].startswith("left out: calibration and report: ")
    last = f"{tmp_path / 'more'}: bundle colours {manifest.version}, 4 classes\n"
    assert printed.endswith(last)
    assert manifest.labels == ["red", "green", "orange", "blue"]
    assert read_metadata(tmp_path / "more" / "delta.safetensors").counts == (30, 21, 8, 5)

    # Photos of all classes calibrate it, through the bundle's own checkpoint.
    every = tmp_path / "every"
    for split in ("train", "val"):
        counts = {"red": 6, "green": 6, "orange": 6, "blue": 6}
        write_colours(every / split, counts, seed=len(split))
    command("calibrate", tmp_path / "more", every, "--out", tmp_path / "calibrated")
    calibrated = read_manifest(tmp_path / "calibrated")
    assert calibrated.labels == manifest.labels
    assert calibrated.variants[Precision.FP32].calibration
    assert "statistics.npz" in calibrated.files

    printed = command("forget", tmp_path / "calibrated", "orange", "--out", tmp_path / "less")
    assert printed.startswith("left out: calibration and report: ")
    assert read_manifest(tmp_path / "less").labels == list(colours.classes)


@pytest.mark.usefixtures("one_thread")
def test_a_chosen_tau_is_answered_with_by_the_bundle_and_by_what_is_made_of_it(
    colours: Dataset, tiny_backbone: str, tmp_path: Path
) -> None:
    loss = {"tau": "auto", "chosen": 1.75}
    recipe = Recipe.model_validate({"name": "tau", "epochs": 1, "batch": 16, "loss": loss})
    trainer = Trainer(colours, load_backbone(tiny_backbone), torch.device("cpu"))
    run = trainer.train(recipe)
    save(tmp_path / "tau.safetensors", run.model, run.metadata)
    export(tmp_path / "tau.safetensors", colours, tmp_path / "bundle", calibrated=False)
    manifest = read_manifest(tmp_path / "bundle")
    assert (manifest.method.tau, manifest.method.prior) == (1.75, "other")
    raised = np.array(colours.counts) ** 0.75
    assert [info.prior for info in manifest.classes] == pytest.approx(raised / raised.sum())

    # The bundle's own measurement is that of the moved logits.
    assert colours.test is not None
    raw = trainer.view_logits(run, colours.test)
    moved = raw.mean(1) - 0.75 * np.log(np.array(colours.counts) / sum(colours.counts))
    right = 100 * np.mean(moved.argmax(1) == np.array(colours.test.labels))
    evaluation = manifest.variants[Precision.FP32].evaluation
    assert evaluation is not None
    assert evaluation.full.overall == pytest.approx(right)
    assert np.allclose(run.answers(raw).mean(1), moved, atol=1e-4)
    page = (tmp_path / "bundle/report/report.html").read_text("utf-8")
    assert "with tau = 1.75 for the answers, trained with 1" in page
    assert "a loss with &tau; = 1.75 + tail" in page

    photos = write_colours(tmp_path / "new", {"orange": 8})
    command("extend", tmp_path / "bundle", photos, "--out", tmp_path / "more")
    more = read_manifest(tmp_path / "more")
    counts = np.array([30, 21, 8, 5]) ** 0.75
    assert [info.prior for info in more.classes] == pytest.approx(counts / counts.sum())
    assert (more.method.tau, more.method.prior) == (1.75, "other")
    command("forget", tmp_path / "more", "orange", "--out", tmp_path / "less")
    less = read_manifest(tmp_path / "less")
    assert [info.prior for info in less.classes] == pytest.approx(raised / raised.sum())
