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
    """float [N, 3, S, S] to tokens [N, K + P, D], of which the first K are no patches."""

    def __init__(
        self, patches: nn.Module, prefix: Tensor, positions: Tensor, norm: nn.Module
    ) -> None:
        """Copy the tensors: `prefix` is [K, D], `positions` [K + P, D].

        The prefix is the class token, if there is one, and then the register tokens (Darcet et al.
        2023) or the distillation token of DeiT. K may be 0. `patches` maps pixels to [N, P, D].
        """
        super().__init__()
        self.patches = patches
        self.prefix = nn.Parameter(prefix.clone())
        self.positions = nn.Parameter(positions.clone())
        self.norm = norm

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.patches(pixels)
        if len(self.prefix):
            prefix = self.prefix.expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([prefix, tokens], dim=1)
        embedded: Tensor = self.norm(tokens + self.positions)
        return embedded
