"""How long a run will take on this machine, estimated before it begins."""

import math
import time
from functools import cache
from typing import Final

import torch

from taillift.models.bundle.images import VIEWS
from taillift.models.lift.backbone import Backbone
from taillift.models.lift.model import Model
from taillift.models.lift.tower import Tower
from taillift.training.data.dataset import Dataset
from taillift.training.fit.build import build_model, resolve_recipe, weight_shape
from taillift.training.fit.distributed import Precision, resolve_precision
from taillift.training.fit.frozen_features import (
    WORTHWHILE,
    copies_for,
    remaining_network,
    stage_operations,
)
from taillift.training.recipe.head_init import ClassMeanInit, LinearProbeInit, PrototypesInit
from taillift.training.recipe.recipe import Recipe

# Photos of each step that is timed, and the number of these steps.
TIMED_PHOTOS: Final = 8
TIMED_STEPS: Final = 4
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
    operations, steps = whole * (views + photos * from_photos), 0.0
    if recipe.epochs:
        weight = torch.zeros(weight_shape(backbone, recipe.head, len(dataset.classes)))
        model = build_model(backbone, recipe, weight)
        frozen = sum(stages[: model.tower.frozen_stages])
        crops = min(photos * recipe.epochs, recipe.total_steps(photos, photos) * recipe.batch)
        cached = frozen >= WORTHWHILE * whole
        if cached:
            copies = copies_for(
                dataset.train.labels, dataset.counts, recipe.augmentation, recipe.epochs
            )
            operations += frozen * sum(copies)
        stage = model.tower.frozen_stages if cached else 0
        precision = resolve_precision(recipe.precision, device)
        one = step_seconds(model, stage, backbone.image.size, precision, device)
        steps = crops * one
        if recipe.teaching and dataset.unlabelled:
            # A weak view goes forward, a third of a step, and a strong one is a step.
            pool = len(dataset.unlabelled)
            taken = crops * recipe.teaching.ratio
            kept = min(recipe.augmentation.copies, -(-taken // pool)) * pool
            operations += 2 * frozen * (kept if cached else 0)
            steps += 4 / 3 * one * taken
    return START + steps + operations / operations_a_second(device)


def evaluation_seconds(tower: Tower, size: int, photos: int) -> float:
    """Return about how many seconds all views of so many photos take on the CPU."""
    operations = VIEWS * photos * sum(view_operations(tower, size))
    return START + operations / operations_a_second(torch.device("cpu"))


def view_operations(tower: Tower, size: int) -> list[int]:
    """Return the floating-point operations of each stage on one view of `size` S, in pixels."""
    return [operations for operations, _ in stage_operations(tower, size)]


def step_seconds(
    model: Model, stage: int, size: int, precision: Precision, device: torch.device
) -> float:
    """Return the seconds a photo of a training step behind the first `stage` stages, as timed now.

    The photos are of `size` S, in pixels. Decoding and the optimiser are not counted.
    """
    model = model.to(device).eval()
    rows = torch.zeros(TIMED_PHOTOS, size, size, 3, dtype=torch.uint8, device=device)
    if stage:
        with torch.no_grad():
            rows = model.tower[:stage](model.normalise(rows))
    network = remaining_network(model, stage)
    dtype = torch.half if precision == "fp16" else torch.bfloat16
    seconds = math.inf
    # The first step also prepares what later ones use again, and other work may disturb one.
    for _ in range(TIMED_STEPS):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            features = network(rows)
        model.head(features.float())[0].sum().backward()
        # Reading a number waits for the device.
        next(model.head.parameters()).sum().item()
        seconds = min(seconds, time.perf_counter() - start)
    return seconds / TIMED_PHOTOS


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
