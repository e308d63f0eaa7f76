"""The classifiers on top of the tower."""

from abc import ABC, abstractmethod
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HeadName = Literal["cosine", "linear", "l2", "layernorm"]
Normalisation = Literal["none", "unit", "layernorm"]
# Of the layer norm over features, as in LIFT.
EPS: Final = 1e-12


class Head(nn.Module, ABC):
    """logits = W n(x) + b, with n one of three normalisations and W and b what `plain` says.

    It works on the tower's features [N, D], or behind a projection into the space that images
    share with text: x P + p with P [D, E] and p [E].
    """

    normalisation: Normalisation
    projection: Tensor | None
    projection_bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        projection: Tensor | None = None,
        projection_bias: Tensor | None = None,
    ) -> None:
        """`weight` is [C, D] or, with a projection, [C, E]."""
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.register_buffer("projection", projection)
        self.register_buffer("projection_bias", projection_bias)

    @abstractmethod
    def plain(self) -> tuple[Tensor, Tensor | None]:
        """W [C, D or E] and b [C], with everything that does not depend on x folded in."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, D] to logits [N, C] and unit-length features [N, D or E]."""
        features = into_space(features, self.projection, self.projection_bias)
        unit = F.normalize(features, dim=-1)
        match self.normalisation:
            case "unit":
                inputs = unit
            case "layernorm":
                inputs = F.layer_norm(features, features.shape[-1:], eps=EPS)
            case "none":
                inputs = features
        return F.linear(inputs, *self.plain()), unit

    @torch.no_grad()
    def merged(self) -> "PlainHead":
        return PlainHead(*self.plain(), self.normalisation, self.projection, self.projection_bias)


class CosineHead(Head):
    """scale * cos(feature, class weight); LIFT, section 3.2.

    Behind the projection and at the text weights this is zero-shot CLIP. The mean of its logits
    over views is W times the mean of their unit features.
    """

    normalisation = "unit"

    def __init__(
        self,
        weight: Tensor,
        scale: float,
        projection: Tensor | None = None,
        projection_bias: Tensor | None = None,
    ) -> None:
        super().__init__(weight, projection, projection_bias)
        self.scale = scale

    def plain(self) -> tuple[Tensor, None]:
        return self.scale * F.normalize(self.weight, dim=-1), None


class LinearHead(Head):
    """W x + b, the bias zero at first."""

    normalisation = "none"

    def __init__(
        self,
        weight: Tensor,
        projection: Tensor | None = None,
        projection_bias: Tensor | None = None,
    ) -> None:
        super().__init__(weight, projection, projection_bias)
        self.bias = nn.Parameter(torch.zeros(len(weight)))

    def plain(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bias


class L2Head(Head):
    """W x with rows of unit length, the features as they are."""

    normalisation: Normalisation = "none"

    def plain(self) -> tuple[Tensor, None]:
        return F.normalize(self.weight, dim=-1), None


class LayerNormHead(L2Head):
    """W x with rows of unit length, the features of mean 0 and variance 1."""

    normalisation = "layernorm"


class PlainHead(Head):
    """Any head with its class norms and scale folded into its weight."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        normalisation: Normalisation,
        projection: Tensor | None = None,
        projection_bias: Tensor | None = None,
    ) -> None:
        super().__init__(weight, projection, projection_bias)
        self.normalisation = normalisation
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    def plain(self) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias


def new_head(
    name: HeadName,
    weight: Tensor,
    scale: float,
    projection: Tensor | None = None,
    projection_bias: Tensor | None = None,
) -> Head:
    """A head to train; only the cosine head uses `scale`."""
    match name:
        case "cosine":
            return CosineHead(weight, scale, projection, projection_bias)
        case "linear":
            return LinearHead(weight, projection, projection_bias)
        case "l2":
            return L2Head(weight, projection, projection_bias)
        case "layernorm":
            return LayerNormHead(weight, projection, projection_bias)


def into_space(features: Tensor, projection: Tensor | None, bias: Tensor | None) -> Tensor:
    """Features [N, D] as x P + p [N, E], with P [D, E] and p [E]; without what is None."""
    if projection is not None:
        features = features @ projection
    return features if bias is None else features + bias


def text_weight(text: Tensor, projection: Tensor | None) -> Tensor:
    """Class weights [C, D] from unit text features [C, E], pulled back through the projection.

    LIFT's semantic-aware initialisation (section 3.4): normalize(t P^T) with P [D, E], or the text
    features themselves where the tower has no projection. A projection's bias plays no part.
    """
    return F.normalize(text if projection is None else text @ projection.t(), dim=-1)
