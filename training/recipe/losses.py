"""Losses for long-tailed training: the options that a recipe states, and the modules they build.

A new loss is a class of options, a `Criterion` that it builds, and its name in `AnyLoss`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from taillift.models.errors import UserError


class Criterion(nn.Module, ABC):
    """A loss [N], one for each example, from logits [N, C] of any float type and labels int64 [N].

    The losses are float32 (float64 for float64 logits), also under autocast. The loss of a batch is
    their sum divided by N. This holds for weighted losses, too, while torch's
    `cross_entropy(weight=...)` divides by the sum of the weights in the batch. So the losses of the
    parts of a batch can be added up.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        precise = torch.promote_types(logits.dtype, torch.float32)
        with torch.autocast(logits.device.type, enabled=False):
            return self.losses(logits.to(precise), labels)

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the losses [N] for logits that are float32 or float64."""


class LossSpec(BaseModel, ABC):
    """The name and the options of a loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Whether the loss of a batch is more than the sum over its parts.
    whole_batch: ClassVar[bool] = False

    @abstractmethod
    def implied_prior(self, counts: Sequence[float]) -> Tensor:
        """Return the class prior that this loss leaves in the logits, float64 [C], of sum 1.

        `counts` are the training photos of each class, and with unlabelled photos what the accepted
        pseudo-labels count as, too. The softmax of the logits with the smallest
        loss is the posterior of the classes under this prior. Raises `UserError` if a class has no
        photo.
        """

    @abstractmethod
    def build(self, counts: Sequence[float]) -> Criterion:
        """Return the loss for classes with `counts` training photos.

        Raises `UserError` if a class has none.
        """


class CrossEntropy(LossSpec):
    """The plain cross-entropy."""

    name: Literal["cross-entropy"] = "cross-entropy"

    def implied_prior(self, counts: Sequence[float]) -> Tensor:
        # The softmax is the posterior under the training photos' prior.
        return _prior(counts)

    def build(self, counts: Sequence[float]) -> Criterion:
        return WeightedCrossEntropy(torch.ones_like(_checked_counts(counts)), _prior(counts))


class LogitAdjusted(LossSpec):
    """Cross-entropy of logits + tau log(prior) (Menon et al. 2021, equation 10)."""

    name: Literal["logit-adjusted"] = "logit-adjusted"
    tau: float = Field(1.0, ge=0, description="strength of the adjustment")

    def implied_prior(self, counts: Sequence[float]) -> Tensor:
        # softmax(logits + tau log prior) has the training prior, so the logits lack prior^tau.
        return _prior_power(counts, 1 - self.tau)

    def build(self, counts: Sequence[float]) -> Criterion:
        return ShiftedCrossEntropy(self.tau * _prior(counts).log())


class BalancedSoftmax(LossSpec):
    """Softmax weighted by the counts (Ren et al. 2020, equation 4): logit adjustment with tau 1."""

    name: Literal["balanced-softmax"] = "balanced-softmax"

    def implied_prior(self, counts: Sequence[float]) -> Tensor:
        # The counts in the softmax are the whole training prior.
        return _prior_power(counts, 0)

    def build(self, counts: Sequence[float]) -> Criterion:
        return ShiftedCrossEntropy(_checked_counts(counts).log())


class Focal(LossSpec):
    """(1 - p)^gamma times the cross-entropy -log p (Lin et al. 2017, equation 4)."""

    name: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0, description="how much the weight of easy examples falls")

    def implied_prior(self, counts: Sequence[float]) -> Tensor:
        # It distorts the posterior in the same way for all classes and balances nothing.
        return _prior(counts)

    def build(self, counts: Sequence[float]) -> Criterion:
        _checked_counts(counts)
        return FocalCrossEntropy(self.gamma)


class Ldam(LossSpec):
    """Cross-entropy with a margin ~ n^(-1/4) of n photos (LDAM, Cao et al. 2019, equation 13).

    Margins are cosines; the rarest class has `margin`. The logits of a cosine head are already
    multiplied by its scale. So `scale` times the margin is subtracted from the true class's logit.
    """

    name: Literal["ldam"] = "ldam"
    margin: float = Field(0.5, ge=0, le=2, description="margin of the rarest class, as a cosine")
    scale: float = Field(25.0, gt=0, description="scale of the cosine head")

    def implied_prior(self, counts: Sequence[float]) -> Tensor:
        # Margins act in training only, and they do not stand for a prior.
        return _prior(counts)

    def build(self, counts: Sequence[float]) -> Criterion:
        relative = _checked_counts(counts) ** -0.25
        return MarginCrossEntropy(self.scale * self.margin * relative / relative.max())


class ClassBalanced(LossSpec):
    """Cross-entropy weighted by 1 / effective number of photos (Cui et al. 2019, section 4).

    The weights are (1 - beta) / (1 - beta^n), scaled to a mean of 1 over the photos.
    """

    name: Literal["class-balanced"] = "class-balanced"
    beta: float = Field(0.9999, ge=0, lt=1, description="0: no weights; near 1: 1 / count")

    def implied_prior(self, counts: Sequence[float]) -> Tensor:
        # A photo of weight w counts as w photos: the training prior times the weights.
        weighted = _prior(counts) * self.class_weights(counts)
        return weighted / weighted.sum()

    def build(self, counts: Sequence[float]) -> Criterion:
        return WeightedCrossEntropy(self.class_weights(counts), _prior(counts))

    def class_weights(self, counts: Sequence[float]) -> Tensor:
        """Return 1 / effective number of photos of each class, float64 [C]."""
        beta = torch.tensor(self.beta, dtype=torch.float64)
        effective = -torch.expm1(_checked_counts(counts) * beta.log()) / (1 - beta)
        return 1 / effective


