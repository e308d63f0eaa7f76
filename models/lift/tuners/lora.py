"""LoRA: a low-rank matrix added to a linear layer's weight."""

from collections.abc import Sequence
from typing import Final, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from taillift.models.lift.tuners.base import (
    Tuner,
    Wrapper,
    innermost,
    power_of_two,
    require_resolved,
    transformer_blocks,
    wrap,
)
from taillift.models.lift.vit import ALL, project

# A block's LoRA weights divided by D r, if the MLP is four times as wide as the tokens.
WEIGHTS: Final = {"attention": 4, "mlp": 10, "both": 14}


class LoRA(Tuner):
    """Low-rank updates of queries and values, of both MLP layers, or of all four (Hu et al. 2022).

    The rank follows LIFT+'s rule if it is None: C / 4L in the attention, rounded down to a power of
    two. All updates together then have no more weights than the head, unless `least_rank`, the
    lower limit of the rank, applies.
    """

    name: Literal["lora"] = "lora"
    rank: int | None = Field(None, ge=1)
    least_rank: int = Field(1, ge=1)
    where: Literal["attention", "mlp", "both"] = "attention"

    def resolved(self, classes: int, blocks: int, width: int) -> Self:
        del width
        rule = power_of_two(classes / (WEIGHTS[self.where] * blocks))
        adaptive = max(self.least_rank, rule)
        return self.model_copy(update={"rank": self.rank or adaptive})

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        rank = require_resolved(self.rank, self.name)

        def around(host: nn.Module) -> LoRALinear:
            return LoRALinear(host, rank)

        def around_query_and_value(host: nn.Module) -> LoRALinear:
            return LoRALinear(host, rank, of=3, parts=(0, 2))

        for block in transformer_blocks(self.name, blocks):
            if self.where != "mlp":
                wrap(block, "attention.qkv", LoRALinear.DEPTH, around_query_and_value)
            if self.where != "attention":
                wrap(block, "mlp.fc1", LoRALinear.DEPTH, around)
                wrap(block, "mlp.fc2", LoRALinear.DEPTH, around)


class LoRALinear(Wrapper):
    """W x + (1 / r) B A x, the update only in some of the outputs.

    If the outputs are cut into `of` equal parts, these are the ones numbered in `parts`. The update
    is zero at first, because B is. A starts uniform within 1 / sqrt(r), as in LIFT; the paper's
    bound is 1 / sqrt(D).
    """

    METHOD = "lora"
    DEPTH = 1

    def __init__(
        self, host: nn.Module, rank: int, of: int = 1, parts: Sequence[int] = (0,)
    ) -> None:
        super().__init__(host)
        layer = innermost(host)
        assert isinstance(layer, nn.Linear)
        self.rank, self.of, self.parts = rank, of, tuple(parts)
        height = layer.out_features // of
        self.down = nn.Parameter(torch.empty(len(parts) * rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(len(parts), height, rank))
        nn.init.uniform_(self.down, -(rank**-0.5), rank**-0.5)

    def forward(self, inputs: Tensor, rows: slice = ALL) -> Tensor:
        added = F.linear(F.linear(inputs, self.down), self.scaled_up()[rows])
        return project(self.host, inputs, rows) + added

    def fold(self, layer: nn.Module) -> None:
        assert isinstance(layer, nn.Linear)
        layer.weight += self.scaled_up() @ self.down

    def scaled_up(self) -> Tensor:
        """Return B / r for all outputs: a row of blocks for each of the `of` parts."""
        height = self.up.shape[1]
        empty = self.up.new_zeros(height, len(self.parts) * self.rank)
        rows = [empty] * self.of
        for index, part in enumerate(self.parts):
            before, after = index * self.rank, (len(self.parts) - 1 - index) * self.rank
            rows[part] = F.pad(self.up[index], (before, after)) / self.rank
        return torch.cat(rows)
