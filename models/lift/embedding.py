"""The first stage of a vision transformer: pixels to tokens."""

import torch
from torch import Tensor, nn


class PatchConv(nn.Module):
    """Non-overlapping patches through one convolution: [N, 3, S, S] to [N, P, D]."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, pixels: Tensor) -> Tensor:
        patches: Tensor = self.convolution(pixels)
        return patches.flatten(2).transpose(1, 2)


class Embed(nn.Module):
    """float [N, 3, S, S] to tokens [N, 1 + P, D] with the class token first, or to [N, P, D]."""

    def __init__(
        self, patches: nn.Module, class_token: Tensor | None, positions: Tensor, norm: nn.Module
    ) -> None:
        """Copy the tensors: `class_token` is [D], `positions` [1 + P, D] or, without it, [P, D].

        `patches` maps pixels to [N, P, D].
        """
        super().__init__()
        self.patches = patches
        self.class_token = None if class_token is None else nn.Parameter(class_token.clone())
        self.positions = nn.Parameter(positions.clone())
        self.norm = norm

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.patches(pixels)
        if self.class_token is not None:
            first = self.class_token.expand(tokens.shape[0], 1, -1)
            tokens = torch.cat([first, tokens], dim=1)
        embedded: Tensor = self.norm(tokens + self.positions)
        return embedded
