"""The canonical image tower: a sequence of stages that can be cut anywhere.

A vision transformer's first stage embeds pixels as tokens, each block is one stage, and the last
stage pools the tokens. A ResNet's stages are its stem, four layers and its attention pooling.
`tower[:k]` and `tower[k:]` are towers too, and share their weights with the whole.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Self

from torch import nn

from taillift.models.lift.resnet import GridPool, Layer, Stem
from taillift.models.lift.vit import AttentionPool, Block, Embed, MeanPool, Pool


class Tower(nn.Sequential):
    """Normalised pixels float [N, 3, S, S] to features [N, D], before any projection."""

    @classmethod
    def assemble(
        cls, embed: Embed, blocks: Iterable[Block], pool: Pool | MeanPool | AttentionPool
    ) -> "Tower":
        """Return a vision transformer."""
        blocks = list(blocks)
        blocks[-1].first_only = isinstance(pool, Pool)
        named = [(f"block{index}", block) for index, block in enumerate(blocks)]
        return cls(OrderedDict[str, nn.Module]([("embed", embed), *named, ("pool", pool)]))

    @classmethod
    def assemble_resnet(cls, stem: Stem, layers: Iterable[Layer], pool: GridPool) -> "Tower":
        """Return a CLIP ResNet."""
        named = [(f"layer{index}", layer) for index, layer in enumerate(layers, start=1)]
        return cls(OrderedDict[str, nn.Module]([("stem", stem), *named, ("pool", pool)]))

    @property
    def blocks(self) -> list[Block]:
        """The transformer blocks, to which tuners attach; a ResNet has none."""
        return [stage for stage in self if isinstance(stage, Block)]

    @property
    def tunable(self) -> list[nn.Module]:
        """The stages whose parameters may be trained: the blocks, or all of a ResNet but its stem.

        As in LIFT, embedding and pooling of a vision transformer are never trained.
        """
        return [stage for stage in self if isinstance(stage, Block | Layer | GridPool)]

    @property
    def embedding_stages(self) -> int:
        """The number of stages before the first transformer block; 0 in a ResNet."""
        blocks = [index for index, stage in enumerate(self) if isinstance(stage, Block)]
        return blocks[0] if blocks else 0

    @property
    def width(self) -> int:
        """The width D of the features, which in a transformer is also that of the tokens."""
        last = self[-1]
        if isinstance(last, GridPool):
            return last.c_proj.out_features
        return self.blocks[-1].attention.width

    @property
    def frozen_stages(self) -> int:
        """The number of stages before the first one with a trained parameter."""
        for index, stage in enumerate(self):
            if any(parameter.requires_grad for parameter in stage.parameters()):
                return index
        return len(self)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but batch norms, which always keep their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self
