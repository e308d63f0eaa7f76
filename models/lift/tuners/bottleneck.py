"""The bottleneck that AdaptFormer and the sequential adapter have in common."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.lift.block import Block
from models.lift.tuners.attachment import Attachment, innermost


class Bottleneck(Attachment):
    """up(relu(down(norm(x)))), [N, T, D] to [N, T, D]; zero at first, as `up` is.

    2 D r + r + 3 D parameters. The initial values are LIFT's.
    """

    def __init__(self, width: int, rank: int, eps: float) -> None:
        """`eps` is the host's: with another one the branch could not be merged exactly."""
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        nn.init.kaiming_normal_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, tokens: Tensor) -> Tensor:
        added: Tensor = self.up(F.relu(self.down(self.norm(tokens))))
        return added

    @torch.no_grad()
    def absorb_norm(self) -> None:
        """Move the affine part of the norm into `down`."""
        width, eps = self.down.in_features, self.norm.eps
        self.down.bias.add_(self.down.weight @ self.norm.bias)
        self.down.weight.mul_(self.norm.weight)
        self.norm = nn.LayerNorm(width, eps=eps, elementwise_affine=False)


def mlp_norm(block: Block) -> nn.LayerNorm:
    """The plain norm before the block's MLP, whatever is around it."""
    norm = innermost(block.norm2)
    assert isinstance(norm, nn.LayerNorm)
    return norm
