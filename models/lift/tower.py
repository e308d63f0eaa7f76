"""One canonical vision transformer, as a sequence of stages that can be cut anywhere.

Stage 0 embeds pixels as tokens, each block is one stage more, and the last pools the class token.
`tower[:k]` and `tower[k:]` are towers too and share their weights with the whole.
"""

from collections import OrderedDict
from collections.abc import Iterable

from torch import nn

from models.lift.block import Block
from models.lift.ends import Embed, Pool


class Tower(nn.Sequential):
    """Normalised pixels float [N, 3, S, S] to features [N, D], before any projection."""

    @classmethod
    def assemble(cls, embed: Embed, blocks: Iterable[Block], pool: Pool) -> "Tower":
        blocks = list(blocks)
        blocks[-1].first_only = True
        named = [(f"block{index}", block) for index, block in enumerate(blocks)]
        return cls(OrderedDict[str, nn.Module]([("embed", embed), *named, ("pool", pool)]))

    @property
    def blocks(self) -> list[Block]:
        return [stage for stage in self if isinstance(stage, Block)]

    @property
    def frozen_stages(self) -> int:
        """How many stages lie below the first that is trained."""
        for index, stage in enumerate(self):
            if any(parameter.requires_grad for parameter in stage.parameters()):
                return index
        return len(self)
