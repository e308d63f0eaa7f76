"""Cross-fitting evaluates each photo only with a model that was not trained on it."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from taillift.models.bundle.schema import Group, Precision
from taillift.models.lift.backbone import load_backbone
from taillift.training.calibration.cross_fit import Write, carried_prior, cross_fit
from taillift.training.data.dataset import Dataset, load_dataset
from taillift.training.evaluation import view_logits
from taillift.training.export.graphs import Graphs
from taillift.training.fit.inputs import evaluation_photos
from taillift.training.fit.progress import Log
from taillift.training.recipe.recipe import Recipe
from taillift.training.train import Run, Trainer
from tests.support.tiny import write_photos

PIXELS = np.zeros((2, 32, 32, 3), np.uint8)


class Recorded(Trainer):
    """A trainer that remembers which photos each run left out, and the run."""

    def __init__(self, dataset: Dataset, backbone: str) -> None:
        super().__init__(dataset, load_backbone(backbone), torch.device("cpu"))
        self.runs: list[tuple[list[int], Run]] = []

    def train(
        self,
        recipe: Recipe,
        resume_file: Path | None = None,
        curves_folder: Path | None = None,
        without: Collection[int] = (),
        logs: Sequence[Log] = (),
    ) -> Run:
        run = super().train(recipe, resume_file, curves_folder, without, logs)
        self.runs.append((sorted(without), run))
        return run


def recipe(loss: str) -> Recipe:
    rates = {"head_rate": 0.05, "tuner_rate": 0.05}
    fields = {"name": "short", "epochs": 1, "batch": 8, "optimiser": rates, "loss": {"name": loss}}
    return Recipe.model_validate(fields)


@pytest.fixture
def few(tmp_path: Path) -> Dataset:
    return load_dataset(str(write_photos(tmp_path / "few", {"red": 6, "green": 3, "blue": 1})))


def test_duplicates_of_a_photo_are_held_out_together_and_evaluated_once(
    tmp_path: Path, tiny_backbone: str
) -> None:
    root = write_photos(tmp_path / "twins", {"red": 4, "green": 3})
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "camera"
    with Image.open(root / "train/red/001.png") as image:
        image.save(root / "train/red/zz.png", exif=exif)  # The same pixels in another file.
    twins = load_dataset(str(root))
    names = [photo.name for photo in twins.train.photos]
    pair = {names.index("train/red/001.png"), names.index("train/red/zz.png")}
    trainer = Recorded(twins, tiny_backbone)
    held = cross_fit(trainer, recipe("cross-entropy"), None, ["few", "few"])
    assert all(len(pair & set(aside)) != 1 for aside, _ in trainer.runs)
    assert any(pair <= set(aside) for aside, _ in trainer.runs)
    assert len(held[Precision.FP32]) == 7


# Two folds are enough for graphs, of which each takes seconds to write.
@pytest.mark.parametrize(
    ("write", "folds"), [(None, 5), (Graphs(PIXELS).write, 2)], ids=["torch", "graphs"]
)
def test_a_photos_logits_come_from_the_model_that_was_not_trained_on_it(
    write: Write | None,
    folds: int,
    few: Dataset,
    tiny_backbone: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("taillift.training.calibration.cross_fit.FOLDS", folds)
    trainer = Recorded(few, tiny_backbone)
    groups: list[Group] = ["few", "few", "few"]
    fitted = cross_fit(trainer, recipe("cross-entropy"), write, groups)
    told = [line for line in capsys.readouterr().err.splitlines() if "Cross-fitting" in line]
    assert told[0] == f"Cross-fitting, because there is no val/: training 1 of {folds}"
    assert len(told) == folds
    assert all(line.endswith(" left") for line in told[1:])
    held = fitted[Precision.FP32]
    held_out = [photo for aside, _ in trainer.runs for photo in aside]
    assert sorted(held_out) == [index for index, label in enumerate(few.train.labels) if label < 2]
    assert held.labels.tolist() == [few.train.labels[photo] for photo in held_out]
    assert (held.source, held.data) == (
        "cross-fitting",
        f"9 training photos of few, in {folds} folds",
    )
    # Without graphs, the frozen features are kept in float16.
    tolerance = 1e-4 if write else 0.03
    start = 0
    for aside, run in trainer.runs:
        left = np.bincount([few.train.labels[row] for row in range(10) if row not in aside])
        photos = evaluation_photos(few.train.only(aside), run.metadata.preprocessing)
        expected = view_logits(run.model, photos, torch.device("cpu")) - np.log(left / left.sum())
        rows = held.view_logits[start : start + len(aside)]
        np.testing.assert_allclose(centred(rows), centred(expected), atol=tolerance)
        start += len(aside)
    models = [run.model.head.state_dict() for _, run in trainer.runs]
    assert not all(
        torch.equal(first, second)
        for first, second in zip(models[0].values(), models[1].values(), strict=True)
    ), "different photos give a different model"


def centred(logits: np.ndarray) -> np.ndarray:
    """Return logits without the constant that all classes share, which means nothing."""
    return np.asarray(logits - logits.mean(-1, keepdims=True))


def test_photos_that_have_to_stay_in_training_are_not_held_out(
    tiny_backbone: str, tmp_path: Path
) -> None:
    ones = load_dataset(str(write_photos(tmp_path / "ones", {"red": 1, "blue": 1})))
    trainer = Recorded(ones, tiny_backbone)
    assert cross_fit(trainer, recipe("focal"), Graphs(PIXELS).write, ["few", "few"]) == {}
    assert trainer.runs == []


def test_only_a_trained_model_carries_a_prior() -> None:
    assert carried_prior(recipe("cross-entropy"), [3, 1]) == pytest.approx([0.75, 0.25])
    untrained = recipe("cross-entropy").model_copy(update={"epochs": 0})
    assert carried_prior(untrained, [3, 1]) == [0.5, 0.5]
