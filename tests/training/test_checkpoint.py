from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny import write_backbone

from models import UserError
from models.lift.backbone import load_backbone
from training.checkpoint import Facts, read_facts, restore, save
from training.dataset import Dataset
from training.recipe import Recipe
from training.train import Run, Trainer

PIXELS = torch.randint(
    0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(scope="module")
def run(colours: Dataset, tiny_backbone: str) -> Run:
    recipe = Recipe(method="lift", rank=2, epochs=2, batch=16, head_rate=0.05, tuner_rate=0.05)
    return Trainer(colours, load_backbone(tiny_backbone), torch.device("cpu")).train(recipe)


@pytest.fixture
def checkpoint(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "run" / "lift.safetensors"
    save(path, run.model, run.facts)
    return path


@torch.no_grad()
def test_a_restored_model_gives_the_same_logits(run: Run, checkpoint: Path) -> None:
    model, facts = restore(checkpoint)
    assert facts == run.facts
    assert torch.equal(model.eval()(PIXELS)[0], run.model.eval()(PIXELS)[0])


def test_it_holds_what_was_trained_and_nothing_else(run: Run, checkpoint: Path) -> None:
    with safe_open(checkpoint, "pt") as file:
        sizes = [int(np.prod(file.get_slice(name).get_shape())) for name in file.keys()]  # noqa: SIM118
    assert sum(sizes) == run.facts.trainable_parameters == 2 * (4 * 64 + 2 + 3 * 64 + 1) + 3 * 64


def test_it_says_all_that_is_needed_to_build_the_model(checkpoint: Path) -> None:
    facts = read_facts(checkpoint)
    assert facts.classes == ("red", "green", "blue")
    assert facts.counts == (30, 21, 5)
    assert facts.prompts[2] == "a photo of a blue."
    assert (facts.preprocessing.size, facts.preprocessing.expand) == (32, 12)
    assert facts.recipe.rank == 2


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": Recipe(method="lift", rank=4)},
        {"recipe": Recipe(method="head")},
        {"recipe": Recipe(method="full")},
        {"prompts": ("a", "b"), "classes": ("a", "b"), "counts": (3, 4)},
    ],
    ids=["other rank", "head only", "full", "other classes"],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    run: Run, tmp_path: Path, change: dict[str, object]
) -> None:
    """A checkpoint whose facts and tensors disagree never loads quietly with parts missing."""
    path = tmp_path / "bad.safetensors"
    save(path, run.model, Facts.model_validate({**run.facts.model_dump(), **change}))
    with pytest.raises(UserError, match=r"does not fit its own recipe: (head|tower)\."):
        restore(path)


def test_another_backbone_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trained on other weights.*--backbone"):
        restore(checkpoint, write_backbone(tmp_path, seed=1))


def test_a_cut_off_file_is_refused(checkpoint: Path) -> None:
    data = checkpoint.read_bytes()
    for length in (0, 5, len(data) // 2, len(data) - 1):
        checkpoint.write_bytes(data[:length])
        with pytest.raises(UserError, match="is no checkpoint"):
            restore(checkpoint)


def test_a_missing_file_or_foreign_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        restore(tmp_path / "absent.safetensors")
    foreign = Path(write_backbone(tmp_path).split(":")[1])
    with pytest.raises(UserError, match="is not a taillift checkpoint"):
        restore(foreign)
