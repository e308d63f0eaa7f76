"""Tests that sets hold the right label as often as is asked for."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.prediction_sets import Coverage, Interpolation
from taillift.models.bundle.schema import GROUPS, Group

PULLS = st.builds(Interpolation, pull=st.floats(0, 1000))


@st.composite
def held_out(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[Group]]:
    """Draw scores, labels and groups; classes and groups may have no photos."""
    groups = draw(st.lists(st.sampled_from(GROUPS), min_size=2, max_size=6))
    photos = draw(
        st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, len(groups) - 1)), max_size=40)
    )
    scores = np.array([score for score, _ in photos], np.float32)
    return scores, np.array([label for _, label in photos], np.int64), groups


def shares(classes: int, images: int = 20) -> np.ndarray:
    raw = np.random.default_rng(classes).gamma(0.3, size=(images, classes)) + 1e-9
    rows: np.ndarray = raw / raw.sum(axis=1, keepdims=True)
    return rows


def simulated(counts: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and labels of photos; some classes are recognised better than others."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    logits = random.normal(size=(len(labels), len(counts)))
    logits[np.arange(len(labels)), labels] += np.linspace(1.0, 3.0, len(counts))[labels]
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), labels


def of_labels(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    picked: np.ndarray = values[np.arange(len(labels)), labels]
    return picked


@given(held_out(), PULLS, st.floats(0.5, 0.99), st.floats(0.5, 0.99))
def test_a_set_grows_with_coverage(
    held: tuple[np.ndarray, np.ndarray, list[Group]],
    pulls: Interpolation,
    first: float,
    second: float,
) -> None:
    coverage, images = Coverage(*held, pulls), shares(len(held[2]))
    small, large = (coverage.sets(images, target) for target in sorted([first, second]))
    assert not (small & ~large).any()


@given(held_out(), PULLS, st.floats(0.5, 0.99))
def test_the_answer_is_always_in_its_set(
    held: tuple[np.ndarray, np.ndarray, list[Group]], pulls: Interpolation, target: float
) -> None:
    images = shares(len(held[2]))
    sets = Coverage(*held, pulls).sets(images, target)
    assert of_labels(sets, images.argmax(axis=1)).all()


@given(held_out(), PULLS, st.floats(0.5, 0.99))
def test_every_threshold_is_a_score_or_between_scores(
    held: tuple[np.ndarray, np.ndarray, list[Group]], pulls: Interpolation, target: float
) -> None:
    thresholds = Coverage(*held, pulls).thresholds(target)
    if len(held[0]):
        slack = 1e-6
        assert thresholds.min() >= held[0].min() - slack
        assert thresholds.max() <= held[0].max() + slack


@pytest.mark.parametrize("target", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("pull", [30, 1000])
def test_macro_and_group_coverage_are_what_was_asked_for(target: float, pull: float) -> None:
    """Check ten draws of long-tailed held-out photos, each on new balanced ones."""
    counts = [300] * 4 + [60] * 8 + [6] * 12
    sizes = zip(GROUPS, (4, 8, 12), strict=True)
    groups: list[Group] = [group for group, size in sizes for _ in range(size)]
    covered = []
    for seed in range(10):
        probabilities, labels = simulated(counts, seed)
        scores = of_labels(probabilities, labels).astype(np.float32)
        coverage = Coverage(scores, labels, groups, Interpolation(pull=pull))
        images, classes = simulated([100] * len(counts), 1000 + seed)
        held = of_labels(coverage.sets(images, target), classes)
        covered.append([held[:400].mean(), held[400:1200].mean(), held[1200:].mean(), held.mean()])
    many, medium, few, macro = np.mean(covered, axis=0)
    # Three standard errors of a mean over ten draws of the 72 photos of the few-shot classes.
    error = 3 * np.sqrt(target * (1 - target) / (10 * 72))
    assert many == pytest.approx(target, abs=error)
    assert medium == pytest.approx(target, abs=error)
    assert few == pytest.approx(target, abs=error)
    assert macro == pytest.approx(target, abs=error)


def test_without_pull_a_class_with_enough_photos_has_its_own_threshold() -> None:
    scores = np.concatenate([np.linspace(0.1, 1, 10), np.linspace(0.01, 0.1, 10)])
    labels = np.repeat([0, 1], 10)
    coverage = Coverage(scores.astype(np.float32), labels, ["many", "many"], Interpolation(pull=0))
    # Split conformal: the ceil(0.8 * 11) = 9th largest of ten scores.
    np.testing.assert_allclose(coverage.thresholds(0.8), [0.2, 0.02], rtol=1e-6)


def test_every_class_weighs_the_same_in_its_group() -> None:
    scores = np.concatenate([np.full(900, 0.9), np.full(100, 0.1)]).astype(np.float32)
    labels = np.repeat([0, 1], [900, 100])
    coverage = Coverage(scores, labels, ["many", "many"], Interpolation(pull=1e9))
    np.testing.assert_allclose(coverage.thresholds(0.8), 0.1, rtol=1e-4)


def test_classes_without_photos_take_their_groups_threshold() -> None:
    scores = np.linspace(0.01, 1, 100).astype(np.float32)
    labels = np.repeat([0, 2], 50)
    groups: list[Group] = ["many", "many", "few", "few", "medium"]
    pulls = Interpolation(pull=1e9)
    many, many_too, few, few_too, medium = Coverage(scores, labels, groups, pulls).thresholds(0.9)
    assert many_too == pytest.approx(many, abs=1e-6)
    assert few_too == pytest.approx(few, abs=1e-6)
    assert many < medium < few


def test_a_group_that_cannot_support_a_coverage_rests_on_all_classes() -> None:
    scores = np.concatenate([np.linspace(0.01, 1, 100), [0.6, 0.7, 0.8, 0.9]]).astype(np.float32)
    labels = np.repeat([0, 1], [100, 4])
    coverage = Coverage(scores, labels, ["many", "few"], Interpolation(pull=0))
    assert coverage.reach["few"] == pytest.approx(0.8)
    assert coverage.thresholds(0.8)[1] == pytest.approx(0.6)
    assert coverage.thresholds(0.9)[1] < 0.6


def test_without_photos_a_set_is_the_answer_alone() -> None:
    nothing = np.zeros(0, np.float32), np.zeros(0, np.int64)
    coverage = Coverage(*nothing, ["many", "few"], Interpolation(pull=50))
    assert coverage.sets(np.array([[0.3, 0.7], [1.0, 0.0]]), 0.99).tolist() == [
        [False, True],
        [True, False],
    ]


def test_of_identical_photos_each_has_the_same_set() -> None:
    scores = np.full(30, 0.25, np.float32)
    labels = np.repeat([0, 1, 2], 10)
    few: list[Group] = ["few"] * 3
    coverage = Coverage(scores, labels, few, Interpolation(pull=10))
    np.testing.assert_allclose(coverage.thresholds(0.9), 0.25)
    assert coverage.sets(np.array([[0.25, 0.25, 0.5]]), 0.9).all()


@pytest.mark.parametrize("target", [0.0, 0.499, 0.991, 1.0, float("nan")])
def test_a_coverage_out_of_range_is_refused(target: float) -> None:
    coverage = Coverage(
        np.ones(1, np.float32), np.zeros(1, np.int64), ["few", "few"], Interpolation(pull=0)
    )
    with pytest.raises(ValueError, match=r"0\.5 to 0\.99"):
        coverage.thresholds(target)
