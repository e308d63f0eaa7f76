"""A pre-norm transformer block and its parts."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALL: Final = slice(None)


def project(layer: nn.Module, inputs: Tensor, rows: slice) -> Tensor:
    """The outputs `rows` alone of a linear layer, or of one that a tuner wraps."""
    if rows != ALL and isinstance(layer, nn.Linear):
        return F.linear(inputs, layer.weight[rows], layer.bias[rows])
    outputs: Tensor = layer(inputs) if rows == ALL else layer(inputs, rows)
    return outputs


class Attention(nn.Module):
    """Multi-head self-attention over one packed projection, its rows in the order q, k, v.

    `rows` [p, 2D] are keys and values that no token gives: what merged prompts leave.
    """

    rows: Tensor | None

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.register_buffer("rows", None)

    def forward(self, tokens: Tensor, first_only: bool, prompts: Tensor | None = None) -> Tensor:
        """[N, T, D] to [N, T, D], or to [N, 1, D] where only the first token asks.

        `prompts` [p, D] are attended to, and ask nothing themselves.
        """
        if first_only:
            query = project(self.qkv, tokens[:, :1], slice(0, self.width))
            rows = project(self.qkv, tokens, slice(self.width, None))
        else:
            query, rows = self.qkv(tokens).split([self.width, 2 * self.width], dim=-1)
        for more in (self.rows, None if prompts is None else self._keys_and_values(prompts)):
            if more is not None:
                rows = torch.cat([rows, more.expand(rows.shape[0], -1, -1)], dim=1)
        key, value = rows.chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value)
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        attended: Tensor = self.proj(mixed)
        return attended

    def keep_rows(self, prompts: Tensor) -> None:
        """Attend to these prompts [p, D] from now on, as constants."""
        rows = self._keys_and_values(prompts)
        self.rows = rows if self.rows is None else torch.cat([self.rows, rows])

    def _keys_and_values(self, prompts: Tensor) -> Tensor:
        return project(self.qkv, prompts, slice(self.width, None))

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

    Tuners add to it: `appended` holds tokens [p, D] that join the sequence before the block,
    `prompts` tokens that only this block attends to, `after_mlp` what reads the MLP's output and
    is added to it, and `beside_mlp` what reads the residual stream before `norm2` and is added to
    the MLP's output. The last `dropped` tokens leave the sequence behind the block. Where
    `first_only` is set the block gives its first token alone, [N, 1, D]: the last block's other
    tokens are never read.
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
        self.appended = nn.ModuleList()
        self.prompts = nn.ModuleList()
        self.after_mlp = nn.ModuleList()
        self.beside_mlp = nn.ModuleList()
        self.dropped = 0
        self.first_only = False

    def forward(self, tokens: Tensor) -> Tensor:
        for more in self.appended:
            tokens = torch.cat([tokens, more().expand(tokens.shape[0], -1, -1)], dim=1)
        prompts = self.prompt_tokens()
        normed = None if prompts is None else self.norm1(prompts)
        attended = self.scale1(self.attention(self.norm1(tokens), self.first_only, normed))
        if self.first_only:
            tokens = tokens[:, :1]
        elif self.dropped:
            tokens, attended = tokens[:, : -self.dropped], attended[:, : -self.dropped]
        tokens = tokens + attended
        mixed = self.scale2(self.mlp(self.norm2(tokens)))
        for branch in self.after_mlp:
            mixed = mixed + branch(mixed)
        for branch in self.beside_mlp:
            mixed = mixed + branch(tokens)
        summed: Tensor = tokens + mixed
        return summed

    def prompt_tokens(self) -> Tensor | None:
        """[p, D], what this block attends to beside the sequence."""
        if not self.prompts:
            return None
        return torch.cat([prompts() for prompts in self.prompts])
