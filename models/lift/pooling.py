"""The last stage of a vision transformer: tokens to one feature vector."""

from torch import Tensor, nn

from taillift.models.lift.attention import attend
from taillift.models.lift.block import Mlp


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
