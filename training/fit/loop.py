"""The training loop."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn, split

from taillift.models.bundle.arrays import chunks
from taillift.models.errors import UserError
from taillift.models.lift.model import Model
from taillift.training.console import epochs_bar
from taillift.training.fit.distributed import Processes, settle
from taillift.training.fit.inputs import Inputs, Pick
from taillift.training.fit.optimisation import Learner, rate_factor
from taillift.training.fit.resume import Progress, Resume
from taillift.training.fit.tensorboard import Curves
from taillift.training.recipe.losses import Criterion
from taillift.training.recipe.recipe import Recipe

# Rows and labels of one process's part of a batch.
Share = tuple[Tensor, Tensor]

# What a CPU's caches hold: about a seventh faster than 64 at once, and the same sum of gradients.
CPU_MICRO_BATCH: Final = 32


class DivergedError(UserError):
    """Rates are too high: there is nothing to go on from."""


def fit(
    model: Model,
    inputs: Inputs,
    counts: Sequence[int],
    recipe: Recipe,
    processes: Processes,
    resume: Resume,
    curves: Curves,
) -> Progress:
    """Train what is unfrozen in `model` and leave it on the CPU; returns the finished progress.

    Every process takes its share of every batch, and all end with the same weights: those that one
    process gets, up to the rounding of sums. Goes on from where `resume` is. Raises
    `DivergedError` where the loss is no longer a number.
    """
    progress = resume.progress or _begin(recipe, processes)
    fabric = processes.fabric(progress.precision)
    model.to(processes.device).eval()
    learner = Learner(model, recipe, processes, fabric)
    if resume.learner:
        learner.load(resume.learner)
    criterion = recipe.loss.build(counts).to(processes.device)
    gradients = Gradients(model, inputs.stage, criterion, fabric, micro_batch(recipe, processes))
    photos = len(inputs.labels)
    steps = -(-photos // recipe.batch)
    clock = Clock(progress)
    title = f"Training {recipe.title}, seed {recipe.seed}"
    with epochs_bar(title, recipe.epochs) as bar:
        while progress.epoch < recipe.epochs:
            order = epoch_order(photos, recipe.seed, progress.epoch)
            batches = list(chunks(order, recipe.batch))[progress.step :]
            for size, share in own_shares(inputs, batches, recipe.batch, processes, clock):
                learner.clear()
                loss = processes.sum(gradients.add(share, size)).item()
                _check(loss, progress, recipe)
                factor = rate_factor(recipe.optimiser, progress.done, steps, recipe.epochs)
                rates = learner.update(progress.done, factor)
                curves.add(progress.done, {"loss/step": loss} | rates)
                progress.done += 1
                progress.step += 1
                progress.summed += loss * size
                if resume.due:
                    _keep(resume, progress, learner, clock)
            progress.losses.append(progress.summed / photos)
            progress.epoch, progress.step, progress.summed = progress.epoch + 1, 0, 0.0
            curves.add(progress.epoch, {"loss/epoch": progress.losses[-1]})
            bar.update(bar.task_ids[0], completed=progress.epoch, loss=progress.losses[-1])
            _keep(resume, progress, learner, clock)
    learner.finish()
    model.cpu()
    if not all(one.isfinite().all() for one in learner.parameters):
        # The last step's weights: no loss has seen them.
        raise _diverged("the weights are no numbers after the last step", recipe)
    return progress


class Gradients:
    """Adds the gradients of a batch's loss to the trained tensors, a few photos at a time."""

    def __init__(
        self, model: Model, stage: int, criterion: Criterion, fabric: Fabric, micro: int
    ) -> None:
        self._head = model.head
        self._network = network_behind(model, stage)
        self._criterion = criterion
        self._fabric = fabric
        self._micro = micro

    def add(self, share: Share | None, size: int) -> Tensor:
        """Of a share of a batch of `size` photos; returns the share's part of the mean loss."""
        device = self._fabric.device
        loss = torch.zeros((), device=device)
        if share is None:
            return loss
        for rows, labels in zip(*(split(one, self._micro) for one in share), strict=True):
            with self._fabric.autocast():
                features = self._network(rows.to(device))
            logits, _ = self._head(features.float())
            part = self._criterion(logits, labels.to(device)).sum() / size
            self._fabric.backward(part)
            loss += part.detach()
        return loss


class Clock:
    """Counts the loop's seconds, and those in which it waits for photos."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._start = time.perf_counter() - progress.seconds

    def read(self) -> None:
        self._progress.seconds = time.perf_counter() - self._start

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._progress.waited += time.perf_counter() - start


def own_shares(
    inputs: Inputs,
    batches: Sequence[Sequence[Pick]],
    batch: int,
    processes: Processes,
    clock: Clock,
) -> Iterator[tuple[int, Share | None]]:
    """The length of every batch and this process's share of it, None where it has none.

    All but the last are `batch` long, and so all but the last share have one length, too.
    """
    own = [processes.share(one) for one in batches]
    length = max(1, len(processes.share(range(batch))))
    shares = inputs.batches([pick for share in own for pick in share], length)
    for one, picks in zip(batches, own, strict=True):
        with clock.waiting():
            share = next(shares) if picks else None
        yield len(one), share


def epoch_order(photos: int, seed: int, epoch: int) -> list[Pick]:
    """Every photo once, shuffled; the same for the same seed and epoch."""
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return [(photo, epoch) for photo in random.permutation(photos).tolist()]


def micro_batch(recipe: Recipe, processes: Processes) -> int:
    """How many photos go through the model at once: the recipe's, or what suits the device."""
    if recipe.micro_batch is not None:
        return recipe.micro_batch
    if processes.device.type == "cpu" and not recipe.loss.whole_batch:
        return CPU_MICRO_BATCH
    return -(-recipe.batch // processes.size)


def network_behind(model: Model, stage: int) -> nn.Module:
    """What turns rows behind the tower's first `stage` stages into features; pixels where 0."""
    return model.tower[stage:] if stage else nn.Sequential(model.normalise, model.tower)


@contextmanager
def enough_memory(recipe: Recipe, processes: Processes) -> Iterator[None]:
    """Says in one line what to do where the device's memory does not hold a batch."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_memory(error):
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


def _is_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _begin(recipe: Recipe, processes: Processes) -> Progress:
    return Progress(processes.broadcast(settle(recipe.precision, processes.device)))


def _keep(resume: Resume, progress: Progress, learner: Learner, clock: Clock) -> None:
    clock.read()
    resume.write(progress, learner.state())


def _check(loss: float, progress: Progress, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        where = f"epoch {progress.epoch + 1}, step {progress.step + 1}"
        raise _diverged(f"the loss is {loss} in {where}", recipe)


def _diverged(what: str, recipe: Recipe) -> DivergedError:
    rates = recipe.optimiser
    return DivergedError(
        f"{what}: lower the learning rates (head {rates.head_rate:g}, tuner {rates.tuner_rate:g})"
    )
