"""The classifier on top of the tower."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineHead(nn.Module):
    """scale * cos(feature, class weight); LIFT, section 3.2.

    It works on the tower's features before the visual projection, or, with `projection` [D, E],
    behind it (which at the text weights is zero-shot CLIP).
    """

    weight: Tensor
    projection: Tensor | None

    def __init__(self, weight: Tensor, scale: float, projection: Tensor | None = None) -> None:
        """`weight` is [C, D] or, with a projection, [C, E]."""
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.scale = scale
        self.register_buffer("projection", projection)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, D] to logits [N, C] and unit-length features [N, D or E]."""
        if self.projection is not None:
            features = features @ self.projection
        unit = F.normalize(features, dim=-1)
        return self.scale * F.linear(unit, F.normalize(self.weight, dim=-1)), unit

    @torch.no_grad()
    def merged(self) -> "LinearHead":
        return LinearHead(self.scale * F.normalize(self.weight, dim=-1), self.projection)


class LinearHead(nn.Module):
    """A cosine head with the class norms and the scale folded into its weight [C, D or E]."""

    projection: Tensor | None

    def __init__(self, weight: Tensor, projection: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.register_buffer("projection", projection)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if self.projection is not None:
            features = features @ self.projection
        unit = F.normalize(features, dim=-1)
        return F.linear(unit, self.weight), unit


def text_weight(text: Tensor, projection: Tensor) -> Tensor:
    """Class weights [C, D] from unit text features [C, E], pulled back through the projection.

    LIFT's semantic-aware initialisation (section 3.4): normalize(t P^T) with P [D, E].
    """
    return F.normalize(text @ projection.t(), dim=-1)
