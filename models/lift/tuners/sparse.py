"""Sparse tuning: a few entries of the weights, drawn at random."""

from collections.abc import Sequence
from typing import Final, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from taillift.models.lift.tuners.base import (
    SLOTS,
    Tuner,
    Wrapper,
    require_resolved,
    transformer_blocks,
    wrap,
)
from taillift.models.lift.vit import ALL

SEED: Final = 0


class Sparse(Tuner):
    """A random share of the entries of a block's four linear layers (LIFT, section 3.1).

    The share `ratio` follows LIFT+'s rule if it is None: C / (L (12 D + 9)), which gives as many
    entries as the head has weights.
    """

    name: Literal["sparse"] = "sparse"
    ratio: float | None = Field(None, gt=0, le=1)

    def resolved(self, classes: int, blocks: int, width: int) -> Self:
        adaptive = min(1.0, classes / (blocks * (12 * width + 9)))
        return self.model_copy(update={"ratio": self.ratio or adaptive})

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        ratio = require_resolved(self.ratio, self.name)
        generator = torch.Generator().manual_seed(SEED)

        def around(host: nn.Module) -> SparseLinear:
            assert isinstance(host, nn.Linear), "nothing is further inside than sparse tuning"
            return SparseLinear(host, ratio, generator)

        for block in transformer_blocks(self.name, blocks):
            for slot in (*SLOTS["attention"], *SLOTS["mlp"]):
                wrap(block, slot, SparseLinear.DEPTH, around)


class SparseLinear(Wrapper):
    """A linear layer that has `values` instead of its entries at `indices`.

    The indices count through the weight, row by row, and then through the bias.
    """

    METHOD = "sparse"
    DEPTH = 2

    host: nn.Linear
    indices: Tensor

    def __init__(self, host: nn.Linear, ratio: float, generator: torch.Generator) -> None:
        super().__init__(host)
        entries = torch.cat([host.weight.flatten(), host.bias])
        count = max(1, int(ratio * len(entries)))
        drawn = torch.randperm(len(entries), generator=generator)[:count]
        self.register_buffer("indices", drawn.sort().values)
        self.values = nn.Parameter(entries[self.indices].clone())

    def filled(self) -> tuple[Tensor, Tensor]:
        """Return the layer's weight and bias with the trained values in them."""
        outputs, inputs = self.host.weight.shape
        entries = torch.cat([self.host.weight.flatten(), self.host.bias])
        entries = entries.scatter(0, self.indices, self.values)
        bias = entries[outputs * inputs :]
        return entries[: outputs * inputs].view(outputs, inputs), bias

    def forward(self, inputs: Tensor, rows: slice = ALL) -> Tensor:
        weight, bias = self.filled()
        return F.linear(inputs, weight[rows], bias[rows])

    def fold(self, layer: nn.Module) -> None:
        assert isinstance(layer, nn.Linear)
        weight, bias = self.filled()
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
