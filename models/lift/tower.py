"""One canonical image tower, as a sequence of stages that can be cut anywhere.

A vision transformer's stage 0 embeds pixels as tokens, each block is one stage more, and the last
pools the tokens. A ResNet has its stem, four layers and its attention pooling. `tower[:k]` and
`tower[k:]` are towers too and share their weights with the whole.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Self

from torch import nn

from taillift.models.lift.block import Block
from taillift.models.lift.pooling import AttentionPool, Embed, MeanPool, Pool
from taillift.models.lift.resnet import GridPool, Layer, Stem


class Tower(nn.Sequential):
    """Normalised pixels float [N, 3, S, S] to features [N, D], before any projection."""

    @classmethod
    def assemble(
        cls, embed: Embed, blocks: Iterable[Block], pool: Pool | MeanPool | AttentionPool
    ) -> "Tower":
        blocks = list(blocks)
        blocks[-1].first_only = isinstance(pool, Pool)
        named = [(f"block{index}", block) for index, block in enumerate(blocks)]
        return cls(OrderedDict[str, nn.Module]([("embed", embed), *named, ("pool", pool)]))

    @classmethod
    def assemble_resnet(cls, stem: Stem, layers: Iterable[Layer], pool: GridPool) -> "Tower":
        named = [(f"layer{index}", layer) for index, layer in enumerate(layers, start=1)]
        return cls(OrderedDict[str, nn.Module]([("stem", stem), *named, ("pool", pool)]))

    @property
    def blocks(self) -> list[Block]:
        """The transformer blocks, which tuners attach to; a ResNet has none."""
        return [stage for stage in self if isinstance(stage, Block)]

    @property
    def tunable(self) -> list[nn.Module]:
        """The stages whose own parameters may be trained: blocks, or a ResNet's all but its stem.

        As in LIFT, the ends of a vision transformer stay as they are.
        """
        return [stage for stage in self if isinstance(stage, Block | Layer | GridPool)]

    @property
    def width(self) -> int:
        """D, the width of the features and, in a transformer, of the tokens."""
        last = self[-1]
        if isinstance(last, GridPool):
            return last.c_proj.out_features
        return self.blocks[-1].norm1.normalized_shape[0]

    @property
    def frozen_stages(self) -> int:
        """How many stages lie below the first that is trained."""
        for index, stage in enumerate(self):
            if any(parameter.requires_grad for parameter in stage.parameters()):
                return index
        return len(self)

    def train(self, mode: bool = True) -> Self:
        """Batch norms keep the statistics that they came with, in either mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self
