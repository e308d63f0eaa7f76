"""Multi-head attention: the self-attention of a block, and the part that pooling shares with it."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALL: Final = slice(None)


class Attention(nn.Module):
    """Multi-head self-attention over one packed projection, whose rows are in the order q, k, v.

    `rows` [p, 2D] are constant keys and values, which belong to no token: merged prompts.
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
        """Map [N, T, D] to [N, T, D], or to [N, 1, D] if only the first token is a query.

        `prompts` [p, D] give keys and values, and no queries.
        """
        if first_only:
            query = project(self.qkv, tokens[:, :1], slice(0, self.width))
            rows = self.keys_and_values(tokens)
        else:
            query, rows = self.qkv(tokens).split([self.width, 2 * self.width], dim=-1)
        for extra in (self.rows, None if prompts is None else self.keys_and_values(prompts)):
            if extra is not None:
                rows = torch.cat([rows, extra.expand(rows.shape[0], -1, -1)], dim=1)
        key, value = rows.chunk(2, dim=-1)
        attended: Tensor = self.proj(attend(query, key, value, self.heads))
        return attended

    def keys_and_values(self, tokens: Tensor) -> Tensor:
        """Map tokens [..., D] to their keys and values, side by side [..., 2D]."""
        return project(self.qkv, tokens, slice(self.width, None))

    def freeze_prompts(self, prompts: Tensor) -> None:
        """Attend to these prompts [p, D] from now on, as constant keys and values."""
        rows = self.keys_and_values(prompts)
        self.rows = rows if self.rows is None else torch.cat([self.rows, rows])


def project(layer: nn.Module, inputs: Tensor, rows: slice) -> Tensor:
    """Return only the outputs `rows` of a linear layer, or of a tuner that wraps one."""
    if rows != ALL and isinstance(layer, nn.Linear):
        return F.linear(inputs, layer.weight[rows], layer.bias[rows])
    outputs: Tensor = layer(inputs) if rows == ALL else layer(inputs, rows)
    return outputs


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Return the attention of projected rows: [N, Q, D] over [N, T, D] gives [N, Q, D]."""

    def split(rows: Tensor) -> Tensor:
        count, length, width = rows.shape
        return rows.view(count, length, heads, width // heads).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(split(query), split(key), split(value))
    return mixed.transpose(1, 2).flatten(2)
