"""The stages of a vision transformer: embedding, blocks of attention and MLP, pooling."""

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

    queries, keys, values = split(query), split(key), split(value)
    slow_gradients = queries.dtype == torch.bfloat16 and queries.device.type == "cpu"
    if torch.onnx.is_in_onnx_export() or slow_gradients:
        # The exporter's own form of the fused operator has more nodes, and is slower. On a CPU, its
        # gradients in bfloat16 take several times as long as those of the products.
        scaled = queries * queries.shape[-1] ** -0.5
        mixed = torch.softmax(scaled @ keys.transpose(2, 3), dim=-1) @ values
    else:
        mixed = F.scaled_dot_product_attention(queries, keys, values)
    return mixed.transpose(1, 2).flatten(2)


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


class Mlp(nn.Module):
    """Two linear layers with an activation between them: [..., D] to [..., D]."""

    def __init__(self, width: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = act
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(self.act(self.fc1(tokens)))
        return mixed


class LayerScale(nn.Module):
    """One learned factor for each of the D outputs of a branch."""

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

    Tuners add modules to it. `appended` gives tokens [p, D] that join the sequence before the
    block; the last `dropped` tokens leave the sequence after the attention. `prompts` gives tokens
    [p, D] that only this block attends to. `after_mlp` reads the MLP's output, `beside_mlp` reads
    the residual stream before `norm2`, and both are added to the MLP's output.

    If `first_only` is set, the block returns only its first token, [N, 1, D]. This is for the last
    block if pooling reads no other token.
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
        for appended in self.appended:
            tokens = torch.cat([tokens, appended().expand(tokens.shape[0], -1, -1)], dim=1)
        prompts = None
        if self.prompts:
            prompts = self.norm1(torch.cat([prompt() for prompt in self.prompts]))
        attended = self.scale1(self.attention(self.norm1(tokens), self.first_only, prompts))
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


class Pool(nn.Module):
    """The normalised class token: [N, T, D] to [N, D]."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.norm(tokens[:, 0])
        return pooled


class MeanPool(nn.Module):
    """The mean of the tokens from `skipped` on, up to `end`: [N, T, D] to [N, D].

    `norm` is applied to the tokens and `mean_norm` to their mean; one of them is the identity.
    With `end` of None all tokens after the first `skipped` are read.
    """

    def __init__(
        self, norm: nn.Module, mean_norm: nn.Module, skipped: int, end: int | None = None
    ) -> None:
        super().__init__()
        self.norm = norm
        self.mean_norm = mean_norm
        self.skipped = skipped
        self.end = end

    def forward(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.mean_norm(self.norm(tokens[:, self.skipped : self.end]).mean(1))
        return pooled


class AttentionPool(nn.Module):
    """One learned query over the normalised tokens after `skipped`, then an MLP.

    Maps [N, T, D] to [N, D].

    The pooling of SigLIP (Zhai et al. 2023, after the multi-head attention pooling of Lee et al.
    2019, section 3.2).
    """

    def __init__(
        self,
        norm: nn.Module,
        query: Tensor,
        heads: int,
        mlp_norm: nn.Module,
        mlp: Mlp,
        skipped: int,
    ) -> None:
        """Copy `query` [D], to which its projection has been applied already."""
        super().__init__()
        width = query.shape[0]
        self.heads = heads
        self.norm = norm
        self.query = nn.Parameter(query.clone())
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.mlp_norm = mlp_norm
        self.mlp = mlp
        self.skipped = skipped

    def forward(self, tokens: Tensor) -> Tensor:
        key, value = self.key_value(self.norm(tokens[:, self.skipped :])).chunk(2, -1)
        query = self.query.expand(tokens.shape[0], 1, -1)
        pooled = self.proj(attend(query, key, value, self.heads))[:, 0]
        mixed: Tensor = pooled + self.mlp(self.mlp_norm(pooled))
        return mixed
