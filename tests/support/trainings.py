"""Training in processes of its own, which torchrun starts or a test kills."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter

import taillift.models.lift
import taillift.training.fit.resume
from taillift.models.lift.backbone import load_backbone
from taillift.training.data.dataset import load_dataset
from taillift.training.fit.checkpoint import save
from taillift.training.fit.resume import resume_path
from taillift.training.recipe.recipe import Recipe
from taillift.training.train import Trainer

RECIPES = TypeAdapter(tuple[Recipe, ...])


def run(backbone: str, data: str, recipes: Sequence[Recipe], out: Path) -> None:
    """Train each recipe, on the CPU, and leave NAME.safetensors in `out`."""
    import open_clip

    torch.set_num_threads(1)
    open_clip.add_model_config(Path(backbone.split(":")[1]).parent)
    trainer = Trainer(load_dataset(data), load_backbone(backbone), torch.device("cpu"))
    for recipe in recipes:
        path = out / f"{recipe.name}.safetensors"
        done = trainer.train(recipe, resume_path(path))
        save(path, done.model, done.metadata)


def run_saving_often(backbone: str, data: str, recipes: Sequence[Recipe], out: Path) -> None:
    """The same, with a state after every step."""
    taillift.training.fit.resume.SAVE_EVERY = 0.0
    run(backbone, data, recipes, out)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], RECIPES.validate_json(sys.argv[3]), Path(sys.argv[4]))
