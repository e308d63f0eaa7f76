"""A pre-norm transformer block and its parts."""

import torch
from torch import Tensor, nn

from taillift.models.lift.attention import Attention


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
