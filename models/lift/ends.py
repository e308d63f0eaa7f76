"""The two ends of a tower: pixels to tokens, and tokens to one feature vector."""

import torch
from torch import Tensor, nn


class Embed(nn.Module):
    """float [N, 3, S, S] to tokens [N, 1 + P, D], the class token first."""

    def __init__(
        self, patches: nn.Module, class_token: Tensor, positions: Tensor, norm: nn.Module
    ) -> None:
        """`patches` maps pixels to [N, P, D]; `class_token` is [D], `positions` [1 + P, D]."""
        super().__init__()
        self.patches = patches
        self.class_token = nn.Parameter(class_token.clone())
        self.positions = nn.Parameter(positions.clone())
        self.norm = norm

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patches(pixels)
        first = self.class_token.expand(patches.shape[0], 1, -1)
        tokens: Tensor = self.norm(torch.cat([first, patches], dim=1) + self.positions)
        return tokens


class Pool(nn.Module):
    """The normalised class token: [N, T, D] to [N, D]."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.norm(tokens[:, 0])
        return pooled
