"""AdaptFormer: a scaled bottleneck parallel to the MLP."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taillift.models.lift.tuners.base import require_resolved, transformer_blocks
from taillift.models.lift.tuners.bottleneck import Bottleneck, BottleneckTuner, mlp_norm
from taillift.models.lift.vit import Block, LayerScale


class AdaptFormer(BottleneckTuner):
    """A bottleneck parallel to the MLP (Chen et al. 2022; as in LIFT, section 3.3)."""

    name: Literal["adaptformer"] = "adaptformer"

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        rank = require_resolved(self.rank, self.name)
        for block in transformer_blocks(self.name, blocks):
            norm = mlp_norm(block)
            block.beside_mlp.append(AdaptFormerBranch(norm.normalized_shape[0], rank, norm.eps))


class AdaptFormerBranch(Bottleneck):
    """s * bottleneck(x): reads the residual stream before `norm2`, adds to the MLP's output.

    2 D r + r + 3 D + 1 parameters.
    """

    METHOD = "adaptformer"

    def __init__(self, width: int, rank: int, eps: float) -> None:
        super().__init__(width, rank, eps)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scale * super().forward(tokens)

    def merge(self, block: Block) -> bool:
        """Fold the branch into the block's MLP as `rank` more hidden units, which use ReLU.

        The branch's norm and `norm2` normalise the same vector. With their affine parts moved into
        the linear layers after them, the two norms are the same, and one MLP can use both layers.
        """
        self.absorb_norm()
        if block.after_mlp:
            # A sequential adapter reads the MLP's output, and must not see the branch in it.
            return False
        norm, fc1, fc2 = block.norm2, block.mlp.fc1, block.mlp.fc2
        fc1.bias.add_(fc1.weight @ norm.bias)
        fc1.weight.mul_(norm.weight)
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
        if isinstance(block.scale2, LayerScale):
            # The layer scale applies to the MLP's own columns and not to the branch's.
            fc2.weight.mul_(block.scale2.gamma[:, None])
            fc2.bias.mul_(block.scale2.gamma)
            block.scale2 = nn.Identity()
        block.mlp.fc1 = _linear(
            torch.cat([fc1.weight, self.down.weight]), torch.cat([fc1.bias, self.down.bias])
        )
        block.mlp.fc2 = _linear(
            torch.cat([fc2.weight, self.scale * self.up.weight], dim=1),
            fc2.bias + self.scale * self.up.bias,
        )
        block.mlp.act = SplitActivation(block.mlp.act, self.down.out_features)
        return True


class SplitActivation(nn.Module):
    """The host's activation for the first hidden units, and ReLU for the last `rectified`."""

    def __init__(self, host: nn.Module, rectified: int) -> None:
        super().__init__()
        self.host = host
        self.rectified = rectified

    def forward(self, hidden: Tensor) -> Tensor:
        first = hidden.shape[-1] - self.rectified
        return torch.cat([self.host(hidden[..., :first]), F.relu(hidden[..., first:])], dim=-1)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
