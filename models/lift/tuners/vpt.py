"""Visual prompt tuning (Jia et al. 2022): learned tokens beside the image's own."""

from collections.abc import Sequence
from typing import Final, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from taillift.models.lift.block import Block
from taillift.models.lift.tuners.base import (
    Attachment,
    Tuner,
    power_of_two,
    settled,
    transformer_blocks,
)

# Of the initial prompts, as in LIFT+.
SPREAD: Final = 0.02


class VPTShallow(Tuner):
    """Prompts that enter before the first tuned block and leave behind the last.

    They cannot be merged: the sequence stays longer by `prompts`. The blocks have to be the
    tower's last ones.
    """

    name: Literal["vpt-shallow"] = "vpt-shallow"
    prompts: int = Field(10, ge=1)

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        tuned = transformer_blocks(self.name, blocks)
        tuned[0].appended.append(ShallowPrompts(self.prompts, _width(tuned[0])))
        tuned[-1].dropped += self.prompts


class VPTDeep(Tuner):
    """Prompts of its own for every tuned block, which no other block sees.

    Their number is by LIFT+'s rule, C / L, rounded down to a power of two.
    """

    name: Literal["vpt-deep"] = "vpt-deep"
    prompts: int | None = Field(None, ge=1)

    def resolved(self, classes: int, blocks: int, width: int) -> Self:
        del width
        return self.model_copy(update={"prompts": self.prompts or power_of_two(classes / blocks)})

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        count = settled(self.prompts, self.name)
        for block in transformer_blocks(self.name, blocks):
            block.prompts.append(DeepPrompts(count, _width(block)))


class Prompts(Attachment):
    """`count` learned tokens [count, D]."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(SPREAD * torch.randn(count, width))

    def forward(self) -> Tensor:
        return self.tokens


class ShallowPrompts(Prompts):
    METHOD = "vpt-shallow"


class DeepPrompts(Prompts):
    METHOD = "vpt-deep"


def _width(block: Block) -> int:
    return block.attention.width
