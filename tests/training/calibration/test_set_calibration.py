"""Which thresholds sets use is chosen on held-out photos, and what they cannot say is said."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taillift.models.bundle.prediction_sets import Coverage
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.prediction_sets import TARGETS, fit_coverage, measure_coverage

COUNTS = [40] * 8 + [5] * 8
TAIL: list[Group] = ["many"] * 8 + ["few"] * 8


def photos(counts: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels; rare classes are told apart less well."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    logits = random.normal(size=(len(labels), len(counts)))
    logits[np.arange(len(labels)), labels] += np.linspace(3, 1.5, len(counts))[labels]
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), labels


def notes(probabilities: np.ndarray, labels: np.ndarray, groups: list[Group]) -> str:
    record, _ = fit_coverage({"off": probabilities, "full": probabilities}, labels, groups)
    return "; ".join(record.notes)


def test_sets_of_new_photos_cover_as_estimated() -> None:
    errors = []
    for seed in range(5):
        probabilities, labels = photos(COUNTS, seed)
        record, scores = fit_coverage({"full": probabilities}, labels, TAIL)
        coverage = Coverage(scores.ensembles["full"], scores.labels, TAIL, record.interpolation)
        images, classes = photos([100] * 16, 100 + seed)
        for target, estimate in zip(TARGETS, record.estimates["full"], strict=True):
            found = measure_coverage(coverage.sets(images, target), classes, TAIL, target)
            assert estimate.macro is not None
            assert found.macro is not None
            errors.append([found.macro - 100 * target, found.macro - estimate.macro])
    # 40 photos of the few-shot classes in each of five draws: 2 points of standard error.
    np.testing.assert_allclose(np.mean(errors, axis=0), 0, atol=4)


def test_each_way_to_answer_keeps_its_own_scores() -> None:
    probabilities, labels = photos(COUNTS, 0)
    sharper = probabilities**2 / (probabilities**2).sum(axis=1, keepdims=True)
    record, scores = fit_coverage({"off": probabilities, "full": sharper}, labels, TAIL)
    rows = np.arange(len(labels))
    np.testing.assert_array_equal(scores.ensembles["off"], probabilities[rows, labels].astype("f4"))
    np.testing.assert_array_equal(scores.ensembles["full"], sharper[rows, labels].astype("f4"))
    assert list(record.estimates) == ["off", "full"]
    assert record.notes == (
        "few: held-out photos support a coverage of 98 %: above it the thresholds of all classes",
    )


def test_coverage_and_size_are_counted_by_photo_class_and_group() -> None:
    labels = np.array([0, 0, 0, 1])
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 1, 0]], np.bool_)
    found = measure_coverage(sets, labels, ["many", "few", "medium"], 0.9)
    assert found.target == pytest.approx(90)
    assert found.marginal == pytest.approx(75)
    assert found.macro == pytest.approx((100 * 2 / 3 + 100) / 2)
    assert found.gap == pytest.approx((90 - 100 * 2 / 3) / 2)
    assert found.size == pytest.approx((5 / 3 + 1) / 2)
    assert found.groups["many"].coverage == pytest.approx(100 * 2 / 3)
    assert found.groups["many"].size == pytest.approx(5 / 3)
    assert found.groups["few"].coverage == pytest.approx(100)
    assert (found.groups["medium"].photos, found.groups["medium"].coverage) == (0, None)


def test_a_missing_class_is_said() -> None:
    probabilities, labels = photos([20, 20, 0, 0], 0)
    text = notes(probabilities, labels, ["many", "many", "many", "few"])
    assert "2 of 4 classes have no held-out photo" in text
    assert "few: held-out photos support a coverage of 0 %" in text


def test_one_photo_a_class_reaches_as_far_as_their_number() -> None:
    probabilities, labels = photos([1] * 9, 0)
    assert "few: held-out photos support a coverage of 90 %" in notes(
        probabilities, labels, ["few"] * 9
    )


def test_no_photo_at_all_is_said() -> None:
    record, scores = fit_coverage(
        {"full": np.zeros((0, 2))}, np.zeros(0, np.int64), ["many", "few"]
    )
    assert record.photos == len(scores.labels) == 0
    assert "a set is the answer alone" in record.notes[0]
    assert record.estimates["full"][0].macro is None


@settings(max_examples=20)
@given(st.integers(0, 8), st.integers(2, 5), st.integers(0, 999))
def test_any_data_give_a_record(count: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, 0.2), count).reshape(count, classes)
    groups = [GROUPS[place] for place in random.integers(0, 3, classes)]
    labels = random.integers(0, classes, count)
    record, scores = fit_coverage({"full": probabilities}, labels, groups)
    assert record.notes
    assert record.model_validate_json(record.model_dump_json()) == record
    assert len(scores.ensembles["full"]) == len(scores.labels) == record.photos
