"""The sequential adapter: a bottleneck after the MLP."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from taillift.models.lift.tuners.base import require_resolved, transformer_blocks
from taillift.models.lift.tuners.bottleneck import Bottleneck, BottleneckTuner, mlp_norm
from taillift.models.lift.vit import Block


class Adapter(BottleneckTuner):
    """A bottleneck that reads the MLP's output and is added to it (Houlsby et al. 2019)."""

    name: Literal["adapter"] = "adapter"

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        rank = require_resolved(self.rank, self.name)
        for block in transformer_blocks(self.name, blocks):
            norm = mlp_norm(block)
            block.after_mlp.append(AdapterBranch(norm.normalized_shape[0], rank, norm.eps))


class AdapterBranch(Bottleneck):
    """The bottleneck of one block."""

    METHOD = "adapter"

    def merge(self, block: Block) -> bool:
        """Return False: the branch normalises the MLP's output, which no linear layer can do."""
        del block
        self.absorb_norm()
        return False
