"""The classification heads on top of the tower."""

from abc import ABC, abstractmethod
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HeadName = Literal["cosine", "linear", "l2", "layernorm"]
Normalisation = Literal["none", "unit", "layernorm"]
# The epsilon of the layer norm over features, as in LIFT.
EPS: Final = 1e-12


class Head(nn.Module, ABC):
    """logits = W n(x) + b, with one of three normalisations n, and W and b from `plain`.

    x is the tower's features [N, D], or their projection into the space that images share with
    text: x P + p with P [D, E] and p [E].
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
        """Copy `weight`, which is [C, D] or, with a projection, [C, E]."""
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.register_buffer("projection", projection)
        self.register_buffer("projection_bias", projection_bias)

    @abstractmethod
    def plain(self) -> tuple[Tensor, Tensor | None]:
        """Return W [C, D or E] and b [C]; all that does not depend on x is folded into them."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [N, D] to logits [N, C] and unit-length features [N, D or E]."""
        features = project_features(features, self.projection, self.projection_bias)
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
        """Return the same classifier as plain weights."""
        return PlainHead(*self.plain(), self.normalisation, self.projection, self.projection_bias)


class CosineHead(Head):
    """scale * cos(feature, class weight); LIFT, section 3.2.

    With the projection, and with text features as class weights, this is zero-shot CLIP. The mean
    of its logits over views is W times the mean of the views' unit features.
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


class FusedHead(CosineHead):
    """scale * cos(feature, (1 - share) class weight + share * alignment * prototype).

    The sum of two cosine heads' logits: those of the trained weights and those of `prototypes`
    [C, D or E], which no gradient changes. `alignment`, a number, brings the second to the scale of
    the first. As both read the same unit features, their sum is one row of weights for each class.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: float,
        share: float,
        projection: Tensor | None = None,
        projection_bias: Tensor | None = None,
    ) -> None:
        super().__init__(weight, scale, projection, projection_bias)
        self.share = share
        self.prototypes = nn.Parameter(weight.clone(), requires_grad=False)
        self.alignment = nn.Parameter(torch.ones(()), requires_grad=False)

    def parts(self) -> tuple[Tensor, Tensor]:
        """Return the unit weights of the two heads, each [C, D or E]."""
        return F.normalize(self.weight, dim=-1), F.normalize(self.prototypes, dim=-1)

    def plain(self) -> tuple[Tensor, None]:
        trained, prototypes = self.parts()
        mixed = torch.lerp(trained, self.alignment * prototypes, self.share)
        return self.scale * mixed, None


class LinearHead(Head):
    """W x + b, with a bias that starts at zero."""

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
    """W x with rows of unit length, and features that are not normalised."""

    normalisation: Normalisation = "none"

    def plain(self) -> tuple[Tensor, None]:
        return F.normalize(self.weight, dim=-1), None


class LayerNormHead(L2Head):
    """W x with rows of unit length, and features of mean 0 and variance 1."""

    normalisation = "layernorm"


class PlainHead(Head):
    """The merged form of any head: class norms and scale are folded into its weight."""

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
    """Return a head to train; only the cosine head uses `scale`."""
    match name:
        case "cosine":
            return CosineHead(weight, scale, projection, projection_bias)
        case "linear":
            return LinearHead(weight, projection, projection_bias)
        case "l2":
            return L2Head(weight, projection, projection_bias)
        case "layernorm":
            return LayerNormHead(weight, projection, projection_bias)


def project_features(features: Tensor, projection: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return x P + p [N, E] of features [N, D], with P [D, E] and p [E]; None leaves a part out."""
    if projection is not None:
        features = features @ projection
    return features if bias is None else features + bias


def text_weight(text: Tensor, projection: Tensor | None) -> Tensor:
    """Return class weights [C, D] from unit text features [C, E], mapped back by the projection.

    LIFT's semantic-aware initialisation (section 3.4): normalize(t P^T) with P [D, E], or the text
    features themselves if the tower has no projection. A projection's bias is not used.
    """
    return F.normalize(text if projection is None else text @ projection.t(), dim=-1)
