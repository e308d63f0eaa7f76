"""A pre-norm transformer block and its parts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention over one packed projection, its rows in the order q, k, v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, first_only: bool) -> Tensor:
        """[N, T, D] to [N, T, D], or to [N, 1, D] where only the first token asks."""
        if first_only:
            weight, bias = self.qkv.weight, self.qkv.bias
            query = F.linear(tokens[:, :1], weight[: self.width], bias[: self.width])
            key, value = F.linear(tokens, weight[self.width :], bias[self.width :]).chunk(2, -1)
        else:
            query, key, value = self.qkv(tokens).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value)
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        attended: Tensor = self.proj(mixed)
        return attended

    def _split(self, rows: Tensor) -> Tensor:
        count, length, width = rows.shape
        return rows.view(count, length, self.heads, width // self.heads).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = act
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(self.act(self.fc1(tokens)))
        return mixed


class LayerScale(nn.Module):
    def __init__(self, gamma: Tensor) -> None:
        super().__init__()
        self.gamma = nn.Parameter(gamma.clone())

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the GELU of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A pre-norm transformer block, [N, T, D] to [N, T, D].

    `beside_mlp` holds what tuners add: each reads the residual stream before `norm2`, and its
    output is added to the MLP's. Where `first_only` is set the block gives its first token alone,
    [N, 1, D]: the last block's other tokens are never read.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, act: nn.Module, eps: float, scaled: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads)
        self.scale1 = LayerScale(torch.ones(width)) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden, act)
        self.scale2 = LayerScale(torch.ones(width)) if scaled else nn.Identity()
        self.beside_mlp = nn.ModuleList()
        self.first_only = False

    def forward(self, tokens: Tensor) -> Tensor:
        attended = self.scale1(self.attention(self.norm1(tokens), self.first_only))
        tokens = (tokens[:, :1] if self.first_only else tokens) + attended
        mixed = self.scale2(self.mlp(self.norm2(tokens)))
        for branch in self.beside_mlp:
            mixed = mixed + branch(tokens)
        summed: Tensor = tokens + mixed
        return summed
