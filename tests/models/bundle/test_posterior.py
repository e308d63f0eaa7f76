"""Tests of the way from logits to confidence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from taillift.models.bundle.posterior import (
    Prior,
    group_confidence,
    group_prior,
    group_shares,
    leaning,
    log_prior,
    log_shares,
    posterior,
    prior_of,
    shares_text,
)
from taillift.models.bundle.schema import Group
from taillift.models.errors import UserError
from tests.support.palette import CLASSES, palette_manifest

COUNTS = st.lists(st.integers(1, 10_000), min_size=2, max_size=9)
LOGITS = arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32))


@given(COUNTS, st.sampled_from(Prior))
def test_a_prior_sums_to_one(counts: list[int], prior: Prior) -> None:
    assert np.exp(log_prior(prior, counts)).sum() == pytest.approx(1)


@given(COUNTS)
def test_the_train_prior_is_the_share_of_the_training_images(counts: list[int]) -> None:
    shares = np.exp(log_prior(Prior.TRAIN, counts))
    np.testing.assert_allclose(shares, np.array(counts) / sum(counts))


@given(COUNTS, st.sampled_from(Prior), st.floats(0.01, 1))
def test_a_tail_divides_the_prior_by_shares_of_the_training_images(
    counts: list[int], prior: Prior, tail: float
) -> None:
    plain = log_prior(prior, counts)
    weights = np.exp(plain) * (np.array(counts) / sum(counts)) ** -tail
    np.testing.assert_allclose(np.exp(leaning(plain, tail, counts)), weights / weights.sum())


@given(COUNTS)
def test_a_whole_tail_undoes_the_train_prior(counts: list[int]) -> None:
    leant = leaning(log_prior(Prior.TRAIN, counts), 1, counts)
    np.testing.assert_allclose(leant, log_prior(Prior.UNIFORM, counts), atol=1e-12)


@given(LOGITS, st.floats(0.01, 1))
def test_a_tail_answers_as_if_trained_with_a_larger_tau(logits: np.ndarray, tail: float) -> None:
    counts = [300, 50, 20, 5]
    expected = logits.astype(np.float64) - tail * np.log(np.array(counts) / sum(counts))
    shares = posterior(logits, leaning(log_prior(Prior.UNIFORM, counts), tail, counts))
    np.testing.assert_array_equal(
        np.isclose(shares, shares.max(1, keepdims=True)),
        np.isclose(expected, expected.max(1, keepdims=True), rtol=0, atol=1e-8),
    )


def test_no_tail_is_the_same_prior_and_an_impossible_class_stays_so() -> None:
    plain = log_shares([0, 3, 1])
    assert leaning(plain, 0, [5, 50, 500]) is plain
    assert leaning(plain, 0.5, [5, 50, 500])[0] == -np.inf


@pytest.mark.parametrize("tail", [-0.1, 1.01, np.nan, np.inf])
def test_a_tail_out_of_range_is_refused(tail: float) -> None:
    with pytest.raises(UserError, match="is not from 0 to 1"):
        leaning(log_shares([1, 2]), tail, [1, 2])


@given(LOGITS, st.floats(0.05, 20))
def test_confidence_sums_to_one(logits: np.ndarray, temperature: float) -> None:
    shares = posterior(logits, log_prior(Prior.TRAIN, [300, 50, 20, 5]), temperature)
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(1), 1)


@given(LOGITS)
def test_equal_logits_leave_the_prior(logits: np.ndarray) -> None:
    same = np.broadcast_to(logits[:, :1], logits.shape)
    counts = [300, 50, 20, 5]
    shares = posterior(same, log_prior(Prior.TRAIN, counts))
    np.testing.assert_allclose(shares[0], np.array(counts) / sum(counts), rtol=1e-9)


@given(LOGITS)
def test_the_prior_only_multiplies_the_odds(logits: np.ndarray) -> None:
    counts, tenth = [300, 50, 20, 5], (logits / 10).astype(np.float32)
    uniform = posterior(tenth, log_prior(Prior.UNIFORM, counts))
    train = posterior(tenth, log_prior(Prior.TRAIN, counts))
    odds = (train[:, 0] / train[:, 3]) / (uniform[:, 0] / uniform[:, 3])
    np.testing.assert_allclose(odds, 60, rtol=1e-6)


@given(LOGITS, st.floats(0.1, 10))
def test_temperature_keeps_the_order_under_the_uniform_prior(
    logits: np.ndarray, temperature: float
) -> None:
    prior = log_prior(Prior.UNIFORM, [1] * 4)
    best = np.argmax(logits, axis=1)
    shares = posterior(logits, prior, temperature)
    np.testing.assert_allclose(shares[range(3), best], shares.max(1))


def test_a_groups_confidence_is_the_sum_of_its_classes() -> None:
    shares = np.arange(1, 8) / 28
    groups = group_confidence(shares, palette_manifest("v", {}))
    assert len(CLASSES) == 7
    assert groups == pytest.approx({"many": 6 / 28, "medium": 9 / 28, "few": 13 / 28})


@given(LOGITS, st.lists(st.floats(0.05, 20), min_size=3, max_size=3))
def test_every_image_may_have_its_own_temperature(
    logits: np.ndarray, temperatures: list[float]
) -> None:
    prior = log_prior(Prior.TRAIN, [300, 50, 20, 5])
    together = posterior(logits, prior, np.array(temperatures))
    for row, temperature in enumerate(temperatures):
        alone = posterior(logits[row : row + 1], prior, temperature)
        np.testing.assert_allclose(together[row], alone[0])


LIKELIHOOD = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])  # [class, kind of image]
TARGETS = st.lists(st.floats(0.01, 1), min_size=3, max_size=3)


@given(TARGETS, TARGETS)
def test_a_prior_in_the_logits_gives_way_to_another_exactly(
    implied: list[float], target: list[float]
) -> None:
    """By Bayes' rule the result does not depend on the prior that the logits carried."""
    joint = LIKELIHOOD.T * shares_of(implied)
    logits = np.log(joint / joint.sum(1, keepdims=True))
    shares = posterior(logits - log_shares(implied), log_shares(target))
    expected = LIKELIHOOD.T * shares_of(target)
    np.testing.assert_allclose(shares, expected / expected.sum(1, keepdims=True))


