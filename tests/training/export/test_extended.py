"""Checkpoints and bundles with other classes, from photos to what is served."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from taillift.cli import app
from taillift.models.bundle.atomic import file_sha256
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.extension import extend as extend_bundle
from taillift.models.bundle.extension import photos_by_class
from taillift.models.bundle.feature_statistics import STATISTICS, FeatureStatistics, unit
from taillift.models.bundle.folder import DELTA, read_manifest
from taillift.models.bundle.schema import MAX_PIXELS, Precision
from taillift.models.errors import UserError
from taillift.models.lift.backbone import load_backbone
from taillift.models.lift.model import Model
from taillift.training.data.dataset import Dataset, load_dataset
from taillift.training.export.export import export
from taillift.training.fit.checkpoint import (
    BATCH,
    extend,
    forget,
    measured_statistics,
    own_photos,
    photo_features,
    read_metadata,
    read_statistics,
    restore,
    save,
)
from taillift.training.fit.resume import resume_path
from taillift.training.recipe.recipe import Recipe
from taillift.training.train import Run, Trainer
from tests.support.cosine import write_colours

pytestmark = pytest.mark.usefixtures("one_thread")


def command(*arguments: object) -> str:
    """Run a command, which must succeed, and return what it printed."""
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.fixture(scope="module")
def trained(colours: Dataset, tiny_backbone: str) -> Callable[..., Run]:
    """Returns the run of a short recipe with changes."""
    quick = {"epochs": 4, "batch": 16, "optimiser": {"head_rate": 0.05, "tuner_rate": 0.05}}
    trainer = Trainer(colours, load_backbone(tiny_backbone), torch.device("cpu"))

    def run(**changes: object) -> Run:
        return trainer.train(Recipe.model_validate({"name": "short", **quick, **changes}))

    return run


@pytest.fixture(scope="module")
def run(trained: Callable[..., Run]) -> Run:
    return trained(tuners=[{"name": "adaptformer", "rank": 2}])


@pytest.fixture
def checkpoint(run: Run, colours: Dataset, tmp_path: Path) -> Path:
    path = tmp_path / "short.safetensors"
    statistics = measured_statistics(run.model, run.metadata, colours)
    save(path, run.model, run.metadata, statistics=statistics)
    return path


def test_a_checkpoint_learns_a_class_without_its_old_photos(
    checkpoint: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    write_colours(new / "train", {"orange": 8})
    write_colours(new / "test", {"orange": 4}, seed=1)
    target = tmp_path / "more.safetensors"
    printed = command("extend", checkpoint, new, "--out", target)
    assert printed.startswith(f"{target}: 4 classes; photos of orange were added to short.safe")

    before, after = load_file(checkpoint), load_file(target)
    changed = {"head.weight", "stats.means", "stats.counts", "stats.covariance"}
    assert before.keys() == after.keys() > changed
    for name in before.keys() - changed:
        assert before[name].tobytes() == after[name].tobytes(), "the tower does not change"
    assert restore(target)[0].trainable_parameters == read_metadata(target).trainable_parameters
    metadata = read_metadata(target)
    assert metadata.classes == ("red", "green", "orange", "blue")
    assert metadata.counts == (30, 21, 8, 5)
    assert metadata.prompts[2] == "a photo of an orange."
    (change,) = metadata.extended
    assert (change.parent, change.added) == ("short.safetensors", {"orange": 8})
    assert change.sha256 == file_sha256(checkpoint).hexdigest()
    assert "extended:" in (tmp_path / "more.safetensors.yaml").read_text()

    # Only the new photos are there to export with. A line says what they do not allow.
    bundle = tmp_path / "bundle"
    result = CliRunner().invoke(app, ["export", str(target), str(new), "--out", str(bundle)])
    assert result.exit_code == 0
    assert "left out: calibration: new has no val/ photos of 4 of the 4 classes" in result.output
    statistics = read_statistics(target)
    assert statistics is not None
    stored = FeatureStatistics.read(bundle, 4, statistics.means.shape[1])
    assert stored.means.tolist() == statistics.means.tolist()
    assert stored.counts.tolist() == [30, 21, 8, 5]
    report = (bundle / "report/report.html").read_text("utf-8")
    assert "photos of orange were added to short.safetensors" in report
    every = write_colours(tmp_path / "every", dict.fromkeys(metadata.classes, 6), seed=2)
    classifier = Classifier.open(bundle)
    for label in metadata.classes:
        found = [one.label for one in classifier.classify((every / label).iterdir())]
        assert found.count(label) >= 5, (label, found)


def test_tuning_on_many_photos_changes_the_tuners_and_nothing_frozen(
    checkpoint: Path, tmp_path: Path
) -> None:
    new = write_colours(tmp_path / "new", {"orange": 60, "purple": 41})
    (new / "orange" / "broken.png").write_bytes(b"no photo")
    target = tmp_path / "more.safetensors"
    printed = command("extend", checkpoint, new, "--out", target, "--tune")
    metadata, before = read_metadata(target), load_file(checkpoint)
    (change,) = metadata.extended
    # 101 photos in batches of 16, in the recipe's four epochs.
    assert change.tuned == 28
    assert "were added to short.safetensors, in 28 steps of the tuners" in printed

    after = load_file(target)
    assert before.keys() == after.keys()
    tuners = {name for name in before if name.startswith("tower.")}
    assert tuners
    for name in tuners:
        step = np.abs(after[name] - before[name]).max()
        assert 0 < step < 0.2, name
    model, _ = restore(target)
    frozen = {
        name: tensor
        for name, tensor in restore(checkpoint)[0].state_dict().items()
        if name.startswith("tower.") and name not in tuners
    }
    assert len(frozen) > len(tuners)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in frozen.items())
    extend(checkpoint, new, tmp_path / "again.safetensors", tune=True)
    assert (tmp_path / "again.safetensors").read_bytes() == target.read_bytes()

    bundle = tmp_path / "bundle"
    (tmp_path / "photos").mkdir()
    new.rename(tmp_path / "photos/train")
    assert (
        CliRunner()
        .invoke(app, ["export", str(target), str(tmp_path / "photos"), "--out", str(bundle)])
        .exit_code
        == 0
    )
    classifier = Classifier.open(bundle)
    every = write_colours(tmp_path / "every", dict.fromkeys(metadata.classes, 6), seed=2)
    for label in metadata.classes:
        found = [one.label for one in classifier.classify((every / label).iterdir())]
        assert found.count(label) >= 5, (label, found)


def test_what_cannot_be_tuned_is_one_line(
    trained: Callable[..., Run], checkpoint: Path, tmp_path: Path
) -> None:
    few = write_colours(tmp_path / "few", {"orange": 99})
    with pytest.raises(UserError, match="few has 99 photos that can be used, and --tune needs 100"):
        extend(checkpoint, few, tmp_path / "more.safetensors", tune=True)
    head, run = tmp_path / "head.safetensors", trained(tuners=[])
    save(head, run.model, run.metadata, statistics=read_statistics(checkpoint))
    with pytest.raises(UserError, match="trained its head alone: leave out --tune"):
        extend(head, few, tmp_path / "more.safetensors", tune=True)
    assert not (tmp_path / "more.safetensors").exists()
    (tmp_path / "bundle").mkdir()
    result = CliRunner().invoke(
        app, ["extend", str(tmp_path / "bundle"), str(few), "--tune", "--out", str(tmp_path / "b")]
    )
    assert isinstance(result.exception, UserError)
    assert "--tune is for a checkpoint" in str(result.exception)


def test_a_checkpoint_and_its_bundle_learn_the_same_head(
    trained: Callable[..., Run], colours: Dataset, tmp_path: Path
) -> None:
    # Only a checkpoint has a text tower, from which its new rows could start.
    run, checkpoint = trained(head={"initial": {"name": "class-mean"}}), tmp_path / "c.safetensors"
    statistics = measured_statistics(run.model, run.metadata, colours)
    save(checkpoint, run.model, run.metadata, statistics=statistics)
    new = write_colours(tmp_path / "new", {"orange": 8, "purple": 1})
    extend(checkpoint, new, tmp_path / "more.safetensors", seed=3)
    export(checkpoint, colours, tmp_path / "bundle", calibrated=False)
    extend_bundle(tmp_path / "bundle", new, tmp_path / "other", seed=3)
    one = load_file(tmp_path / "more.safetensors")
    other = load_file(tmp_path / "other" / DELTA)
    assert one.keys() == other.keys()
    assert np.allclose(unit(one["head.weight"]), unit(other["head.weight"]), atol=1e-3)
    assert np.allclose(one["stats.means"], other["stats.means"], atol=1e-4)
    metadata, manifest = (
        read_metadata(tmp_path / "other" / DELTA),
        read_manifest(tmp_path / "other"),
    )
    assert manifest.method.trainable_parameters == metadata.trainable_parameters
    assert manifest.method.trainable_parameters > run.metadata.trainable_parameters
    (change,) = metadata.extended
    assert change.parent == f"bundle {read_manifest(tmp_path / 'bundle').version}"

    # The same seed gives the same bytes, and photos of a known class need a word.
    extend(checkpoint, new, tmp_path / "again.safetensors", seed=3)
    assert load_file(tmp_path / "again.safetensors")["head.weight"].tolist() == (
        one["head.weight"].tolist()
    )
    more = write_colours(tmp_path / "blue", {"blue": 4}, seed=4)
    with pytest.raises(UserError, match=r"has photos of 'blue', and so has .*: pass --more"):
        extend(checkpoint, more, tmp_path / "blue.safetensors")
    metadata = extend(checkpoint, more, tmp_path / "blue.safetensors", more=True)
    assert metadata.counts == (30, 21, 9)


def test_a_checkpoint_without_statistics_says_how_they_are_measured(
    run: Run, checkpoint: Path, colours: Dataset, tmp_path: Path
) -> None:
    old = tmp_path / "old.safetensors"
    save(old, run.model, run.metadata)
    assert read_statistics(old) is None
    new = write_colours(tmp_path / "new", {"orange": 3})
    with pytest.raises(UserError, match=r"has no statistics .* pass --old-photos") as error:
        extend(old, new, tmp_path / "more.safetensors")
    assert "\n" not in str(error.value)
    extend(old, new, tmp_path / "more.safetensors", old=colours)
    extend(checkpoint, new, tmp_path / "same.safetensors")
    ones = [load_file(tmp_path / f"{name}.safetensors") for name in ("more", "same")]
    assert all(np.array_equal(ones[0][name], ones[1][name]) for name in ones[0])
    others = write_colours(tmp_path / "others" / "train", {"red": 2, "green": 2}).parent
    with pytest.raises(UserError, match="was trained on other photos"):
        extend(old, new, tmp_path / "no.safetensors", old=load_dataset(str(others)))


def test_photos_of_some_classes_do_not_pass_for_the_statistics_of_all(
    run: Run, colours: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "old.safetensors", run.model, run.metadata)
    less = tmp_path / "less.safetensors"
    forget(tmp_path / "old.safetensors", ["green"], less)
    red = load_dataset(str(write_colours(tmp_path / "red" / "train", {"red": 4}).parent), least=1)
    manifest = export(less, red, tmp_path / "some").manifest
    assert STATISTICS not in manifest.files
    assert f"left out: statistics.npz, which `taillift extend` needs: {less}" in (
        capfd.readouterr().err
    )
    with pytest.raises(UserError, match="was exported with photos of some classes alone"):
        extend_bundle(tmp_path / "some", tmp_path / "red", tmp_path / "no", more=True)
    export(less, colours.without({"green"}), tmp_path / "all", calibrated=False)
    stored = FeatureStatistics.read(tmp_path / "all", 2, load_file(less)["head.weight"].shape[1])
    assert stored.means.any(1).all()
    assert stored.counts.tolist() == [30, 5]


def test_after_the_features_of_photos_the_model_is_back_on_the_cpu(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []
    to, cpu = Model.to, Model.cpu

    def moved(self: Model, device: torch.device) -> Model:
        moves.append("to")
        return to(self, device)

    def brought_back(self: Model) -> Model:
        moves.append("cpu")
        return cpu(self)

    monkeypatch.setattr(Model, "to", moved)
    monkeypatch.setattr(Model, "cpu", brought_back)
    by_class = photos_by_class(write_colours(tmp_path / "new", {"orange": 1 + BATCH}))
    found = photo_features(run.model, run.metadata.preprocessing, by_class, MAX_PIXELS)
    assert len(list(found)) == 1 + BATCH
    assert moves == ["to", "cpu", "to", "cpu"]


def test_a_checkpoint_forgets_a_class(
    run: Run,
    checkpoint: Path,
    colours: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "less.safetensors"
    printed = command("forget", checkpoint, "green", "--out", target)
    assert "2 classes; short.safetensors also knew green" in printed
    before, after = load_file(checkpoint), load_file(target)
    assert after["head.weight"].tolist() == before["head.weight"][[0, 2]].tolist()
    assert after["stats.means"].tolist() == before["stats.means"][[0, 2]].tolist()
    model, metadata = restore(target)
    assert (metadata.classes, metadata.counts) == (("red", "blue"), (30, 5))
    pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    with torch.no_grad():
        logits = [one.eval()(pixels)[0][0].tolist() for one in (model, run.model)]
    assert logits[0] == pytest.approx([logits[1][0], logits[1][2]], abs=1e-5)

    # Without the class's row of the head.
    assert model.trainable_parameters == metadata.trainable_parameters
    assert run.metadata.trainable_parameters - metadata.trainable_parameters == 64
    own = own_photos(target, metadata, colours)
    assert (own.classes, own.counts) == (("red", "blue"), [30, 5])
    assert "left out: photos of green, which" in capsys.readouterr().err

    # The set still has photos of the class: they are left out, and val/ has all others.
    exported = export(target, colours, tmp_path / "bundle")
    assert exported.manifest.labels == ["red", "blue"]
    assert exported.manifest.variants[Precision.FP32].calibration
    assert "left out: photos of green, which" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no class 'gren' \(did you mean \"green\"\?\)"):
        forget(checkpoint, ["gren"], tmp_path / "no.safetensors")
    with pytest.raises(UserError, match="would keep 1 of its classes"):
        forget(checkpoint, ["green", "red"], tmp_path / "no.safetensors")


def test_a_head_whose_logits_carried_a_prior_carries_none_afterwards(
    trained: Callable[..., Run], colours: Dataset, tmp_path: Path
) -> None:
    run = trained(loss={"name": "cross-entropy"}, epochs=1)
    path = tmp_path / "plain.safetensors"
    save(path, run.model, run.metadata)
    new = write_colours(tmp_path / "new" / "train", {"orange": 3}).parent
    metadata = extend(path, new, tmp_path / "more.safetensors", old=colours)
    assert metadata.recipe.loss.name == "logit-adjusted"
    exported = export(
        tmp_path / "more.safetensors", load_dataset(str(new), least=1), tmp_path / "bundle"
    )
    assert [info.prior for info in exported.manifest.classes] == pytest.approx([0.25] * 4)
    less = forget(path, ["green"], tmp_path / "less.safetensors")
    assert less.recipe == run.metadata.recipe


def test_what_a_checkpoint_cannot_learn_is_one_line(
    trained: Callable[..., Run], checkpoint: Path, colours: Dataset, tmp_path: Path
) -> None:
    new = write_colours(tmp_path / "new", {"orange": 1})

    def refused(match: str, source: Path, target: Path) -> None:
        with pytest.raises(UserError, match=match) as error:
            extend(source, new, target, old=colours)
        assert "\n" not in str(error.value)

    run = trained(head={"kind": "linear"}, epochs=1)
    save(tmp_path / "linear.safetensors", run.model, run.metadata)
    target = tmp_path / "more.safetensors"
    refused("has no cosine head", tmp_path / "linear.safetensors", target)
    refused("does not exist: make it with `taillift train`", tmp_path / "no.safetensors", target)
    refused("exists already", checkpoint, checkpoint)
    refused("end the name in .safetensors", checkpoint, tmp_path / "more")
    resume_path(target).write_bytes(b"a run that was interrupted")
    refused("was left by an interrupted run", checkpoint, target)
    assert resume_path(target).exists()
    result = CliRunner().invoke(
        app, ["extend", str(tmp_path), str(new), "--out", str(target), "--old-photos", "photos"]
    )
    assert "--old-photos is for a checkpoint" in str(result.exception)
    result = CliRunner().invoke(
        app, ["extend", str(tmp_path), str(new), "--out", str(target), "--add", "photos"]
    )
    assert "--add is for a checkpoint" in str(result.exception)

    # With photos of some classes there is no graph that is made from photos of all.
    extend(checkpoint, new, tmp_path / "good.safetensors")
    photos = load_dataset(
        str(write_colours(tmp_path / "one" / "train", {"orange": 1}).parent), least=1
    )
    with pytest.raises(UserError, match="lacks photos of 3 of the 4 classes, and int8 is made"):
        export(
            tmp_path / "good.safetensors", photos, tmp_path / "bundle", variants=[Precision.INT8]
        )


def test_a_trained_bundle_is_extended_and_calibrated_again(
    trained: Callable[..., Run], colours: Dataset, tmp_path: Path
) -> None:
    run = trained()
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

    # The folder may still have the class.
    command("calibrate", tmp_path / "less", every, "--out", tmp_path / "again")
    again = read_manifest(tmp_path / "again")
    assert again.labels == list(colours.classes)
    assert again.variants[Precision.FP32].calibration


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
