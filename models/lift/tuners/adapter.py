"""The sequential adapter: a bottleneck behind the MLP."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from taillift.models.lift.tuners.base import settled, transformer_blocks
from taillift.models.lift.tuners.bottleneck import Bottleneck, BottleneckTuner, mlp_norm


class Adapter(BottleneckTuner):
    """A bottleneck that reads the MLP's output and is added to it (Houlsby et al. 2019).

    It cannot be merged: its norm reads what the MLP gives.
    """

    name: Literal["adapter"] = "adapter"

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        rank = settled(self.rank, self.name)
        for block in transformer_blocks(self.name, blocks):
            norm = mlp_norm(block)
            block.after_mlp.append(AdapterBranch(norm.normalized_shape[0], rank, norm.eps))


class AdapterBranch(Bottleneck):
    METHOD = "adapter"
