"""AdaptFormer: a scaled bottleneck beside the MLP."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taillift.models.lift.block import Block, LayerScale
from taillift.models.lift.tuners.base import settled, transformer_blocks
from taillift.models.lift.tuners.bottleneck import Bottleneck, BottleneckTuner, mlp_norm


class AdaptFormer(BottleneckTuner):
    """A bottleneck beside the MLP (Chen et al. 2022; as in LIFT, section 3.3)."""

    name: Literal["adaptformer"] = "adaptformer"

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        rank = settled(self.rank, self.name)
        for block in transformer_blocks(self.name, blocks):
            norm = mlp_norm(block)
            branch = AdaptFormerBranch(norm.normalized_shape[0], rank, norm.eps)
            block.beside_mlp.append(branch)


class AdaptFormerBranch(Bottleneck):
    """s * bottleneck(x): from the residual stream before `norm2` to what the MLP's output gains.

    2 D r + r + 3 D + 1 parameters.
    """

    METHOD = "adaptformer"

    def __init__(self, width: int, rank: int, eps: float) -> None:
        super().__init__(width, rank, eps)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scale * super().forward(tokens)

    @torch.no_grad()
    def merge(self, block: Block) -> None:
        """Fold the branch into the block's MLP as `rank` more hidden units.

        Both norms see the same vector, so each is one normalisation and an affine map, and the
        affine map goes into the linear layer that follows. What remains is an MLP whose last units
        are rectified instead of gated.
        """
        _absorb_norm(block)
        _absorb_scale(block)
        self.absorb_norm()
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        block.mlp.fc1 = _linear(
            torch.cat([fc1.weight, self.down.weight]), torch.cat([fc1.bias, self.down.bias])
        )
        block.mlp.fc2 = _linear(
            torch.cat([fc2.weight, self.scale * self.up.weight], dim=1),
            fc2.bias + self.scale * self.up.bias,
        )
        block.mlp.act = SplitActivation(block.mlp.act, self.down.out_features)


class SplitActivation(nn.Module):
    """The host's activation on the first hidden units and ReLU on the last `rectified`."""

    def __init__(self, host: nn.Module, rectified: int) -> None:
        super().__init__()
        self.host = host
        self.rectified = rectified

    def forward(self, hidden: Tensor) -> Tensor:
        first = hidden.shape[-1] - self.rectified
        return torch.cat([self.host(hidden[..., :first]), F.relu(hidden[..., first:])], dim=-1)


@torch.no_grad()
def use_host_activation(block: Block, gain: float) -> None:
    """Replace a split activation by the host's own, with rectified units `gain` times as large.

    act(K z) / K tends to relu(z): with QuickGELU it is at most 0.164 / K off, with GELU 0.170 / K.
    """
    rectified, act = 0, block.mlp.act
    while isinstance(act, SplitActivation):
        rectified, act = rectified + act.rectified, act.host
    if rectified:
        block.mlp.act = act
        block.mlp.fc1.weight[-rectified:] *= gain
        block.mlp.fc1.bias[-rectified:] *= gain
        block.mlp.fc2.weight[:, -rectified:] /= gain


def _absorb_norm(block: Block) -> None:
    """Move the affine part of `norm2` into `fc1`."""
    norm, fc1 = block.norm2, block.mlp.fc1
    block.mlp.fc1 = _linear(fc1.weight * norm.weight, fc1.bias + fc1.weight @ norm.bias)
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)


def _absorb_scale(block: Block) -> None:
    """Move the MLP's layer scale into `fc2`, so that the tuner's columns stay outside it."""
    if isinstance(block.scale2, LayerScale):
        gamma, fc2 = block.scale2.gamma, block.mlp.fc2
        block.mlp.fc2 = _linear(gamma[:, None] * fc2.weight, gamma * fc2.bias)
        block.scale2 = nn.Identity()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
