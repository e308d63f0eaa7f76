"""The thresholds of sets are chosen on held-out photos; notes say what these cannot support."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.prediction_sets import Coverage
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.prediction_sets import TARGETS, fit_coverage, measure_coverage

COUNTS = [40] * 8 + [5] * 8
MANY: Group = "many"
FEW: Group = "few"
TAIL = [MANY] * 8 + [FEW] * 8


def photos(counts: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and labels; rare classes are recognised less well."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    logits = random.normal(size=(len(labels), len(counts)))
    logits[np.arange(len(labels)), labels] += np.linspace(3, 1.5, len(counts))[labels]
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), labels


def notes(probabilities: np.ndarray, labels: np.ndarray, groups: list[Group]) -> str:
    fitted, _ = fit_coverage(
        {Ensemble.OFF: probabilities, Ensemble.FULL: probabilities}, labels, groups
    )
    return "; ".join(fitted.notes)


def test_sets_of_new_photos_cover_as_estimated() -> None:
    errors = []
    for seed in range(5):
        probabilities, labels = photos(COUNTS, seed)
        fitted, scores = fit_coverage({Ensemble.FULL: probabilities}, labels, TAIL)
        coverage = Coverage(
            scores.ensembles[Ensemble.FULL], scores.labels, TAIL, fitted.interpolation
        )
        images, classes = photos([100] * 16, 100 + seed)
        for target, estimate in zip(TARGETS, fitted.estimates[Ensemble.FULL], strict=True):
            measured = measure_coverage(coverage.sets(images, target), classes, TAIL, target)
            assert estimate.macro is not None
            assert measured.macro is not None
            errors.append([measured.macro - 100 * target, measured.macro - estimate.macro])
    # There are 40 photos of few-shot classes in each of five draws: a standard error of 2 points.
    np.testing.assert_allclose(np.mean(errors, axis=0), 0, atol=4)


def test_each_ensemble_keeps_its_own_scores() -> None:
    probabilities, labels = photos(COUNTS, 0)
    sharper = probabilities**2 / (probabilities**2).sum(axis=1, keepdims=True)
    fitted, scores = fit_coverage(
        {Ensemble.OFF: probabilities, Ensemble.FULL: sharper}, labels, TAIL
    )
    rows = np.arange(len(labels))
    np.testing.assert_array_equal(
        scores.ensembles[Ensemble.OFF], probabilities[rows, labels].astype("f4")
    )
    np.testing.assert_array_equal(
        scores.ensembles[Ensemble.FULL], sharper[rows, labels].astype("f4")
    )
    assert list(fitted.estimates) == ["off", "full"]
    assert fitted.notes == (
        "few: held-out photos support a coverage of at most 98 %: above it, the thresholds of "
        "all classes are used",
    )


def test_coverage_and_size_are_counted_by_photo_class_and_group() -> None:
    labels = np.array([0, 0, 0, 1])
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 1, 0]], np.bool_)
    scores = measure_coverage(sets, labels, ["many", "few", "medium"], 0.9)
    assert scores.target == pytest.approx(90)
    assert scores.marginal == pytest.approx(75)
    assert scores.macro == pytest.approx((100 * 2 / 3 + 100) / 2)
    assert scores.gap == pytest.approx((90 - 100 * 2 / 3) / 2)
    assert scores.size == pytest.approx((5 / 3 + 1) / 2)
    assert scores.groups["many"].coverage == pytest.approx(100 * 2 / 3)
    assert scores.groups["many"].size == pytest.approx(5 / 3)
    assert scores.groups["few"].coverage == pytest.approx(100)
    assert (scores.groups["medium"].photos, scores.groups["medium"].coverage) == (0, None)


def test_a_missing_class_is_noted() -> None:
    probabilities, labels = photos([20, 20, 0, 0], 0)
    text = notes(probabilities, labels, ["many", "many", "many", "few"])
    assert "2 of 4 classes have no held-out photo" in text
    assert "few: held-out photos support a coverage of at most 0 %" in text


def test_with_one_photo_a_class_the_maximal_coverage_depends_on_their_number() -> None:
    probabilities, labels = photos([1] * 9, 0)
    assert "few: held-out photos support a coverage of at most 90 %" in notes(
        probabilities, labels, [FEW] * 9
    )


def test_the_absence_of_photos_is_noted() -> None:
    fitted, scores = fit_coverage(
        {Ensemble.FULL: np.zeros((0, 2))}, np.zeros(0, np.int64), ["many", "few"]
    )
    assert fitted.photos == len(scores.labels) == 0
    assert "a set is the answer alone" in fitted.notes[0]
    assert fitted.estimates[Ensemble.FULL][0].macro is None


@settings(max_examples=20)
@given(st.integers(0, 8), st.integers(2, 5), st.integers(0, 999))
def test_any_data_give_sets(count: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, 0.2), count).reshape(count, classes)
    groups = [GROUPS[index] for index in random.integers(0, 3, classes)]
    labels = random.integers(0, classes, count)
    fitted, scores = fit_coverage({Ensemble.FULL: probabilities}, labels, groups)
    assert fitted.notes
    assert fitted.model_validate_json(fitted.model_dump_json()) == fitted
    assert len(scores.ensembles[Ensemble.FULL]) == len(scores.labels) == fitted.photos
