"""Trains in separate processes, which torchrun starts or which a test kills."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from pydantic import TypeAdapter

from taillift.models.lift.backbone import load_backbone
from taillift.training.data.dataset import load_dataset
from taillift.training.data.pool import own_pool, with_unlabelled
from taillift.training.fit import resume
from taillift.training.fit.checkpoint import save
from taillift.training.fit.optimisation import OptimisationState
from taillift.training.fit.resume import resume_path
from taillift.training.recipe.recipe import Recipe
from taillift.training.train import Trainer

RECIPES = TypeAdapter(tuple[Recipe, ...])


def run(backbone: str, data: str, recipes: Sequence[Recipe], out: Path) -> None:
    """Train each recipe on the CPU and write NAME.safetensors to `out`."""
    import open_clip

    torch.set_num_threads(1)
    open_clip.add_model_config(Path(backbone.split(":")[1]).parent)
    dataset = load_dataset(data)
    if pool := own_pool(data):
        dataset = with_unlabelled(dataset, pool)
    trainer = Trainer(dataset, load_backbone(backbone), torch.device("cpu"))
    for recipe in recipes:
        path = out / f"{recipe.name}.safetensors"
        done = trainer.train(recipe, resume_path(path))
        save(path, done.model, done.metadata)


def launch(processes: int, backbone: str, data: str, recipes: Sequence[Recipe], out: Path) -> None:
    """Do the same as `run` in so many processes, which torchrun starts."""
    paths = [os.fsdecode(path) for path in (Path(__file__).parent, Path.cwd())]
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), __file__, backbone),
            *(data, RECIPES.dump_json(tuple(recipes)).decode(), str(out)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr


def run_saving_often(backbone: str, data: str, recipes: Sequence[Recipe], out: Path) -> None:
    """Do the same as `run`, and save the state of the run after every step."""
    with patch.object(resume, "SAVE_EVERY", 0.0):
        run(backbone, data, recipes, out)


def interrupt(
    trainer: Trainer, recipe: Recipe, state: Path, after: int, curves: Path | None = None
) -> None:
    """Interrupt a training after so many steps; it writes its resume file after each."""
    real = OptimisationState.update

    def update(self: OptimisationState, step: int, factor: float) -> dict[str, float]:
        if step == after:
            raise KeyboardInterrupt
        return real(self, step, factor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taillift.training.fit.resume.SAVE_EVERY", 0.0)
        patch.setattr(OptimisationState, "update", update)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(recipe, state, curves)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], RECIPES.validate_json(sys.argv[3]), Path(sys.argv[4]))
