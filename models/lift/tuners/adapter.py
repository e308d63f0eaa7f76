"""The sequential adapter: a bottleneck behind the MLP."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field
from torch import nn

from models.lift.tuners.bottleneck import Bottleneck, mlp_norm
from models.lift.tuners.spec import Spec, adaptive_rank, settled, transformer_blocks


class Adapter(Spec):
    """A bottleneck that reads the MLP's output and is added to it (Houlsby et al. 2019).

    Its rank is by LIFT's adaptive rule (section 3.3). It cannot be merged: its norm reads what
    the MLP gives.
    """

    name: Literal["adapter"] = "adapter"
    rank: int | None = Field(None, ge=1)

    def resolved(self, classes: int, blocks: int, width: int) -> Self:
        del width
        return self.model_copy(update={"rank": self.rank or adaptive_rank(classes, blocks)})

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        rank = settled(self.rank, self.name)
        for block in transformer_blocks(self.name, blocks):
            norm = mlp_norm(block)
            block.after_mlp.append(AdapterBranch(norm.normalized_shape[0], rank, norm.eps))


class AdapterBranch(Bottleneck):
    METHOD = "adapter"
