"""The two ends of a tower: pixels to tokens, and tokens to one feature vector."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taillift.models.lift.block import Mlp


class Embed(nn.Module):
    """float [N, 3, S, S] to tokens [N, 1 + P, D], the class token first, or [N, P, D] without."""

    def __init__(
        self, patches: nn.Module, class_token: Tensor | None, positions: Tensor, norm: nn.Module
    ) -> None:
        """`patches` maps pixels to [N, P, D]; `class_token` is [D], `positions` as the tokens."""
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


class Pool(nn.Module):
    """The normalised class token: [N, T, D] to [N, D]."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.norm(tokens[:, 0])
        return pooled


class MeanPool(nn.Module):
    """The mean of all tokens behind the first `skipped`: [N, T, D] to [N, D].

    `norm` works on the tokens and `mean_norm` on their mean; sources have one of the two.
    """

    def __init__(self, norm: nn.Module, mean_norm: nn.Module, skipped: int) -> None:
        super().__init__()
        self.norm = norm
        self.mean_norm = mean_norm
        self.skipped = skipped

    def forward(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.mean_norm(self.norm(tokens[:, self.skipped :]).mean(1))
        return pooled


class AttentionPool(nn.Module):
    """One learned query over the normalised tokens, and an MLP: [N, T, D] to [N, D].

    The pooling of SigLIP (Zhai et al. 2023, after the multi-head attention pooling of Lee et al.
    2019, section 3.2).
    """

    def __init__(
        self, norm: nn.Module, query: Tensor, heads: int, mlp_norm: nn.Module, mlp: Mlp
    ) -> None:
        """`query` is [D], with its projection already applied."""
        super().__init__()
        width = query.shape[0]
        self.heads = heads
        self.norm = norm
        self.query = nn.Parameter(query.clone())
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def forward(self, tokens: Tensor) -> Tensor:
        key, value = self.key_value(self.norm(tokens)).chunk(2, -1)
        query = self.query.expand(tokens.shape[0], 1, -1)
        pooled = self.proj(attend(query, key, value, self.heads))[:, 0]
        mixed: Tensor = pooled + self.mlp(self.mlp_norm(pooled))
        return mixed


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention between projected rows: [N, Q, D] over [N, T, D] gives [N, Q, D]."""
    mixed = F.scaled_dot_product_attention(
        _split(query, heads), _split(key, heads), _split(value, heads)
    )
    return mixed.transpose(1, 2).flatten(2)


def _split(rows: Tensor, heads: int) -> Tensor:
    count, length, width = rows.shape
    return rows.view(count, length, heads, width // heads).transpose(1, 2)
