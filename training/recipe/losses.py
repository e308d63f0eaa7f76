"""Losses for long-tailed training, each as data (what a recipe says) and what it builds.

A built loss is a `Criterion`. Adding one is a class here and its name in `Loss`.
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
    """Logits [N, C] of any float type and labels int64 [N] to a loss for each example, [N].

    The losses are float32 (float64 for float64 logits), under autocast too. A batch's loss is
    their sum divided by N. Weighted losses too are divided by N and not, as torch's
    `cross_entropy(weight=...)` does it, by the sum of the weights that the batch happens to hold:
    so the parts of a batch may be added up.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        precise = torch.promote_types(logits.dtype, torch.float32)
        with torch.autocast(logits.device.type, enabled=False):
            return self.losses(logits.to(precise), labels)

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The same, of logits that are float32 or float64."""


class LossSpec(BaseModel, ABC):
    """A loss's name and options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Whether it says of a batch what it does not say of its parts.
    whole_batch: ClassVar[bool] = False

    @abstractmethod
    def implied_prior(self, counts: Sequence[int]) -> Tensor:
        """The prior in the logits: shares float64 [C] of classes with `counts` training photos.

        The softmax of logits that make the loss smallest is the classes' posterior under it.
        Raises `UserError` where a class has no photo.
        """

    @abstractmethod
    def build(self, counts: Sequence[int]) -> Criterion:
        """The loss for classes with `counts` training photos; `UserError` where one has none."""


class CrossEntropy(LossSpec):
    name: Literal["cross-entropy"] = "cross-entropy"

    def implied_prior(self, counts: Sequence[int]) -> Tensor:
        # The softmax itself is the posterior of the training photos.
        return _prior(counts)

    def build(self, counts: Sequence[int]) -> Criterion:
        return WeightedCrossEntropy(torch.ones_like(_checked(counts)))


class LogitAdjusted(LossSpec):
    """Cross-entropy of logits + tau log(prior) (Menon et al. 2021, equation 10)."""

    name: Literal["logit-adjusted"] = "logit-adjusted"
    tau: float = Field(1.0, ge=0, description="strength of the adjustment")

    def implied_prior(self, counts: Sequence[int]) -> Tensor:
        # softmax(logits + tau log prior) is the training photos' posterior: prior^tau is outside.
        return _power(counts, 1 - self.tau)

    def build(self, counts: Sequence[int]) -> Criterion:
        return ShiftedCrossEntropy(self.tau * _prior(counts).log())


class BalancedSoftmax(LossSpec):
    """Softmax weighted by the counts (Ren et al. 2020, equation 4): logit adjustment at tau 1."""

    name: Literal["balanced-softmax"] = "balanced-softmax"

    def implied_prior(self, counts: Sequence[int]) -> Tensor:
        # The counts in the softmax are the whole training prior.
        return _uniform(counts)

    def build(self, counts: Sequence[int]) -> Criterion:
        return ShiftedCrossEntropy(_checked(counts).log())


class Focal(LossSpec):
    """(1 - p)^gamma times the cross-entropy -log p (Lin et al. 2017, equation 4)."""

    name: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0, description="how much less an easy example counts")

    def implied_prior(self, counts: Sequence[int]) -> Tensor:
        # It bends the posterior, alike for all classes, and balances nothing: as cross-entropy.
        return _prior(counts)

    def build(self, counts: Sequence[int]) -> Criterion:
        _checked(counts)
        return FocalCrossEntropy(self.gamma)


class Ldam(LossSpec):
    """Cross-entropy with a margin that falls with n^(1/4) (LDAM, Cao et al. 2019, equation 13).

    Margins are cosines; the rarest class has `margin`. Since a cosine head's logits carry its
    scale already, what is taken from the true class's logit is `scale` times its margin.
    """

    name: Literal["ldam"] = "ldam"
    margin: float = Field(0.5, ge=0, le=2, description="of the rarest class, as a cosine")
    scale: float = Field(25.0, gt=0, description="the cosine head's")

    def implied_prior(self, counts: Sequence[int]) -> Tensor:
        # Margins are for training only; what they balance is no prior: as cross-entropy.
        return _prior(counts)

    def build(self, counts: Sequence[int]) -> Criterion:
        falling = _checked(counts) ** -0.25
        return MarginCrossEntropy(self.scale * self.margin * falling / falling.max())


