"""The bottleneck that AdaptFormer and the sequential adapter share."""

import math
from typing import Self

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from taillift.models.lift.tuners.base import Attachment, Tuner, adaptive_rank, innermost
from taillift.models.lift.vit import Block


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
