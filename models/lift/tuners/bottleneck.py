"""Bottlenecks at the MLP: AdaptFormer parallel to it, the sequential adapter after it."""

import math
from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from taillift.models.lift.tuners.base import (
    Attachment,
    Tuner,
    adaptive_rank,
    innermost,
    require_resolved,
    transformer_blocks,
)
from taillift.models.lift.vit import Block, LayerScale


class BottleneckTuner(Tuner):
    """A method with a `rank`, which follows LIFT's adaptive rule (section 3.3) if it is None.

    The rule gives a small rank for few classes; `least_rank` is its lower limit.
    """

    rank: int | None = Field(None, ge=1)
    least_rank: int = Field(1, ge=1)

    def resolved(self, classes: int, blocks: int, width: int) -> Self:
        del width
        adaptive = max(self.least_rank, adaptive_rank(classes, blocks))
        return self.model_copy(update={"rank": self.rank or adaptive})


class Bottleneck(Attachment):
    """up(relu(down(norm(x)))), [N, T, D] to [N, T, D]; zero at first, because `up` is.

    2 D r + r + 3 D parameters. The initial values are LIFT's.
    """

    def __init__(self, width: int, rank: int, eps: float) -> None:
        """Take `eps` from the host's norm: with another one, the merge would not be exact."""
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        nn.init.kaiming_normal_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, tokens: Tensor) -> Tensor:
        added: Tensor = self.up(F.relu(self.down(self.norm(tokens))))
        return added

    def absorb_norm(self) -> None:
        """Move the affine part of the norm into `down`."""
        width, eps = self.down.in_features, self.norm.eps
        self.down.bias.add_(self.down.weight @ self.norm.bias)
        self.down.weight.mul_(self.norm.weight)
        self.norm = nn.LayerNorm(width, eps=eps, elementwise_affine=False)


def mlp_norm(block: Block) -> nn.LayerNorm:
    """Return the norm before the block's MLP, without any wrappers around it."""
    norm = innermost(block.norm2)
    assert isinstance(norm, nn.LayerNorm)
    return norm


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


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