class ClassBalanced(LossSpec):
    """Cross-entropy weighted by 1 / effective number of photos (Cui et al. 2019, section 4).

    Weights (1 - beta) / (1 - beta^n), scaled to a mean of 1 over the classes.
    """

    name: Literal["class-balanced"] = "class-balanced"
    beta: float = Field(0.9999, ge=0, lt=1, description="0: no weights; towards 1: 1 / count")

    def implied_prior(self, counts: Sequence[int]) -> Tensor:
        # A photo of weight w counts like w photos: the training prior times the weights.
        return _shares(_prior(counts) * self._weights(counts))

    def build(self, counts: Sequence[int]) -> Criterion:
        return WeightedCrossEntropy(self._weights(counts))

    def _weights(self, counts: Sequence[int]) -> Tensor:
        beta = torch.tensor(self.beta, dtype=torch.float64)
        effective = -torch.expm1(_checked(counts) * beta.log()) / (1 - beta)
        return 1 / effective


class Reweighted(LossSpec):
    """Cross-entropy weighted by (1 / prior)^rho, generalised re-weighting (Zhang et al. 2021).

    The weights are scaled to a mean of 1 over the classes.
    """

    name: Literal["reweighted"] = "reweighted"
    rho: float = Field(1.0, ge=0, description="0: no weights; 1: every class weighs the same")

    def implied_prior(self, counts: Sequence[int]) -> Tensor:
        # As for class-balanced weights: prior * (1 / prior)^rho.
        return _power(counts, 1 - self.rho)

    def build(self, counts: Sequence[int]) -> Criterion:
        return WeightedCrossEntropy(_prior(counts) ** -self.rho)


class Lade(LossSpec):
    """PC-softmax cross-entropy and a bound on each logit's scale (LADE, Hong et al. 2021).

    See `LadeCriterion`, also for what it means to train a batch in parts.
    """

    whole_batch = True

    name: Literal["lade"] = "lade"
    weight: float = Field(0.1, ge=0, description="of the estimator beside the cross-entropy")
    penalty: float = Field(0.1, ge=0, description="on the squared log-partition (ReMINE's lambda)")

    def implied_prior(self, counts: Sequence[int]) -> Tensor:
        # The cross-entropy has the whole prior outside the logits, and the other term wants
        # them right where classes are equally frequent.
        return _uniform(counts)

    def build(self, counts: Sequence[int]) -> Criterion:
        return LadeCriterion(_prior(counts), self.weight, self.penalty)


Loss = Annotated[
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
    """Cross-entropy times the true class's weight; `weight` [C] is scaled to a mean of 1."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", (weight / weight.mean()).float())

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.weight[labels] * F.cross_entropy(logits, labels, reduction="none")


class FocalCrossEntropy(Criterion):
    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        entropy = F.cross_entropy(logits, labels, reduction="none")
        # Where p is 1, the slope of (1 - p)^gamma with gamma < 1 would be infinite.
        miss = (-torch.expm1(-entropy)).clamp_min(torch.finfo(entropy.dtype).tiny)
        return miss**self.gamma * entropy


class MarginCrossEntropy(Criterion):
    """Cross-entropy after `margin` [C], in units of the logits, is taken from the true logit."""

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

    where Z_c is the mean of exp(logit c) over the batch, an example of class y counting
    (1/C) / prior_y times: an estimate for equally frequent classes (Hong et al. 2021, section 3;
    the authors' code weights by the logit's class c instead of the example's class y).

    The sum is a statistic of the whole batch: every example gets the same, so that the mean of
    the losses is the batch's loss. Where a batch is trained in parts (gradient accumulation,
    several processes), each part has its own sum, from fewer examples: not quite the loss of the
    whole batch. In a class that a batch lacks, the last term is missing.
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
        true = _is_true(logits, labels)
        own = logits.where(true, 0).sum(0) / true.sum(0).clamp_min(1)
        importance = -(self.prior[labels] * len(self.prior)).log()
        log_z = (logits + importance[:, None]).logsumexp(0) - math.log(len(labels))
        return (self.prior * (self.penalty * log_z**2 + log_z - own)).sum()


def _is_true(logits: Tensor, labels: Tensor) -> Tensor:
    """Bool [N, C]: where a logit is the true class's."""
    return labels[:, None] == torch.arange(logits.shape[1], device=logits.device)


def _checked(counts: Sequence[int]) -> Tensor:
    """The counts as float64 [C]."""
    for position, count in enumerate(counts):
        if count < 1:
            raise UserError(
                f"class {position} has {count} training photos: the loss needs at least one of "
                "every class; add some or remove the class"
            )
    return torch.tensor(counts, dtype=torch.float64)


def _prior(counts: Sequence[int]) -> Tensor:
    return _shares(_checked(counts))


def _uniform(counts: Sequence[int]) -> Tensor:
    return _power(counts, 0)


def _power(counts: Sequence[int], exponent: float) -> Tensor:
    """Shares as the prior's to the power of `exponent`, however large that is."""
    return (exponent * _prior(counts).log()).softmax(0)


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum()
