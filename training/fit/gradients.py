"""The gradients of a batch that is too large to go through the model at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from lightning_fabric import Fabric
from torch import Tensor, split

from taillift.models.errors import UserError
from taillift.models.lift.model import Model
from taillift.training.fit.distributed import Processes
from taillift.training.fit.frozen_features import remaining_network
from taillift.training.recipe.recipe import Recipe

# The losses [N] of features [N, D] with labels int64 [N].
Objective = Callable[[Tensor, Tensor], Tensor]

# So many photos fit a CPU's caches: about a seventh faster than 64, with the same gradients.
CPU_MICRO_BATCH: Final = 32


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
