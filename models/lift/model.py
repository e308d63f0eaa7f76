"""Pixels to logits: normalisation, tower and head in one module, the graph that is exported."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.lift.head import CosineHead, LinearHead
from models.lift.tower import Tower
from models.lift.tuners.merging import merge_block


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

    def __init__(self, normalise: Normalise, tower: Tower, head: CosineHead | LinearHead) -> None:
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

    @property
    def trainable_parameters(self) -> int:
        return sum(one.numel() for one in self.trained().values())


def merge(model: Model) -> Model:
    """A plain copy that gives the same outputs: tuners in the MLPs, scale and norms in the head."""
    merged = copy.deepcopy(model)
    for block in merged.tower.blocks:
        merge_block(block, "split")
    if isinstance(merged.head, CosineHead):
        merged.head = merged.head.merged()
    return merged.eval().requires_grad_(False)
