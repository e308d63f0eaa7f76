"""How long a run will take on this machine, estimated before it begins."""

import time
from functools import cache
from typing import Final

import torch

from taillift.models.bundle.images import VIEWS
from taillift.models.lift.backbone import Backbone
from taillift.models.lift.tower import Tower
from taillift.training.data.dataset import Dataset
from taillift.training.fit.build import resolve_recipe
from taillift.training.fit.frozen_features import WORTHWHILE, copies_for, stage_operations
from taillift.training.recipe.head_init import ClassMeanInit, LinearProbeInit, PrototypesInit
from taillift.training.recipe.recipe import Recipe

# A backward pass takes about twice the operations of the forward pass.
FORWARD_AND_BACKWARD: Final = 3
# The towers reach about this share of the speed of one large matrix product.
EFFICIENCY: Final = 0.6
# Seconds of loading and compiling.
START: Final = 15.0


def training_seconds(
    backbone: Backbone, dataset: Dataset, recipe: Recipe, device: torch.device
) -> float:
    """Return about how many seconds training `recipe` takes, with its evaluation on val/."""
    recipe = resolve_recipe(backbone, recipe, dataset.counts)
    stages = view_operations(backbone.tower, backbone.image.size)
    photos, whole = len(dataset.train), sum(stages)
    views = VIEWS * len(dataset.val) if dataset.val else 0
    from_photos = isinstance(recipe.head.initial, PrototypesInit | ClassMeanInit | LinearProbeInit)
    operations = whole * (views + photos * from_photos)
    if recipe.epochs:
        frozen = sum(stages[: first_tuned_stage(backbone, recipe)])
        crops = photos * recipe.epochs
        if frozen >= WORTHWHILE * whole:
            copies = copies_for(
                dataset.train.labels, dataset.counts, recipe.augmentation, recipe.epochs
            )
            operations += frozen * sum(copies)
        else:
            operations += frozen * crops
        operations += FORWARD_AND_BACKWARD * (whole - frozen) * crops
        if recipe.teaching and dataset.unlabelled:
            # A weak view goes forward, and a strong one forward and back.
            pool, steps = len(dataset.unlabelled), -(-photos // recipe.batch) * recipe.epochs
            taken = steps * recipe.batch * recipe.teaching.ratio
            kept = min(recipe.augmentation.copies, -(-taken // pool)) * pool
            seen = kept if frozen >= WORTHWHILE * whole else taken
            operations += 2 * frozen * seen
            operations += (1 + FORWARD_AND_BACKWARD) * (whole - frozen) * taken
    return START + operations / operations_a_second(device)


def evaluation_seconds(tower: Tower, size: int, photos: int) -> float:
    """Return about how many seconds all views of so many photos take on the CPU."""
    operations = VIEWS * photos * sum(view_operations(tower, size))
    return START + operations / operations_a_second(torch.device("cpu"))


def first_tuned_stage(backbone: Backbone, recipe: Recipe) -> int:
    """Return the number of the tower's stages before the first that `recipe` trains."""
    tunable = backbone.tower.tunable
    if not recipe.tuners:
        return len(backbone.tower)
    first = tunable[-min(recipe.blocks or len(tunable), len(tunable))]
    return next(index for index, stage in enumerate(backbone.tower) if stage is first)


def view_operations(tower: Tower, size: int) -> list[int]:
    """Return the floating-point operations of each stage on one view of `size` S, in pixels."""
    return [operations for operations, _ in stage_operations(tower, size)]


@cache
def operations_a_second(device: torch.device) -> float:
    """Return the towers' speed, from how long matrix products take on `device` now."""
    factor = torch.rand(1024, 1024, device=device)
    (factor @ factor).sum().item()
    start, rounds = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < 0.3:
        (factor @ factor).sum().item()
        rounds += 1
    return EFFICIENCY * rounds * 2 * 1024**3 / seconds
