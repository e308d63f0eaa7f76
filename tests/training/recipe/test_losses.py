"""Tests of the losses for long-tailed training."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from taillift.models.errors import UserError
from taillift.training.recipe.losses import (
    AnyLoss,
    BalancedSoftmax,
    ClassBalanced,
    CrossEntropy,
    Cues,
    Focal,
    Lade,
    LadeCriterion,
    Ldam,
    LogitAdjusted,
    LossSpec,
    MarginCrossEntropy,
    Reweighted,
    WeightedCrossEntropy,
)

LOSSES: dict[str, type[LossSpec]] = {
    kind.model_fields["name"].default: kind for kind in get_args(get_args(AnyLoss)[0])
}
COUNTS = [70, 20, 10]
PRIOR = torch.tensor([0.7, 0.2, 0.1])
LOGITS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 2, 1])

every_loss = pytest.mark.parametrize("spec", [kind() for kind in LOSSES.values()], ids=list(LOSSES))


def entropy(logits: Tensor, labels: Tensor = LABELS) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def weight_of(spec: LossSpec, counts: list[int]) -> Tensor:
    criterion = spec.build(counts)
    assert isinstance(criterion, WeightedCrossEntropy)
    return criterion.weight


def margin_of(spec: LossSpec, counts: list[int]) -> Tensor:
    criterion = spec.build(counts)
    assert isinstance(criterion, MarginCrossEntropy)
    return criterion.margin


@every_loss
def test_the_name_selects_the_loss_and_the_options_survive_json(spec: LossSpec) -> None:
    adapter: TypeAdapter[LossSpec] = TypeAdapter(AnyLoss)
    again = adapter.validate_json(spec.model_dump_json())
    assert (type(again), again) == (type(spec), spec)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValidationError, match="tau"):
        TypeAdapter(AnyLoss).validate_python({"name": "focal", "tau": 1})


@every_loss
def test_the_error_for_a_class_without_photos_gives_its_number(spec: LossSpec) -> None:
    with pytest.raises(UserError, match="class 1 has 0 training photos"):
        spec.build([3, 0, 2])


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        (CrossEntropy(), [70, 20, 10]),
        (LogitAdjusted(), [1, 1, 1]),
        (LogitAdjusted(tau=0), [70, 20, 10]),
        (LogitAdjusted(tau=0.5), [70**0.5, 20**0.5, 10**0.5]),
        (LogitAdjusted(tau=2), [1 / 70, 1 / 20, 1 / 10]),
        (BalancedSoftmax(), [1, 1, 1]),
        (Lade(), [1, 1, 1]),
        (Focal(), [70, 20, 10]),
        (Ldam(), [70, 20, 10]),
        (Reweighted(), [1, 1, 1]),
        (Reweighted(rho=0.5), [70**0.5, 20**0.5, 10**0.5]),
        (ClassBalanced(beta=0), [70, 20, 10]),
        (ClassBalanced(beta=0.9), [70 / (1 - 0.9**70), 20 / (1 - 0.9**20), 10 / (1 - 0.9**10)]),
    ],
)
def test_the_prior_that_a_loss_leaves_in_the_logits(spec: LossSpec, weights: list[float]) -> None:
    expected = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(spec.implied_prior(COUNTS), expected / expected.sum())


@pytest.mark.parametrize(
    "spec",
    [
        CrossEntropy(),
        LogitAdjusted(),
        LogitAdjusted(tau=0.5),
        BalancedSoftmax(),
        ClassBalanced(beta=0.95),
        Reweighted(),
        Reweighted(rho=0.3),
    ],
    ids=lambda spec: spec.model_dump_json(),
)
def test_the_best_logits_are_the_posterior_under_the_implied_prior(spec: LossSpec) -> None:
    """At these logits the gradient of the expected loss is zero.

    There are four kinds of photos, each with a likelihood under each of three classes.
    """
    likelihood = torch.tensor([[0.6, 0.2, 0.1, 0.1], [0.1, 0.5, 0.3, 0.1], [0.1, 0.1, 0.2, 0.6]])
    likelihood = likelihood.double()
    joint = PRIOR.double()[:, None] * likelihood
    implied = spec.implied_prior(COUNTS)
    best = (implied[:, None] * likelihood).log().T.clone().requires_grad_()
    kinds, labels = torch.cartesian_prod(torch.arange(4), torch.arange(3)).T
    losses = spec.build(COUNTS).double()(best[kinds], labels)
    (losses * joint[labels, kinds]).sum().backward()
    assert best.grad is not None
    torch.testing.assert_close(best.grad, torch.zeros_like(best), atol=1e-7, rtol=0)


@every_loss
def test_every_example_has_its_own_loss_and_a_finite_gradient(spec: LossSpec) -> None:
    logits = torch.cat([LOGITS, torch.tensor([[100.0, 0.0, -100.0]])]).requires_grad_()
    losses = spec.build(COUNTS)(logits, torch.cat([LABELS, torch.tensor([0])]))
    assert losses.shape == (6,)
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_logits_are_computed_in_fp32(
    spec: LossSpec, dtype: torch.dtype
) -> None:
    criterion = spec.build(COUNTS)
    half = LOGITS.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        losses = criterion(half, LABELS)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, criterion(half.float(), LABELS))


@every_loss
def test_the_gradient_equals_finite_differences(spec: LossSpec) -> None:
    criterion = spec.build(COUNTS).double()
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: criterion(given, LABELS), logits, fast_mode=True)


@every_loss
def test_the_buffers_move_with_the_loss(spec: LossSpec) -> None:
    criterion = spec.build(COUNTS).to("meta")
    assert criterion.losses(LOGITS.to("meta"), LABELS.to("meta")).device.type == "meta"


@pytest.mark.parametrize(
    "spec",
    [kind() for name, kind in LOSSES.items() if name != "lade"],
    ids=[name for name in LOSSES if name != "lade"],
)
def test_the_losses_of_the_parts_of_a_batch_add_up(spec: LossSpec) -> None:
    criterion = spec.build(COUNTS)
    parts = criterion(LOGITS[:2], LABELS[:2]).sum() + criterion(LOGITS[2:], LABELS[2:]).sum()
    assert torch.allclose(parts / 5, criterion(LOGITS, LABELS).mean())


@given(
    st.lists(st.integers(1, 10_000), min_size=2, max_size=6),
    st.floats(-50, 50),
    st.sampled_from([name for name in LOSSES if name != "lade"]),
    st.integers(0, 2**31),
)
def test_a_shift_of_all_logits_changes_nothing(
    counts: list[int], shift: float, name: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, len(counts), generator=generator, dtype=torch.float64)
    labels = torch.randint(len(counts), (4,), generator=generator)
    criterion = LOSSES[name]().build(counts)
    shifted = criterion(logits + shift, labels)
    assert torch.allclose(shifted, criterion(logits, labels), rtol=1e-9, atol=1e-9)


@given(
    st.lists(st.integers(1, 10_000), min_size=2, max_size=6),
    st.floats(0, 3),
    st.integers(0, 2**31),
)
def test_the_logit_adjusted_gradient_sums_to_zero_over_the_classes(
    counts: list[int], tau: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, len(counts), generator=generator).requires_grad_()
    labels = torch.randint(len(counts), (4,), generator=generator)
    LogitAdjusted(tau=tau).build(counts)(logits, labels).sum().backward()
    assert logits.grad is not None
    assert torch.allclose(logits.grad.sum(1), torch.zeros(4), atol=1e-5)


def test_cross_entropy_is_torchs() -> None:
    assert torch.equal(CrossEntropy().build(COUNTS)(LOGITS, LABELS), entropy(LOGITS))


def test_logit_adjustment_with_equal_counts_is_cross_entropy() -> None:
    assert torch.allclose(LogitAdjusted().build([4, 4, 4])(LOGITS, LABELS), entropy(LOGITS))


def test_logit_adjustment_adds_tau_log_prior_to_the_logits() -> None:
    expected = entropy(LOGITS + 2 * PRIOR.log())
    assert torch.allclose(LogitAdjusted(tau=2).build(COUNTS)(LOGITS, LABELS), expected)


def test_equal_logits_cost_the_negative_log_prior_of_the_class() -> None:
    losses = LogitAdjusted().build([99, 1])(torch.zeros(2, 2), torch.tensor([0, 1]))
    assert losses.tolist() == pytest.approx([-math.log(0.99), -math.log(0.01)], rel=1e-5)


def test_balanced_softmax_is_logit_adjustment_with_tau_one() -> None:
    adjusted = LogitAdjusted(tau=1).build(COUNTS)(LOGITS, LABELS)
    assert torch.allclose(BalancedSoftmax().build(COUNTS)(LOGITS, LABELS), adjusted)


def test_balanced_softmax_weights_the_exponentials_by_the_counts() -> None:
    loss = BalancedSoftmax().build([3, 1])(torch.tensor([[0.0, math.log(2)]]), torch.tensor([1]))
    assert loss.item() == pytest.approx(-math.log(2 / (3 + 2)))


def test_focal_with_gamma_zero_is_cross_entropy() -> None:
    assert torch.allclose(Focal(gamma=0).build(COUNTS)(LOGITS, LABELS), entropy(LOGITS))


@pytest.mark.parametrize(("gamma", "factor"), [(1, 0.2), (2, 0.04)])
def test_focal_weights_an_example_by_a_power_of_one_minus_its_probability(
    gamma: float, factor: float
) -> None:
    logits = torch.tensor([[math.log(0.8), math.log(0.2)]])
    loss = Focal(gamma=gamma).build([1, 1])(logits, torch.tensor([0]))
    assert loss.item() == pytest.approx(-factor * math.log(0.8), rel=1e-5)


def test_focal_with_gamma_below_one_has_a_finite_gradient_at_probability_one() -> None:
    logits = torch.tensor([[200.0, 0.0]]).requires_grad_()
    Focal(gamma=0.5).build([1, 1])(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_ldam_margins_fall_with_the_fourth_root_of_the_count() -> None:
    margin = margin_of(Ldam(margin=0.5, scale=20), [625, 81, 16, 1])
    assert margin.tolist() == pytest.approx([10 / 5, 10 / 3, 10 / 2, 10])


def test_ldam_subtracts_the_scaled_margin_from_the_true_logit_only() -> None:
    loss = Ldam(margin=0.5, scale=20).build([16, 1])(torch.zeros(2, 2), torch.tensor([0, 1]))
    expected = [math.log(1 + math.exp(5)), math.log(1 + math.exp(10))]
    assert loss.tolist() == pytest.approx(expected, rel=1e-6)


def test_ldam_of_scaled_cosines_equals_the_papers_form() -> None:
    """The paper subtracts the margin from the cosine and then scales all of them."""
    cosines = torch.tanh(LOGITS)
    reduced = cosines.clone()
    margins = 0.3 * (torch.tensor(COUNTS) / 10) ** -0.25
    for row, label in enumerate(LABELS.tolist()):
        reduced[row, label] -= margins[label]
    losses = Ldam(margin=0.3, scale=30).build(COUNTS)(30 * cosines, LABELS)
    assert torch.allclose(losses, entropy(30 * reduced), rtol=1e-5)


def test_class_balanced_weights_follow_from_the_effective_numbers() -> None:
    """With beta 0.5, one photo counts as 1, two as 1.5 and three as 1.75."""
    expected = torch.tensor([1 / 1.75, 1 / 1.5, 1.0])
    weight = weight_of(ClassBalanced(beta=0.5), [3, 2, 1])
    photos = torch.tensor([3, 2, 1])
    assert torch.allclose(weight, expected * 6 / (photos * expected).sum())


def test_class_balanced_with_beta_near_one_is_reweighting() -> None:
    weight = weight_of(ClassBalanced(beta=1 - 1e-10), COUNTS)
    assert torch.allclose(weight, weight_of(Reweighted(), COUNTS))


@pytest.mark.parametrize("spec", [ClassBalanced(beta=0), Reweighted(rho=0)])
def test_weights_can_be_switched_off(spec: LossSpec) -> None:
    assert torch.equal(weight_of(spec, COUNTS), torch.ones(3))


@pytest.mark.parametrize(("rho", "ratio"), [(1, 7), (0.5, math.sqrt(7)), (2, 49)])
def test_reweighting_follows_a_power_of_the_count(rho: float, ratio: float) -> None:
    weight = weight_of(Reweighted(rho=rho), COUNTS)
    assert (weight[2] / weight[0]).item() == pytest.approx(ratio)


@given(st.lists(st.integers(1, 1_000_000), min_size=2, max_size=50))
def test_weights_have_a_mean_of_one_over_the_photos_and_favour_the_rare(counts: list[int]) -> None:
    for spec in (ClassBalanced(), Reweighted()):
        weight = weight_of(spec, counts)
        prior = torch.tensor(counts) / sum(counts)
        assert (prior * weight).sum().item() == pytest.approx(1, rel=1e-4)
        assert weight[counts.index(min(counts))] == weight.max()


def test_weighted_losses_do_not_depend_on_the_rest_of_the_batch() -> None:
    criterion = Reweighted().build(COUNTS)
    weight = torch.tensor([1 / 7, 1 / 2, 1.0])
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    expected = (weight / (prior * weight).sum())[LABELS] * entropy(LOGITS)
    assert torch.allclose(criterion(LOGITS, LABELS), expected)
    assert torch.allclose(criterion(LOGITS[2:3], LABELS[2:3]), expected[2:3])


def test_lade_without_its_regulariser_is_logit_adjustment() -> None:
    adjusted = LogitAdjusted().build(COUNTS)(LOGITS, LABELS)
    assert torch.allclose(Lade(weight=0).build(COUNTS)(LOGITS, LABELS), adjusted)


def test_lades_regulariser_of_two_photos_by_hand() -> None:
    """The priors 3/4 and 1/4 give the two photos the weights 2/3 and 2."""
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    log_z = [math.log((2 / 3 * math.e + 2) / 2), math.log((2 / 3 + 2 * math.e**2) / 2)]
    expected = sum(
        prior * (0.3 * log_mean**2 + log_mean - own)
        for prior, log_mean, own in zip((0.75, 0.25), log_z, (1.0, 2.0), strict=True)
    )
    criterion = Lade(penalty=0.3).build([3, 1])
    assert isinstance(criterion, LadeCriterion)
    actual = criterion.regulariser(logits, torch.tensor([0, 1]))
    assert actual.item() == pytest.approx(expected, rel=1e-5)


def test_lades_mean_is_cross_entropy_plus_the_weighted_regulariser() -> None:
    criterion = Lade(weight=0.5).build(COUNTS)
    assert isinstance(criterion, LadeCriterion)
    expected = entropy(LOGITS + PRIOR.log()).mean() + 0.5 * criterion.regulariser(LOGITS, LABELS)
    assert torch.allclose(criterion(LOGITS, LABELS).mean(), expected)


def test_lades_estimate_for_equal_counts_has_no_importance_weights() -> None:
    criterion = Lade(penalty=0).build([2, 2, 2])
    assert isinstance(criterion, LadeCriterion)
    labels = torch.tensor([0, 1, 2])
    log_z = LOGITS[:3].exp().mean(0).log()
    assert torch.allclose(
        criterion.regulariser(LOGITS[:3], labels), (log_z - LOGITS[:3].diagonal()).mean()
    )


def test_lade_is_finite_for_a_batch_that_lacks_a_class() -> None:
    losses = Lade().build(COUNTS)(LOGITS[:2], torch.tensor([0, 0]))
    assert losses.isfinite().all()


@pytest.mark.parametrize("spec", [LogitAdjusted(), BalancedSoftmax(), Lade(weight=0)])
def test_prior_adjusting_losses_are_smallest_at_the_log_likelihoods(spec: LossSpec) -> None:
    """All photos look the same; they belong to each class with prior * likelihood.

    The loss is not smallest at the logarithm of the posterior.
    """
    best = torch.tensor([0.2, 0.3, 0.5]).log()
    joint = PRIOR * best.exp()
    share = joint / joint.sum()
    criterion = spec.build(COUNTS)

    def expected(logits: Tensor) -> Tensor:
        losses: Tensor = criterion(logits.expand(3, 3), torch.arange(3))
        return (share * losses).sum()

    assert has_minimum_at(expected, best)
    assert not has_minimum_at(expected, share.log())


def has_minimum_at(function: Callable[[Tensor], Tensor], point: Tensor) -> bool:
    """Return whether the gradient is zero at `point`; the losses are convex."""
    variable = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(variable), variable)
    return bool(gradient.norm() < 1e-5)


def test_cues_add_the_binary_loss_of_the_class_and_its_look_alikes() -> None:
    """Computed photo by photo and class by class, with math alone."""
    labels = torch.tensor([[0, 2], [2, 1], [1, 0]])
    spec = LogitAdjusted(tau=0.5, cues=Cues(weight=0.3))
    expected = []
    for scores, (own, other) in zip(LOGITS.tolist(), labels.tolist(), strict=False):
        moved = [score + 0.5 * math.log(share) for score, share in zip(scores, PRIOR, strict=True)]
        entropy_of_own = math.log(sum(map(math.exp, moved))) - moved[own]
        binary = [
            math.log1p(math.exp(-score if label in (own, other) else score))
            for label, score in enumerate(moved)
        ]
        expected.append(entropy_of_own + 0.3 * sum(binary) / 3)
    losses = spec.build(COUNTS)(LOGITS[:3], labels)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_without_look_alikes_a_cued_loss_is_the_plain_one_to_the_bit() -> None:
    cued, plain = (LogitAdjusted(cues=cues).build(COUNTS) for cues in (Cues(), None))
    assert torch.equal(cued(LOGITS, LABELS), plain(LOGITS, LABELS))


def test_look_alikes_are_the_first_wrong_classes() -> None:
    logits = torch.tensor([[5.0, 1.0, 4.0, 3.0], [5.0, 1.0, 4.0, 3.0]])
    labels = torch.tensor([0, 3])
    assert Cues(count=2).look_alikes(logits, labels).tolist() == [[2, 3], [0, 2]]
    every = Cues(count=9).look_alikes(logits, labels)
    assert every.tolist() == [[2, 3, 1], [0, 2, 1]], "never the class itself"


def test_a_tau_that_is_chosen_later_trains_as_tau_1() -> None:
    plain, auto = LogitAdjusted(), LogitAdjusted(tau="auto", aim="few", give=3)
    chosen = auto.model_copy(update={"chosen": 1.75})
    assert torch.equal(plain.build(COUNTS)(LOGITS, LABELS), chosen.build(COUNTS)(LOGITS, LABELS))
    assert torch.equal(chosen.implied_prior(COUNTS), plain.implied_prior(COUNTS))
    assert (plain.tail, auto.tail, chosen.tail) == (0, 0, 0.75)
    assert (plain.undecided, auto.undecided, chosen.undecided) == (False, True, False)
