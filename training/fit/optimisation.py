"""Gradients of the trained tensors, the optimiser that follows them, the schedule of its rates."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn, split
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer

from taillift.models.errors import UserError
from taillift.models.lift.model import Model
from taillift.training.console import steps_bar
from taillift.training.fit.distributed import Processes
from taillift.training.fit.frozen_features import remaining_network
from taillift.training.fit.inputs import Inputs, epoch_order
from taillift.training.recipe.recipe import Optimiser, Recipe

# The losses [N] of features [N, D] with labels int64 [N].
Objective = Callable[[Tensor, Tensor], Tensor]

# So many photos fit a CPU's caches: about a seventh faster than 64, with the same gradients.
CPU_MICRO_BATCH: Final = 32
# Of the recipe's rate, for a tower that learns new classes and must not forget the old ones.
SLOW_RATE: Final = 0.1


class DivergedError(UserError):
    """The learning rates are so high that nothing is left to continue from."""

    def __init__(self, symptom: str, options: Optimiser) -> None:
        head, tuner = options.head_rate, options.tuner_rate
        super().__init__(f"{symptom}: lower the learning rates (head {head:g}, tuner {tuner:g})")


class OptimisationState:
    """The trained tensors of one model with their optimiser, anchors and moving average (EMA).

    All processes hold the same state: a step adds up their gradients.
    """

    def __init__(self, model: Model, recipe: Recipe, processes: Processes, fabric: Fabric) -> None:
        self._options = recipe.optimiser
        self._processes = processes
        self._fabric = fabric
        self.parameters = list(model.trained().values())
        self.broadcast_weights()
        self.optimiser = new_optimiser(model, recipe.optimiser)
        self._rates = [group["lr"] for group in self.optimiser.param_groups]
        self._anchors = [
            (tensor, tensor.detach().clone())
            for tensor in model.head.parameters()
            if tensor.requires_grad
        ]
        self._ema = [
            tensor.detach().clone() for tensor in self.parameters if recipe.optimiser.average
        ]

    @torch.no_grad()
    def broadcast_weights(self) -> None:
        """Start from the first process's weights. Collective.

        Weights computed on another machine may differ in the last bit.
        """
        first = self._processes.rank == 0
        for tensor in self.parameters:
            own = tensor if first else torch.zeros_like(tensor)
            tensor.copy_(self._processes.all_reduce(own))

    def zero_grad(self) -> None:
        """Set the gradients to zeros, so that a process without a photo adds nothing."""
        for tensor in self.parameters:
            tensor.grad = torch.zeros_like(tensor)

    def update(self, step: int, factor: float) -> dict[str, float]:
        """Take one step with the sum of all processes' gradients. Collective.

        `step` counts all steps of the run from 0. Returns the rates by the names of their curves;
        they are `factor` times the recipe's.
        """
        if self._processes.size > 1:
            self.all_reduce_gradients()
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self.decay_to_anchor(self._options.head_rate * factor)
        self._fabric.strategy.optimizer_step(self.optimiser)
        self.update_ema(step)
        return {f"rate/{group['name']}": group["lr"] for group in self.optimiser.param_groups}

    def all_reduce_gradients(self) -> None:
        """Replace each gradient by the sum of all processes' gradients. Collective."""
        gradients = [tensor.grad for tensor in self.parameters if tensor.grad is not None]
        total = self._processes.all_reduce(torch.cat([grad.flatten() for grad in gradients]))
        parts = split(total, [grad.numel() for grad in gradients])
        for grad, part in zip(gradients, parts, strict=True):
            grad.copy_(part.view_as(grad))

    @torch.no_grad()
    def decay_to_anchor(self, rate: float) -> None:
        """Move the head toward its initial weights, apart from the gradients, as AdamW decays."""
        if self._options.head_anchor:
            for tensor, start in self._anchors:
                tensor.lerp_(start, rate * self._options.head_anchor)

    @torch.no_grad()
    def update_ema(self, step: int) -> None:
        """Move the average toward the weights after `step`, if the recipe asks for an average."""
        decay = ema_decay(self._options.average, step)
        for average, tensor in zip(self._ema, self.parameters, strict=False):
            average.lerp_(tensor, 1 - decay)

    @torch.no_grad()
    def load_ema(self) -> None:
        """Replace the weights by their average, if the recipe asks for an average."""
        for tensor, average in zip(self.parameters, self._ema, strict=False):
            tensor.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """Return all that another process needs to continue exactly from here."""
        return {
            "trained": [tensor.detach() for tensor in self.parameters],
            "average": self._ema,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self._fabric.strategy.precision.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for key, tensors in (("trained", self.parameters), ("average", self._ema)):
            for tensor, saved in zip(tensors, state[key], strict=True):
                tensor.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self._fabric.strategy.precision.load_state_dict(state["scaler"])


def new_optimiser(model: Model, options: Optimiser) -> Optimizer:
    """Return SGD or AdamW over the head and the tower's trained tensors, each with its own rate.

    As in LIFT, biases and scales decay like all other tensors, with AdamW too.
    """
    parts: list[tuple[str, nn.Module, float, float]] = [
        ("head", model.head, options.head_rate, options.head_decay),
        ("tower", model.tower, options.tuner_rate, options.tuner_decay),
    ]
    groups = [
        {"name": name, "params": params, "lr": rate, "weight_decay": decay}
        for name, part, rate, decay in parts
        if (params := [tensor for tensor in part.parameters() if tensor.requires_grad])
    ]
    if options.name == "adamw":
        return AdamW(groups)
    return SGD(groups, momentum=options.momentum)


def tune_tower(
    model: Model,
    recipe: Recipe,
    photos: Inputs,
    adjustment: Tensor,
    seed: int,
    device: torch.device,
) -> int:
    """Train the tower further, at a tenth of the recipe's rate, and return the number of steps.

    Only its trained tensors change; the head stays. The loss is the cross-entropy of the logits
    plus `adjustment` [C]. The tenth is between SLCA++'s rates for its first and for later tasks
    (arXiv 2408.08295). Raises `DivergedError` if nothing is left to continue from.
    """
    options = recipe.optimiser.model_copy(
        update={"tuner_rate": SLOW_RATE * recipe.optimiser.tuner_rate}
    )
    size, epochs = len(photos.labels), recipe.epochs
    steps, done = -(-size // recipe.batch), 0
    learns = model.head.weight.requires_grad
    model.head.requires_grad_(False)
    optimiser = new_optimiser(model, options)
    rates = [group["lr"] for group in optimiser.param_groups]
    model.to(device).train()
    adjustment = adjustment.to(device)
    with steps_bar("Training the tuners", steps * epochs, 0) as show:
        for epoch in range(epochs):
            for pixels, labels in photos.batches(epoch_order(size, seed, epoch), recipe.batch):
                factor = rate_factor(options, done, steps, steps * epochs)
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                optimiser.zero_grad()
                logits, _ = model(pixels.to(device))
                loss = cross_entropy(logits + adjustment, labels.to(device))
                if not loss.isfinite():
                    raise DivergedError(f"the loss is {loss.item():g} at step {done}", options)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                done += 1
                show(done, f"loss {loss.item():.3f}")
    model.cpu().eval()
    model.head.weight.requires_grad_(learns)
    return done


def rate_factor(options: Optimiser, step: int, steps: int, total: int) -> float:
    """Return the factor of the rates in `step` of `total`, which counts from 0.

    Rates fall along half a cosine. They change once an epoch of `steps`, as in LIFT (section 4.1),
    or at every batch; then the cosine begins after the warm-up. In the warm-up they rise linearly
    (Goyal et al. 2017, section 2.2).
    """
    warmup = round(options.warmup * total)
    if options.step == "epoch":
        done = step // steps / -(-total // steps)
    else:
        done = max(0, step - warmup) / max(1, total - warmup)
    rise = min(1.0, (step + 1) / (warmup + 1))
    return rise * (1 + math.cos(math.pi * done)) / 2


def ema_decay(decay: float, step: int) -> float:
    """Return the moving average's decay after `step`: min(decay, (1 + n) / (10 + n)).

    It is smaller in the first steps, so that the average forgets the initial weights (the formula
    of TensorFlow's `ExponentialMovingAverage`).
    """
    return min(decay, (1 + step) / (10 + step))


class GradientAccumulator:
    """Adds the gradients of a batch's mean loss to the trained tensors, `micro` photos at a time.

    The model gets rows behind the tower's first `stage` stages, or pixels if `stage` is 0.
    """

    def __init__(self, model: Model, stage: int, fabric: Fabric, micro: int) -> None:
        self._network = remaining_network(model, stage)
        self._fabric = fabric
        self._micro = micro

    def add(self, shard: tuple[Tensor, Tensor] | None, batch: int, objective: Objective) -> Tensor:
        """Add the gradients of this process's rows and labels from a batch of `batch` photos.

        Returns their part of the batch's mean loss; 0 for a process that has no photo of it.
        """
        device = self._fabric.device
        loss = torch.zeros((), device=device)
        if shard is None:
            return loss
        for rows, labels in zip(*(split(tensor, self._micro) for tensor in shard), strict=True):
            with self._fabric.autocast():
                features = self._network(rows.to(device))
            part = objective(features.float(), labels.to(device)).sum() / batch
            self._fabric.backward(part)
            loss += part.detach()
        return loss

    @torch.no_grad()
    def features(self, rows: Tensor) -> Tensor:
        """Return the features float32 [N, D] of `rows`, without gradients, on the device."""
        parts: list[Tensor] = []
        for part in split(rows, self._micro):
            with self._fabric.autocast():
                parts.append(self._network(part.to(self._fabric.device)).float())
        return torch.cat(parts)


def micro_batch(recipe: Recipe, processes: Processes) -> int:
    """Return how many photos go through the model at once: the recipe's, or a default.

    By default a GPU takes this process's whole part of a batch. So does a CPU if the loss needs to
    see a batch whole; otherwise it takes `CPU_MICRO_BATCH`.
    """
    if recipe.micro_batch is not None:
        return recipe.micro_batch
    if processes.device.type == "cpu" and not recipe.loss.whole_batch:
        return CPU_MICRO_BATCH
    return -(-recipe.batch // processes.size)


@contextmanager
def enough_memory(recipe: Recipe, processes: Processes) -> Iterator[None]:
    """Turn a lack of memory into a `UserError` that says in one line what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # torch reports a lack of memory on a CPU by a plain RuntimeError.
        other = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        if other and "can't allocate memory" not in str(error):
            raise
        at_once = micro_batch(recipe, processes)
        advice = (
            f"pass --set micro_batch={max(1, at_once // 2)}, which takes less memory"
            if at_once > 1
            else "tune fewer blocks, or take a smaller backbone"
        )
        raise UserError(
            f"the memory of {processes.device} is too small for batch = {recipe.batch} with "
            f"micro_batch = {at_once}: {advice}"
        ) from error
