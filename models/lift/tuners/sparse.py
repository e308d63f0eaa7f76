"""Sparse tuning: a few entries of the weights, drawn at random."""

from collections.abc import Sequence
from typing import Final, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from taillift.models.lift.block import ALL
from taillift.models.lift.tuners.base import (
    SLOTS,
    Tuner,
    Wrapper,
    settled,
    transformer_blocks,
    wrap,
)

SEED: Final = 0


class Sparse(Tuner):
    """A random share of the entries of a block's four linear layers (LIFT, section 3.1).

    The share is by LIFT+'s rule, C / (L (12 D + 9)): as many entries as the head has weights.
    """

    name: Literal["sparse"] = "sparse"
    ratio: float | None = Field(None, gt=0, le=1)

    def resolved(self, classes: int, blocks: int, width: int) -> Self:
        adaptive = min(1.0, classes / (blocks * (12 * width + 9)))
        return self.model_copy(update={"ratio": self.ratio or adaptive})

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        ratio = settled(self.ratio, self.name)
        generator = torch.Generator().manual_seed(SEED)

        def around(host: nn.Module) -> SparseLinear:
            return SparseLinear(host, ratio, generator)

        for block in transformer_blocks(self.name, blocks):
            for slot in (*SLOTS["attention"], *SLOTS["mlp"]):
                wrap(block, slot, SparseLinear.DEPTH, around)


class SparseLinear(Wrapper):
    """A linear layer with `values` in place of its entries at `indices`.

    The indices count through the weight, row by row, and then the bias.
    """

    METHOD = "sparse"
    DEPTH = 2

    indices: Tensor

    def __init__(self, host: nn.Module, ratio: float, generator: torch.Generator) -> None:
        super().__init__(host)
        entries = self._entries()
        count = max(1, int(ratio * len(entries)))
        drawn = torch.randperm(len(entries), generator=generator)[:count]
        self.register_buffer("indices", drawn.sort().values)
        self.values = nn.Parameter(entries[self.indices].clone())

    def forward(self, inputs: Tensor, rows: slice = ALL) -> Tensor:
        weight, bias = self._filled()
        return nn.functional.linear(inputs, weight[rows], bias[rows])

    @torch.no_grad()
    def fold(self, layer: nn.Module) -> None:
        assert isinstance(layer, nn.Linear)
        weight, bias = self._filled()
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)

    def _filled(self) -> tuple[Tensor, Tensor]:
        outputs, inputs = self._plain().weight.shape
        entries = self._entries().scatter(0, self.indices, self.values)
        bias = entries[outputs * inputs :]
        return entries[: outputs * inputs].view(outputs, inputs), bias

    def _entries(self) -> Tensor:
        layer = self._plain()
        return torch.cat([layer.weight.flatten(), layer.bias])

    def _plain(self) -> nn.Linear:
        assert isinstance(self.host, nn.Linear), "sparse tuning goes around the plain layer"
        return self.host
