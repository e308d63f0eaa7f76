"""Tests of the assignment of images to classes whose counts are known."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from taillift.models.bundle.assignment import assign


@st.composite
def tasks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw scores of up to 6 images and 4 classes, and counts that can be met."""
    images, kinds = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    number = st.one_of(st.floats(-20, 0, width=32), st.integers(-3, 0).map(float))
    scores = [[draw(number) for _ in range(kinds)] for _ in range(images)]
    truth = np.array([draw(st.integers(0, kinds - 1)) for _ in range(images)])
    counts = np.bincount(truth, minlength=kinds)
    least = np.array([draw(st.integers(0, int(count))) for count in counts])
    most = np.array([draw(st.integers(int(count), int(count) + 3)) for count in counts])
    return np.array(scores), least, most


def every_assignment(
    scores: np.ndarray, least: np.ndarray, most: np.ndarray
) -> list[tuple[float, tuple[int, ...]]]:
    """List each assignment that meets the counts, with its sum of scores."""
    images, kinds = scores.shape
    found = []
    for classes in product(range(kinds), repeat=images):
        counts = np.bincount(classes, minlength=kinds)
        if (counts >= least).all() and (counts <= most).all():
            found.append((float(scores[range(images), list(classes)].sum()), classes))
    return found


@given(tasks())
def test_it_is_the_best_of_all_and_its_margins_are_those_of_the_next_best(
    task: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    scores, least, most = task
    found = assign(scores, least, most)
    images = range(len(scores))
    total = scores[images, found.classes].sum()
    every = every_assignment(scores, least, most)
    assert tuple(found.classes) in {classes for _, classes in every}
    assert total == pytest.approx(max(every)[0], abs=1e-6)
    for image in images:
        others = [
            (sum_, classes) for sum_, classes in every if classes[image] != found.classes[image]
        ]
        if not others:
            assert np.isinf(found.margins[image])
            assert found.instead[image] == found.classes[image]
            continue
        best = max(others)[0]
        assert found.margins[image] == pytest.approx(total - best, abs=1e-6)
        assert best == pytest.approx(
            max(sum_ for sum_, classes in others if classes[image] == found.instead[image]),
            abs=1e-6,
        )


@pytest.mark.parametrize(("images", "kinds"), [(40, 7), (300, 20), (120, 60)])
def test_it_agrees_with_scipy_on_many_images(images: int, kinds: int) -> None:
    random = np.random.default_rng(images)
    scores = np.log(random.dirichlet(np.full(kinds, 0.3), images) + 1e-12)
    counts = np.bincount(random.integers(0, kinds, images), minlength=kinds)
    found = assign(scores, counts, counts)
    np.testing.assert_array_equal(np.bincount(found.classes, minlength=kinds), counts)
    columns = np.repeat(np.arange(kinds), counts)
    rows, places = linear_sum_assignment(-scores[:, columns])
    best = scores[rows, columns[places]].sum()
    assert scores[np.arange(images), found.classes].sum() == pytest.approx(best)


def test_without_bounds_each_image_has_its_own_best_class() -> None:
    scores = np.log(np.random.default_rng(0).dirichlet(np.ones(5), 50))
    nothing, everything = np.zeros(5, np.int64), np.full(5, 50)
    found = assign(scores, nothing, everything)
    ordered = np.sort(scores, 1)
    np.testing.assert_array_equal(found.classes, scores.argmax(1))
    np.testing.assert_allclose(found.margins, ordered[:, -1] - ordered[:, -2])


@pytest.mark.parametrize(("least", "most"), [([2, 2], [2, 2]), ([0, 0], [1, 1])])
def test_counts_that_cannot_be_met_are_refused(least: list[int], most: list[int]) -> None:
    with pytest.raises(ValueError, match="3 images"):
        assign(np.zeros((3, 2)), np.array(least), np.array(most))