class Reweighted(LossSpec):
    """Cross-entropy weighted by (1 / prior)^rho, generalised re-weighting (Zhang et al. 2021).

    The weights are scaled to a mean of 1 over the training photos.
    """

    name: Literal["reweighted"] = "reweighted"
    rho: float = Field(1.0, ge=0, description="0: no weights; 1: every class weighs the same")

    def implied_prior(self, counts: Sequence[float]) -> Tensor:
        # As for class-balanced weights: prior * (1 / prior)^rho.
        return _prior_power(counts, 1 - self.rho)

    def build(self, counts: Sequence[float]) -> Criterion:
        prior = _prior(counts)
        return WeightedCrossEntropy(prior**-self.rho, prior)


class Lade(LossSpec):
    """PC-softmax cross-entropy and a regulariser of the logits (LADE, Hong et al. 2021).

    See `LadeCriterion`, also for batches that are trained in parts.
    """

    whole_batch = True

    name: Literal["lade"] = "lade"
    weight: float = Field(0.1, ge=0, description="weight of the regulariser")
    penalty: float = Field(0.1, ge=0, description="of the squared log-partition (ReMINE's lambda)")

    def implied_prior(self, counts: Sequence[float]) -> Tensor:
        # The cross-entropy adds the whole prior to the logits, and the regulariser fits them to
        # equally frequent classes.
        return _prior_power(counts, 0)

    def build(self, counts: Sequence[float]) -> Criterion:
        return LadeCriterion(_prior(counts), self.weight, self.penalty)


AnyLoss = Annotated[
    CrossEntropy
    | LogitAdjusted
    | BalancedSoftmax
    | Focal
    | Ldam
    | ClassBalanced
    | Reweighted
    | Lade,
    Field(discriminator="name"),
]


class ShiftedCrossEntropy(Criterion):
    """Cross-entropy of logits + `shift` [C]."""

    shift: Tensor

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift.float())

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits + self.shift, labels, reduction="none")


class WeightedCrossEntropy(Criterion):
    """Cross-entropy times the weight of the true class.

    `weight` [C] is scaled to a mean of 1 over photos whose classes are as frequent as `prior` [C].
    So the losses of an epoch have the published size, however long the tail is.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, prior: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", (weight / (prior * weight).sum()).float())

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.weight[labels] * F.cross_entropy(logits, labels, reduction="none")


class FocalCrossEntropy(Criterion):
    """Cross-entropy times (1 - p)^gamma, with the probability p of the true class."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        entropy = F.cross_entropy(logits, labels, reduction="none")
        # At p = 1 the slope of (1 - p)^gamma with gamma < 1 would be infinite.
        miss = (-torch.expm1(-entropy)).clamp_min(torch.finfo(entropy.dtype).tiny)
        return miss**self.gamma * entropy


class MarginCrossEntropy(Criterion):
    """Cross-entropy after subtracting `margin` [C], in logits, from the true class's logit."""

    margin: Tensor

    def __init__(self, margin: Tensor) -> None:
        super().__init__()
        self.register_buffer("margin", margin.float())

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            torch.where(_is_true(logits, labels), logits - self.margin, logits),
            labels,
            reduction="none",
        )


class LadeCriterion(Criterion):
    """CE(logits + log prior) + weight * sum over classes c of prior_c times

        penalty * (log Z_c)^2 + log Z_c - (mean of logit c over the examples of class c),

    where Z_c is the mean of exp(logit c) over the batch, in which an example of class y has the
    weight (1/C) / prior_y. This estimates Z_c for equally frequent classes (Hong et al. 2021,
    section 3; the authors' code weights by the logit's class c instead of the example's class y).

    The sum is a statistic of the whole batch. Every example gets the same sum, so that the mean of
    the losses is the batch's loss. If a batch is trained in parts (gradient accumulation, several
    processes), each part has its own sum from fewer examples, which is not quite the loss of the
    whole batch. For a class that is not in the batch, the last term is left out.
    """

    prior: Tensor

    def __init__(self, prior: Tensor, weight: float, penalty: float) -> None:
        super().__init__()
        self.register_buffer("prior", prior.float())
        self.weight = weight
        self.penalty = penalty

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        entropy = F.cross_entropy(logits + self.prior.log(), labels, reduction="none")
        return entropy + self.weight * self.regulariser(logits, labels)

    def regulariser(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over the classes, a scalar."""
        true = _is_true(logits, labels)
        own = logits.where(true, 0).sum(0) / true.sum(0).clamp_min(1)
        importance = -(self.prior[labels] * len(self.prior)).log()
        log_z = (logits + importance[:, None]).logsumexp(0) - math.log(len(labels))
        return (self.prior * (self.penalty * log_z**2 + log_z - own)).sum()


def _is_true(logits: Tensor, labels: Tensor) -> Tensor:
    """Return bool [N, C]: whether a logit is that of the true class."""
    return labels[:, None] == torch.arange(logits.shape[1], device=logits.device)


def _checked_counts(counts: Sequence[float]) -> Tensor:
    """Return the counts as float64 [C]. Raises `UserError` if one is below 1."""
    for label, count in enumerate(counts):
        if count < 1:
            raise UserError(
                f"class {label} has {count} training photos: the loss needs at least one of every "
                "class; add some or remove the class"
            )
    return torch.tensor(counts, dtype=torch.float64)


def _prior(counts: Sequence[float]) -> Tensor:
    """Return each class's share of the training photos, float64 [C]."""
    photos = _checked_counts(counts)
    return photos / photos.sum()


def _prior_power(counts: Sequence[float], exponent: float) -> Tensor:
    """Return the prior to the power of `exponent`, which may be large, scaled to a sum of 1."""
    return (exponent * _prior(counts).log()).softmax(0)
