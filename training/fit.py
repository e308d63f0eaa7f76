"""The training loop."""

import math
import time
from collections.abc import Sequence
from functools import cache
from typing import Final

import torch
from torch import nn, split
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from models import UserError
from models.lift.model import Model
from training.inputs import Inputs
from training.loss import LogitAdjusted
from training.progress import epochs_bar
from training.recipe import Recipe

# What a CPU's caches hold: about a seventh faster than 64 at once, and the same sum of gradients.
CPU_MICRO_BATCH: Final = 32


def fit(
    model: Model, inputs: Inputs, counts: Sequence[int], recipe: Recipe, device: torch.device
) -> list[float]:
    """Train what is unfrozen in `model` and leave it on the CPU; returns each epoch's mean loss.

    SGD on the logit-adjusted loss, its rates on a cosine that steps once an epoch (LIFT, section
    4.1). Raises `UserError` where the loss is no longer a number.
    """
    shuffle = torch.Generator().manual_seed(recipe.seed)
    model.to(device).eval()
    network = network_behind(model, inputs.stage)
    criterion = LogitAdjusted(counts, recipe.tau).to(device)
    optimiser = SGD(
        parameter_groups(model, recipe),
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    schedule = CosineAnnealingLR(optimiser, T_max=recipe.epochs)
    bf16 = bf16_is_faster(device)
    micro = CPU_MICRO_BATCH if device.type == "cpu" else recipe.batch
    losses: list[float] = []
    title = f"Training {recipe.method}, seed {recipe.seed}"
    with epochs_bar(title, recipe.epochs) as progress:
        for epoch in range(recipe.epochs):
            summed = 0.0
            photos = torch.randperm(len(inputs.labels), generator=shuffle).tolist()
            order = [(photo, epoch) for photo in photos]
            for rows, labels in inputs.batches(order, recipe.batch):
                optimiser.zero_grad()
                for part, targets in zip(split(rows, micro), split(labels, micro), strict=True):
                    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                        features = network(part.to(device))
                    logits, _ = model.head(features.float())
                    loss = criterion(logits, targets.to(device)) * len(targets)
                    (loss / len(labels)).backward()
                    summed += loss.item()
                optimiser.step()
            schedule.step()
            losses.append(summed / len(order))
            progress.update(progress.task_ids[0], advance=1, loss=losses[-1])
            if not math.isfinite(losses[-1]):
                raise UserError(
                    f"the loss is {losses[-1]} after epoch {epoch + 1}: lower the learning rates "
                    f"(head {recipe.head_rate}, tuner {recipe.tuner_rate})"
                )
    model.cpu()
    return losses


def network_behind(model: Model, stage: int) -> nn.Module:
    """What turns rows behind the tower's first `stage` stages into features; pixels where 0."""
    return model.tower[stage:] if stage else nn.Sequential(model.normalise, model.tower)


def parameter_groups(model: Model, recipe: Recipe) -> list[dict[str, object]]:
    """The head and what is trained in the tower, each at its own rate."""
    head = [one for one in model.head.parameters() if one.requires_grad]
    tower = [one for one in model.tower.parameters() if one.requires_grad]
    return [
        {"params": params, "lr": rate}
        for params, rate in ((head, recipe.head_rate), (tower, recipe.tuner_rate))
        if params
    ]


@cache
def bf16_is_faster(device: torch.device) -> bool:
    """Whether bfloat16 autocast pays: on CUDA where it is built in, on a CPU by a measurement."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    layer, rows = nn.Linear(512, 2048), torch.randn(512, 512)
    seconds = {True: math.inf, False: math.inf}
    for _ in range(4):
        for enabled in seconds:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                start = time.perf_counter()
                layer(rows)
                seconds[enabled] = min(seconds[enabled], time.perf_counter() - start)
    return seconds[True] < 0.8 * seconds[False]