def shares_of(weights: list[float]) -> np.ndarray:
    return np.array(weights) / sum(weights)


def test_an_impossible_class_has_no_confidence_however_sure_the_model_is() -> None:
    logits = np.array([[1000.0, 0.0, 1.0], [0.0, 0.0, 0.0]], np.float32)
    shares = posterior(logits, log_shares([0, 1, 3]))
    assert shares[:, 0].tolist() == [0, 0]
    np.testing.assert_allclose(shares.sum(1), 1)
    assert shares[1].tolist() == pytest.approx([0, 0.25, 0.75])


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e307])
def test_shares_do_not_depend_on_the_weights_total(scale: float) -> None:
    np.testing.assert_allclose(np.exp(log_shares([3 * scale, scale])), [0.75, 0.25])


GROUPS_OF_CLASSES: list[Group] = [info.group for info in palette_manifest("v", {}).classes]


def test_a_groups_share_is_divided_among_its_classes() -> None:
    prior = np.exp(group_prior({"many": 3, "medium": 4, "few": 0}, GROUPS_OF_CLASSES))
    np.testing.assert_allclose(prior, [1 / 7, 1 / 7, 1 / 7, 2 / 7, 2 / 7, 0, 0])


def test_the_smallest_weight_of_a_group_is_a_weight() -> None:
    prior = np.exp(group_prior({"many": 5e-324, "medium": 0, "few": 0}, GROUPS_OF_CLASSES))
    np.testing.assert_allclose(prior, [1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0])


@given(st.tuples(*[st.integers(1, 999_999)] * 3))
def test_shares_of_groups_are_the_same_after_they_were_written(millionths: tuple[int, ...]) -> None:
    pairs = zip(("many", "medium", "few"), millionths, strict=True)
    shares = {group: value / 1e6 for group, value in pairs}
    assert group_shares(shares_text(shares), GROUPS_OF_CLASSES) == shares  # type: ignore[arg-type]


def test_a_prior_is_a_name_or_weights_of_groups() -> None:
    manifest = palette_manifest("v", {})
    np.testing.assert_array_equal(
        prior_of("train", manifest), log_prior(Prior.TRAIN, manifest.counts)
    )
    weights = " few:2, many:3,medium:2"
    np.testing.assert_allclose(
        prior_of(weights, manifest), log_prior(Prior.UNIFORM, manifest.counts)
    )
    with pytest.raises(UserError, match="choose one of uniform, train, or give weights"):
        prior_of("winter", manifest)
    with pytest.raises(UserError, match=r"such as many:0\.5,few:0\.5$"):
        group_shares("many:1", ["many", "few", "few"])
