"""Accuracies per class, per group and over all photos."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.schema import Group
from taillift.models.errors import UserError
from taillift.training.evaluation import (
    TAUS,
    TauPoint,
    best_point,
    check_choosable,
    class_accuracies,
    confusion,
    evaluate,
    scores,
    tau_curve,
)
from taillift.training.recipe.losses import LogitAdjusted

GROUPS: list[Group] = ["many", "many", "medium", "few"]


def test_scores_computed_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 3, 3])
    predicted = np.array([0, 0, 0, 1, 1, 0, 2, 3, 0])
    measured = scores(predicted, labels, GROUPS)
    assert measured.overall == pytest.approx(100 * 6 / 9)
    assert measured.many == pytest.approx(100 * (3 / 4 + 1 / 2) / 2)
    assert measured.medium == pytest.approx(100)
    assert measured.few == pytest.approx(50)
    assert measured.mean_class == pytest.approx(100 * (0.75 + 0.5 + 1 + 0.5) / 4)
    assert measured.worst_class == pytest.approx(50)
    assert measured.harmonic_mean == pytest.approx(100 * 4 / (4 / 3 + 2 + 1 + 2))
    assert measured.geometric_mean == pytest.approx(100 * (3 / 4 * 1 / 2 * 1 * 1 / 2) ** (1 / 4))
    # Class 0: 3 right, 1 missed, 2 of others taken for it. Classes 1 to 3 likewise.
    of_classes = (6 / (6 + 1 + 2), 2 / (2 + 1 + 1), 2 / 2, 2 / (2 + 1))
    assert measured.macro_f1 == pytest.approx(100 * sum(of_classes) / 4)


def test_a_class_without_test_photos_does_not_affect_the_others() -> None:
    labels = np.array([0, 2, 3])
    measured = scores(np.array([0, 2, 0]), labels, GROUPS)
    assert (measured.many, measured.medium, measured.few) == (100, 100, 0)
    assert measured.mean_class == pytest.approx(200 / 3)


def test_a_group_without_test_photos_has_no_score() -> None:
    assert scores(np.array([0]), np.array([0]), GROUPS).few is None


def test_a_class_that_is_never_recognised_lowers_the_harmonic_mean() -> None:
    measured = scores(np.array([0, 0]), np.array([0, 3]), GROUPS)
    assert measured.worst_class == 0
    assert measured.harmonic_mean == pytest.approx(100 * 2 / (1 + 1e5))
    assert measured.geometric_mean == 0
    assert measured.macro_f1 == pytest.approx(100 * (2 / 3 + 0) / 2)


def test_a_class_without_photos_lowers_only_the_f1_of_those_taken_for_it() -> None:
    labels, predicted = np.array([0, 0, 3]), np.array([0, 2, 3])
    measured = scores(predicted, labels, GROUPS)
    assert measured.macro_f1 == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert measured.geometric_mean == pytest.approx(100 * (1 / 2) ** (1 / 2))


@pytest.mark.parametrize("classes", [2, 1_000, 8_142])
def test_the_geometric_mean_of_many_classes_is_not_rounded_to_zero(classes: int) -> None:
    labels = np.repeat(np.arange(classes), 10)
    predicted = np.where(np.arange(len(labels)) % 10 == 0, labels, (labels + 1) % classes)
    measured = scores(predicted, labels, ["few"] * classes)
    assert measured.geometric_mean == pytest.approx(10)
    assert measured.macro_f1 == pytest.approx(10)


def test_perfect_predictions_have_full_scores() -> None:
    measured = scores(np.arange(4), np.arange(4), GROUPS)
    assert (measured.geometric_mean, measured.macro_f1) == (100, 100)


def test_one_view_and_five_views_have_separate_scores() -> None:
    """The centre view predicts class 0, the mean of all five class 1."""
    logits = np.zeros((1, 5, 4), np.float32)
    logits[0, 0, 0] = 1
    logits[0, 1:, 1] = 1
    evaluation = evaluate("test", logits, np.array([1]), GROUPS)
    assert (evaluation.single.overall, evaluation.full.overall, evaluation.images) == (0, 100, 1)
    first, second, *rest = class_accuracies(logits, np.array([1]), 4)
    assert second is not None
    assert (second.single, second.full) == (0, 100)
    assert [first, *rest] == [None, None, None]
    assert confusion(logits, np.array([1]), 4).tolist() == [[0] * 4, [0, 1, 0, 0], [0] * 4, [0] * 4]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_scores_are_percentages_and_ordered(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    measured = scores(predicted, labels, GROUPS)
    assert 0 <= measured.worst_class <= measured.mean_class <= 100
    assert measured.harmonic_mean <= max(measured.mean_class, 0.001) + 1e-9
    assert measured.geometric_mean is not None
    assert measured.macro_f1 is not None
    most = min(measured.mean_class, measured.harmonic_mean * 1e5)
    assert 0 <= measured.geometric_mean <= most + 1e-9
    assert measured.geometric_mean <= measured.mean_class + 1e-9
    assert 0 <= measured.macro_f1 <= 100


def test_a_larger_tau_gives_more_to_the_rare_class() -> None:
    # Half way between a class with 90 photos and one with 10: at tau = 1.5 the rare one gains
    # 0.5 * log(9) = 1.1 over the frequent one.
    logits = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 0.5], [0.0, -1.0]], np.float32)
    labels = np.array([0, 0, 1, 1])
    groups: list[Group] = ["many", "few"]
    curve = tau_curve(logits, labels, groups, [90, 10], [0.5, 1, 1.5, 2])
    assert [point.few for point in curve] == [0, 50, 100, 100]
    assert [point.many for point in curve] == [100, 100, 50, 0]
    assert [point.mean_class for point in curve] == [50, 75, 75, 50]


@given(seed=st.integers(0, 1000))
def test_tau_1_is_the_model_as_it_is(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, logits = random.integers(0, 4, 40), random.normal(size=(40, 4)).astype(np.float32)
    (point,) = (one for one in tau_curve(logits, labels, GROUPS, [9, 8, 4, 1]) if one.tau == 1)
    plain = scores(logits.argmax(1), labels, GROUPS)
    assert point.model_dump(exclude={"tau"}) == plain.model_dump(
        include=set(type(point).model_fields)
    )
    assert len(TAUS) == 9


@pytest.mark.parametrize(
    ("aim", "give", "tau"),
    [
        ("mean-class", None, 1.25),  # Of equal ones the nearest to 1.
        ("few", None, 1.25),  # 2 points of many, to the last digit.
        ("few", 1.9, 1),
        ("few", 8, 1.5),  # Of equal few-shot accuracies the better mean.
        ("few", 30, 2),
    ],
)
def test_tau_is_chosen_by_what_is_aimed_at(aim: str, give: float | None, tau: float) -> None:
    rows = [
        *((0.75, 70.0, 90.0, 50.0), (1, 71, 80, 60), (1.25, 72, 78, 66)),
        *((1.5, 72, 73, 70), (1.75, 70, 72, 70), (2, 60, 50, 75)),
    ]
    curve = [
        TauPoint(tau=at, mean_class=mean, many=many, medium=None, few=few)
        for at, mean, many, few in rows
    ]
    loss = LogitAdjusted.model_validate({"tau": "auto", "aim": aim, "give": give})
    assert best_point(curve, loss).tau == tau


def test_tau_is_not_chosen_without_the_photos_that_it_takes() -> None:
    few, mean = LogitAdjusted(tau="auto", aim="few"), LogitAdjusted(tau="auto")
    with pytest.raises(UserError, match="chosen on val/ and there is none: add val/, or give"):
        check_choosable(mean, None, GROUPS)
    check_choosable(mean, [2], GROUPS)
    check_choosable(few, [0, 3], GROUPS)
    for labels, group in (([0, 2], "few"), ([2, 3], "many")):
        with pytest.raises(UserError, match=f"no photos of {group}-shot classes: set aim to mean"):
            check_choosable(few, labels, GROUPS)
