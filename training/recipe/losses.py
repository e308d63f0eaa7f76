"""Losses for long-tailed training: the options that a recipe states, and the modules they build.

A new loss is a class of options, a `Criterion` that it builds, and its name in `AnyLoss`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from torch import Tensor, nn

from taillift.models.errors import UserError

# Points of many-shot accuracy that `aim: few` may cost if the recipe does not say.
GIVE: Final = 2.0
# The gate of cues asks for the truth among so many first classes, but among at most one of so many
# classes: of few classes, chance alone would often hold it.
FIRST: Final = 5
CHANCE: Final = 4


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

    @property
    def tail(self) -> float:
        """How far answers lean toward the rare classes: tau - 1 if tau was chosen after training.

        They are those of logits - tail * log(prior).
        """
        return 0.0


class CrossEntropy(LossSpec):
    """The plain cross-entropy."""

    name: Literal["cross-entropy"] = "cross-entropy"

    def implied_prior(self, counts: Sequence[float]) -> Tensor:
        # The softmax is the posterior under the training photos' prior.
        return _prior(counts)

    def build(self, counts: Sequence[float]) -> Criterion:
        return WeightedCrossEntropy(torch.ones_like(_checked_counts(counts)), _prior(counts))


class Cues(BaseModel):
    """Look-alike classes as soft positives (CUE, arXiv 2605.01309, and the authors' code).

    A photo's look-alikes are the `count` wrong classes that zero-shot CLIP gives the highest logits
    on it. The loss gets, with `weight`, the mean over the classes of the binary cross-entropy of
    logits + tau log(prior) against 1 for the photo's class and its look-alikes, and 0 for others.

    CUE takes 5 look-alikes, of each random crop, and as many again that a language model names.
    Ours: they come once from the centre view, there are 3, and the gate. Cues are on only if
    zero-shot CLIP's first classes hold the truth for at least the share `gate` of the training
    photos of the rarest group: for others, its look-alikes are noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(3, ge=1, description="look-alikes of a photo")
    weight: float = Field(0.5, gt=0, description="weight of the binary cross-entropy")
    gate: float = Field(
        0.4, ge=0, le=1, description="least share of rare photos that zero-shot knows; 0: always on"
    )

    def look_alikes(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the look-alikes int64 [N, K] of photos with zero-shot logits [N, C].

        `labels` [N] are their classes. K is `count`, or C - 1 if that is less.
        """
        wrong = logits.scatter(1, labels[:, None], -math.inf)
        return wrong.topk(min(self.count, logits.shape[1] - 1), 1).indices


class LogitAdjusted(LossSpec):
    """Cross-entropy of logits + tau log(prior) (Menon et al. 2021, equation 10).

    With tau `auto`, the run trains with tau = 1, and answers with the tau that is `chosen` on val/:
    after training, another tau is a shift of the logits (equation 9). The `aim` is the best
    mean-class accuracy, or the best few-shot accuracy that costs at most `give` points of many-shot
    accuracy against tau = 1.
    """

    name: Literal["logit-adjusted"] = "logit-adjusted"
    tau: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["auto"] = Field(
        1.0, description="strength of the adjustment; auto: 1 in training, then chosen on val/"
    )
    aim: Literal["mean-class", "few"] | None = Field(
        None, description="what auto chooses by; None: mean-class"
    )
    give: float | None = Field(
        None, ge=0, description=f"points of many-shot accuracy for aim: few; None: {GIVE:g}"
    )
    chosen: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="what auto has chosen; training fills it in"
    )
    cues: Cues | None = Field(None, description="look-alike classes as soft positives")

    @field_validator("tau", mode="wrap")
    @classmethod
    def explain_tau(
        cls, value: Any, handler: ValidatorFunctionWrapHandler
    ) -> float | Literal["auto"]:
        """Refuse what is neither kind of tau by one error."""
        try:
            tau: float | Literal["auto"] = handler(value)
        except ValidationError:
            raise ValueError("give a number that is not below 0, or auto") from None
        return tau

    @model_validator(mode="after")
    def check_choice(self) -> Self:
        """Refuse what says how to choose tau if it is given, and points for another aim."""
        for name in ("aim", "give", "chosen"):
            if self.tau != "auto" and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is for tau = auto, and tau is {self.tau:g}: set tau to auto, or leave "
                    f"{name} out"
                )
        if self.give is not None and self.aim != "few":
            raise ValueError("give is for aim = few: set that, or leave it out")
        return self

    @property
    def strength(self) -> float:
        """The tau of the training."""
        return 1.0 if self.tau == "auto" else self.tau

    @property
    def undecided(self) -> bool:
        """Whether tau has still to be chosen."""
        return self.tau == "auto" and self.chosen is None

    @property
    def tail(self) -> float:
        return 0.0 if self.chosen is None else self.chosen - 1

    def implied_prior(self, counts: Sequence[float]) -> Tensor:
        # softmax(logits + tau log prior) has the training prior, so the logits lack prior^tau.
        return _prior_power(counts, 1 - self.strength)

    def build(self, counts: Sequence[float]) -> Criterion:
        shift = self.strength * _prior(counts).log()
        return (
            CuedCrossEntropy(shift, self.cues.weight) if self.cues else ShiftedCrossEntropy(shift)
        )


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


class CuedCrossEntropy(ShiftedCrossEntropy):
    """Cross-entropy of logits + `shift` [C], and `weight` times a binary one with look-alikes.

    Labels are int64 [N, 1 + K]: the class and its look-alikes. The binary cross-entropy of the same
    shifted logits is 1 for all of these and 0 for other classes, and its mean is over the C classes
    (CUE). With labels [N], there are no look-alikes and no binary cross-entropy.
    """

    def __init__(self, shift: Tensor, weight: float) -> None:
        super().__init__(shift)
        self.weight = weight

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.ndim == 1:
            return super().losses(logits, labels)
        alike = torch.zeros_like(logits).scatter(1, labels, 1.0)
        binary = F.binary_cross_entropy_with_logits(logits + self.shift, alike, reduction="none")
        return super().losses(logits, labels[:, 0]) + self.weight * binary.mean(1)


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
