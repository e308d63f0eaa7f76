"""The trained tensors, and what changes them step by step."""

import math
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn, split
from torch.optim import SGD, AdamW, Optimizer

from taillift.models.lift.model import Model
from taillift.training.fit.distributed import Processes
from taillift.training.recipe.recipe import Optimiser, Recipe


class Learner:
    """Takes gradients to the trained tensors of one model, which is the same in all processes."""

    def __init__(self, model: Model, recipe: Recipe, processes: Processes, fabric: Fabric) -> None:
        self._options = recipe.optimiser
        self._launcher = processes
        self._fabric = fabric
        self.parameters = list(model.trained().values())
        self._start_alike()
        self.optimiser = new_optimiser(model, recipe.optimiser)
        self._rates = [group["lr"] for group in self.optimiser.param_groups]
        self._anchors = [(one, one.detach().clone()) for one in model.head.parameters()]
        self._average = [
            one.detach().clone() for one in self.parameters if recipe.optimiser.average
        ]

    def clear(self) -> None:
        """No gradient yet: zeros, so that processes without an example have something to add."""
        for one in self.parameters:
            one.grad = torch.zeros_like(one)

    def update(self, step: int, factor: float) -> dict[str, float]:
        """One step with the sum of all processes' gradients; done by all.

        Returns the rates, `factor` times the recipe's, by the name of their curve; `step` counts
        all steps from 0.
        """
        if self._launcher.size > 1:
            self._sum_gradients()
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._pull(self._options.head_rate * factor)
        self._fabric.strategy.optimizer_step(self.optimiser)
        self._follow(step)
        return {f"rate/{group['name']}": group["lr"] for group in self.optimiser.param_groups}

    @torch.no_grad()
    def finish(self) -> None:
        """The moving average takes the place of the weights, where the recipe asks for it."""
        for one, average in zip(self.parameters, self._average, strict=False):
            one.copy_(average)

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on exactly from here."""
        return {
            "trained": [one.detach() for one in self.parameters],
            "average": self._average,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self._fabric.strategy.precision.state_dict(),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        for key, tensors in (("trained", self.parameters), ("average", self._average)):
            for one, kept in zip(tensors, state[key], strict=True):
                one.copy_(kept)
        self.optimiser.load_state_dict(state["optimiser"])
        self._fabric.strategy.precision.load_state_dict(state["scaler"])

    @torch.no_grad()
    def _start_alike(self) -> None:
        """From the first process's tensors: another machine's may differ in the last bit."""
        for one in self.parameters:
            one.copy_(
                self._launcher.sum(one if self._launcher.rank == 0 else torch.zeros_like(one))
            )

    def _sum_gradients(self) -> None:
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        summed = self._launcher.sum(torch.cat([one.flatten() for one in gradients]))
        parts = split(summed, [one.numel() for one in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def _pull(self, rate: float) -> None:
        """The head back toward where it started, apart from the gradients, as AdamW decays."""
        if self._options.head_anchor:
            for one, start in self._anchors:
                one.lerp_(start, rate * self._options.head_anchor)

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        decay = average_decay(self._options.average, step)
        for average, one in zip(self._average, self.parameters, strict=False):
            average.lerp_(one, 1 - decay)


def new_optimiser(model: Model, options: Optimiser) -> Optimizer:
    """SGD or AdamW over the head and what is trained in the tower, each with its own rate.

    As in LIFT, biases and scales decay like everything else, by AdamW, too.
    """
    parts: list[tuple[str, nn.Module, float, float]] = [
        ("head", model.head, options.head_rate, options.head_decay),
        ("tower", model.tower, options.tuner_rate, options.tuner_decay),
    ]
    groups = [
        {"name": name, "params": params, "lr": rate, "weight_decay": decay}
        for name, part, rate, decay in parts
        if (params := [one for one in part.parameters() if one.requires_grad])
    ]
    if options.name == "adamw":
        return AdamW(groups)
    return SGD(groups, momentum=options.momentum)


def rate_factor(options: Optimiser, step: int, steps: int, epochs: int) -> float:
    """What the rates are multiplied with in `step`, from 0, of `steps` an epoch.

    They fall on half a cosine that steps once an epoch, as LIFT's (section 4.1), or at every batch,
    then from the end of the warm-up on. In the warm-up they rise linearly (Goyal et al. 2017,
    section 2.2).
    """
    total = steps * epochs
    warmup = round(options.warmup * total)
    if options.step == "epoch":
        done = step // steps / epochs
    else:
        done = max(0, step - warmup) / max(1, total - warmup)
    rise = min(1.0, (step + 1) / (warmup + 1))
    return rise * (1 + math.cos(math.pi * done)) / 2


def average_decay(decay: float, step: int) -> float:
    """The moving average's decay, smaller in the first steps, which it is to forget.

    That is min(decay, (1 + n) / (10 + n)) after n steps, as TensorFlow's moving average has it.
    """
    return min(decay, (1 + step) / (10 + step))
