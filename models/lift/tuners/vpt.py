"""Visual prompt tuning (Jia et al. 2022): learned tokens next to the image's own."""

from collections.abc import Sequence
from typing import Final, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from taillift.models.lift.tuners.base import (
    Attachment,
    Tuner,
    power_of_two,
    require_resolved,
    transformer_blocks,
)
from taillift.models.lift.vit import Block

# Standard deviation of the initial prompts, as in LIFT+.
SPREAD: Final = 0.02


class VPTShallow(Tuner):
    """Prompts that enter before the first tuned block and leave after the last one.

    The tuned blocks have to be the last ones of the tower.
    """

    name: Literal["vpt-shallow"] = "vpt-shallow"
    prompts: int = Field(10, ge=1)

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        tuned = transformer_blocks(self.name, blocks)
        tuned[0].appended.append(ShallowPrompts(self.prompts, tuned[0].attention.width))
        tuned[-1].dropped += self.prompts


class VPTDeep(Tuner):
    """Prompts for each tuned block, which only that block sees.

    Their number follows LIFT+'s rule if it is None: C / L, rounded down to a power of two.
    """

    name: Literal["vpt-deep"] = "vpt-deep"
    prompts: int | None = Field(None, ge=1)

    def resolved(self, classes: int, blocks: int, width: int) -> Self:
        del width
        return self.model_copy(update={"prompts": self.prompts or power_of_two(classes / blocks)})

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        count = require_resolved(self.prompts, self.name)
        for block in transformer_blocks(self.name, blocks):
            block.prompts.append(DeepPrompts(count, block.attention.width))


class Prompts(Attachment):
    """`count` learned tokens [count, D]."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(SPREAD * torch.randn(count, width))

    def forward(self) -> Tensor:
        return self.tokens


class ShallowPrompts(Prompts):
    """Prompts that pass through all tuned blocks."""

    METHOD = "vpt-shallow"

    def merge(self, block: Block) -> bool:
        """Return False: the prompts go through the blocks, so the sequence has to stay longer."""
        del block
        return False


class DeepPrompts(Prompts):
    """Prompts of one block."""

    METHOD = "vpt-deep"

    def merge(self, block: Block) -> bool:
        """Turn the prompts into constant keys and values of the block's attention."""
        block.attention.freeze_prompts(block.norm1(self.tokens))
        return True
