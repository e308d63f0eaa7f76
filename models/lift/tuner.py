"""What LIFT trains inside the tower. A tuner is one class with three verbs:

`attach` says where it goes, `forward` what it adds, `merge` how it becomes plain weights.
"""

import math
from collections.abc import Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.lift.block import Block, LayerScale


class Tuner(Protocol):
    """A module attached to a block, which can be folded into it."""

    def merge(self, block: Block) -> None: ...


class AdaptFormer(nn.Module):
    """A bottleneck beside the MLP (Chen et al. 2022; as in LIFT, section 3.3): s * up(relu(down)).

    Maps the residual stream [N, T, D] to what is added to the MLP's output, zero at first. It has
    2 D r + r + 3 D + 1 parameters.
    """

    def __init__(self, width: int, rank: int, eps: float) -> None:
        """`eps` is the host's: with another one the branch could not be merged exactly."""
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        self.scale = nn.Parameter(torch.ones(()))
        nn.init.kaiming_normal_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    @classmethod
    def attach(cls, block: Block, rank: int) -> "AdaptFormer":
        norm = block.norm2
        tuner = cls(norm.normalized_shape[0], rank, norm.eps)
        block.beside_mlp.append(tuner)
        return tuner

    def forward(self, tokens: Tensor) -> Tensor:
        added: Tensor = self.scale * self.up(F.relu(self.down(self.norm(tokens))))
        return added

    @torch.no_grad()
    def merge(self, block: Block) -> None:
        """Fold the branch into the block's MLP as `rank` more hidden units.

        Both norms see the same vector, so each is one normalisation and an affine map, and the
        affine map goes into the linear layer that follows. What remains is an MLP whose last units
        are rectified instead of gated.
        """
        _absorb_norm(block)
        _absorb_scale(block)
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        down_weight = self.down.weight * self.norm.weight
        down_bias = self.down.bias + self.down.weight @ self.norm.bias
        rows = torch.cat([fc1.weight, down_weight]), torch.cat([fc1.bias, down_bias])
        columns = (
            torch.cat([fc2.weight, self.scale * self.up.weight], dim=1),
            fc2.bias + self.scale * self.up.bias,
        )
        block.mlp.fc1 = _linear(*rows)
        block.mlp.fc2 = _linear(*columns)
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


def adaptive_rank(classes: int, blocks: int) -> int:
    """2 ** max(0, floor(log2(C / 2L))): the bottlenecks get no more weights than the head.

    LIFT, section 3.3.
    """
    return int(2 ** max(0, math.floor(math.log2(classes / (2 * blocks)))))


def attach_adaptformer(blocks: Iterable[Block], rank: int) -> None:
    for block in blocks:
        AdaptFormer.attach(block, rank)


def merge_tuners(blocks: Iterable[Block]) -> None:
    """Fold every attached tuner into its block, and take it away."""
    for block in blocks:
        for tuner in block.beside_mlp:
            tuner.merge(block)  # type: ignore[operator]
        block.beside_mlp = nn.ModuleList()


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
