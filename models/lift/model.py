"""Pixels to logits: normalisation, tower and head in one module, the graph that is exported."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taillift.models.lift.head import Head
from taillift.models.lift.merge import Activation, merge_block
from taillift.models.lift.tower import Tower
from taillift.models.lift.tuners.base import Attachment


class Normalise(nn.Module):
    """uint8 [N, S, S, 3] to float [N, 3, S, S], (x / 255 - mean) / std for each channel."""

    factor: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        means, deviations = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("factor", 1 / (255 * deviations))
        self.register_buffer("shift", -means / deviations)

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() * self.factor + self.shift).permute(0, 3, 1, 2)


class Model(nn.Module):
    """`pixels` uint8 [N, S, S, 3] to `logits` [N, C] and unit `features` [N, D]."""

    def __init__(self, normalise: Normalise, tower: Tower, head: Head) -> None:
        super().__init__()
        self.normalise = normalise
        self.tower = tower
        self.head = head

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor] = self.head(self.tower(self.normalise(pixels)))
        return outputs

    def trained(self) -> dict[str, nn.Parameter]:
        """What training changes, by name."""
        return {name: one for name, one in self.named_parameters() if one.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """What must be kept to have this model again from its backbone, by name.

        That is what training changes, and tensors that a tuner drew once, such as sparse indices.
        """
        drawn = {
            f"{name}.{key}": buffer
            for name, part in self.named_modules()
            if isinstance(part, Attachment)
            for key, buffer in part.named_buffers(recurse=False)
        }
        return {**self.trained(), **drawn}

    @property
    def trainable_parameters(self) -> int:
        return sum(one.numel() for one in self.trained().values())


def merge(model: Model, activation: Activation = "split") -> Model:
    """A plain copy that gives the same outputs: tuners in the tower's weights, a plain head.

    `activation` says what AdaptFormer's units become, see `merge_block`. What cannot be merged
    stays as it is; `unmerged` names it.
    """
    merged = copy.deepcopy(model)
    for block in merged.tower.blocks:
        merge_block(block, activation)
    merged.head = merged.head.merged()
    return merged.eval().requires_grad_(False)
