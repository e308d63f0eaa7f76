"""Confusions estimated from few held-out photos."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taillift.models.bundle.schema import GROUPS, Group
from taillift.models.errors import UserError
from taillift.service.tail.confusion import (
    MAX_CONFUSIONS,
    STRENGTH,
    Confusion,
    estimate_confusion,
    read_confusions,
)
from taillift.service.tail.distributions import Doubles


def dense(confusion: Confusion) -> Doubles:
    size = len(confusion.group)
    return np.stack([confusion.column_sums(row) for row in np.eye(size)])


@st.composite
def bundles(draw: st.DrawFn) -> tuple[list[Group], list[tuple[int, int, int]]]:
    groups = draw(st.lists(st.sampled_from(GROUPS), min_size=2, max_size=7))
    classes = st.integers(0, len(groups) - 1)
    pairs = draw(st.lists(st.tuples(classes, classes, st.integers(1, 30)), max_size=12))
    return groups, pairs


@settings(deadline=None)
@given(bundles())
def test_every_row_is_a_distribution_without_a_zero(
    bundle: tuple[list[Group], list[tuple[int, int, int]]],
) -> None:
    confusion = estimate_confusion(*bundle)
    matrix = dense(confusion)
    np.testing.assert_allclose(matrix.sum(1), 1)
    assert (matrix > 0).all()
    np.testing.assert_allclose(np.diagonal(matrix), confusion.recall)
    squares = np.stack([confusion.column_sums(row, power=2) for row in np.eye(len(matrix))])
    # Column sums are differences of larger sums, hence the tolerance.
    np.testing.assert_allclose(squares, matrix**2, rtol=1e-6, atol=1e-10)
    by_group = [matrix[:, confusion.group == index].sum(1) for index in range(len(GROUPS))]
    np.testing.assert_allclose(confusion.into_groups, np.stack(by_group, 1))


def test_many_photos_count_in_full_and_few_are_shrunk_toward_their_group() -> None:
    groups: list[Group] = ["many", "many", "few", "few"]
    confusion = estimate_confusion(
        groups, [(0, 0, 900), (0, 1, 100), (1, 1, 1_000), (2, 2, 10), (3, 2, 2)]
    )
    matrix = dense(confusion)
    assert matrix[0, 0] == pytest.approx(0.9, abs=0.005)
    assert matrix[0, 1] == pytest.approx(0.1, abs=0.005)
    # Two misses in two photos: the group's recall of about 10 in 12 still weighs five photos.
    assert matrix[3, 3] == pytest.approx(STRENGTH * 0.85 / (2 + STRENGTH), abs=0.02)


def test_a_class_without_held_out_photos_has_the_pattern_of_its_group() -> None:
    groups: list[Group] = ["many", "few", "few"]
    matrix = dense(estimate_confusion(groups, [(0, 0, 500), (1, 1, 100), (1, 0, 100)]))
    assert matrix[2, 2] == pytest.approx(0.5, abs=0.02)
    assert matrix[2, 0] > matrix[2, 1]


def test_rows_of_the_same_pair_are_added() -> None:
    groups: list[Group] = ["many", "few"]
    once = estimate_confusion(groups, [(0, 1, 2), (0, 1, 3)])
    np.testing.assert_allclose(dense(once), dense(estimate_confusion(groups, [(0, 1, 5)])))


def test_the_report_of_a_bundle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "confusion.csv"
    path.write_text('true,predicted,photos\n"a, b",c,3\nc,c,1\n', "utf-8")
    assert read_confusions(path, ["a, b", "c"]) == [(0, 1, 3), (1, 1, 1)]


@pytest.mark.parametrize(
    "text",
    [
        "true,predicted,photos\na,a,-1\n",
        "true,predicted,photos\na,a,1e9\n",
        f"true,predicted,photos\na,a,{10**30}\n",
        "true,predicted\na,a\n",
        "true,predicted,photos\na\n",
        f'true,predicted,photos\n"{"a" * 200_000}",a,1\n',
        "true,predicted,photos\n\udcff,a,1\n",
    ],
)
def test_a_report_that_cannot_be_one_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "confusion.csv"
    path.write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(UserError, match="does not fit the bundle's classes") as caught:
        read_confusions(path, ["a", "c"])
    assert "\n" not in str(caught.value)


def test_a_report_of_many_megabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "confusion.csv"
    path.write_text("true,predicted,photos\n")
    os.truncate(path, MAX_CONFUSIONS + 1)
    with pytest.raises(UserError, match=r"has 67,108,865 bytes, more than 67,108,864"):
        read_confusions(path, ["a", "c"])


def test_a_report_on_other_classes_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "confusion.csv"
    path.write_text("true,predicted,photos\na,b,3\n", "utf-8")
    with pytest.raises(UserError, match=r"does not fit the bundle's classes \('b'\)"):
        read_confusions(path, ["a", "c"])
