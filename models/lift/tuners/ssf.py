"""SSF: a scale and a shift for every output of a layer."""

from collections.abc import Sequence
from typing import Final, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from taillift.models.lift.tuners.base import (
    SLOTS,
    Tuner,
    Wrapper,
    innermost,
    transformer_blocks,
    wrap,
)
from taillift.models.lift.vit import ALL, project

Where = Literal["attention", "mlp", "norm"]
# Standard deviation of the initial scales around 1 and shifts around 0.
SPREAD: Final = 0.02


class SSF(Tuner):
    """A scale and a shift of the outputs of linear layers and norms (Lian et al. 2022)."""

    name: Literal["ssf"] = "ssf"
    where: tuple[Where, ...] = Field(get_args(Where), min_length=1)

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        for block in transformer_blocks(self.name, blocks):
            for where in get_args(Where):
                if where in self.where:
                    for slot in SLOTS[where]:
                        wrap(block, slot, ScaleShift.DEPTH, ScaleShift)


class ScaleShift(Wrapper):
    """gamma * layer(x) + beta. At first it is near the plain layer, not equal to it."""

    METHOD = "ssf"
    DEPTH = 0

    def __init__(self, host: nn.Module) -> None:
        super().__init__(host)
        layer = innermost(host)
        assert isinstance(layer, nn.Linear | nn.LayerNorm)
        outputs = layer.weight.shape[0]
        self.scale = nn.Parameter(1 + SPREAD * torch.randn(outputs))
        self.shift = nn.Parameter(SPREAD * torch.randn(outputs))

    def forward(self, inputs: Tensor, rows: slice = ALL) -> Tensor:
        return project(self.host, inputs, rows) * self.scale[rows] + self.shift[rows]

    def fold(self, layer: nn.Module) -> None:
        assert isinstance(layer, nn.Linear | nn.LayerNorm)
        layer.weight *= self.scale[:, None] if layer.weight.ndim == 2 else self.scale
        layer.bias.mul_(self.scale).add_(self.shift)
