"""Tests of the choice of a precision."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.device import Provider
from taillift.models.bundle.manifest import Scores
from taillift.models.bundle.schema import Precision
from taillift.service.inference.graph_choice import choose

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
TWICE = {FP32: 0.2, FP16: 0.1, INT8: 0.1}


def scored(mean_class: float = 60.0, few: float | None = 50.0) -> Scores:
    return Scores(
        overall=62.0,
        mean_class=mean_class,
        many=70.0,
        medium=60.0,
        few=few,
        worst_class=20.0,
        harmonic_mean=55.0,
    )


def test_a_faster_variant_as_accurate_is_taken_and_says_how_much_faster() -> None:
    choice = choose({FP32: scored(), INT8: scored(59.9)}, TWICE, Provider.CPU, rare=True)
    assert choice.precision is INT8
    assert choice.reason == (
        "int8: 2.0 times as fast as fp32 here, mean-class accuracy 0.1 points below fp32's, "
        "few-shot accuracy equal to fp32's"
    )


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        (scored(few=49.1), "fp32: int8 loses 0.9 points of few-shot accuracy"),
        (scored(59.6, 49.65), "fp32: int8 loses 0.4 points of mean-class accuracy"),
        (None, "fp32: int8 was not measured against it on held-out photos"),
    ],
)
def test_what_loses_accuracy_or_was_not_measured_is_left(
    variant: Scores | None, reason: str
) -> None:
    choice = choose({FP32: scored(), INT8: variant}, TWICE, Provider.CPU, rare=True)
    assert (choice.precision, choice.reason) == (FP32, reason)


def test_a_loss_of_exactly_the_tolerance_is_allowed() -> None:
    choice = choose(
        {FP32: scored(60.0, 50.0), INT8: scored(59.7, 49.7)}, TWICE, Provider.CPU, rare=True
    )
    assert choice.precision is INT8


def test_what_is_not_faster_here_is_left() -> None:
    choice = choose(
        {FP32: scored(), INT8: scored()}, {FP32: 0.1, INT8: 0.1}, Provider.CPU, rare=True
    )
    assert (choice.precision, choice.reason) == (FP32, "fp32: int8 is not faster here")


def test_each_provider_has_its_own_variants() -> None:
    everything = {FP32: scored(), FP16: scored(), INT8: scored()}
    chosen = {
        provider: choose(everything, TWICE, provider, rare=True).precision for provider in Provider
    }
    assert chosen[Provider.CPU] is INT8
    assert chosen[Provider.CUDA] is FP16
    assert chosen[Provider.OPENVINO] is FP32
    assert choose({FP32: scored()}, TWICE, Provider.CPU, rare=True).reason == (
        "fp32: there is nothing else to run on cpu"
    )


def test_without_rare_classes_only_the_mean_counts() -> None:
    unmeasured = {FP32: scored(few=None), INT8: scored(few=None)}
    without = choose(unmeasured, TWICE, Provider.CPU, rare=False)
    assert without.reason.endswith("here, mean-class accuracy equal to fp32's")
    choice = choose(unmeasured, TWICE, Provider.CPU, rare=True)
    assert choice.reason == "fp32: int8 was not measured on photos of few-shot classes"


@given(
    st.floats(0, 100), st.floats(0, 100), st.floats(0, 100), st.floats(0, 100), st.floats(0.01, 1)
)
def test_the_choice_is_never_slower_nor_more_than_the_tolerance_worse(
    mean: float, few: float, other_mean: float, other_few: float, seconds: float
) -> None:
    scores = {FP32: scored(mean, few), INT8: scored(other_mean, other_few)}
    times = {FP32: 0.1, INT8: seconds}
    choice = choose(scores, times, Provider.CPU, rare=True)
    taken = scores[choice.precision]
    assert taken.mean_class >= mean - 0.3001
    assert taken.few is not None
    assert taken.few >= few - 0.3001
    assert times[choice.precision] <= times[FP32]
    assert choice.reason.startswith(f"{choice.precision}: ")
    assert "\n" not in choice.reason
