"""The statistics of features: means, and a covariance that is shrunk as far as it is uncertain."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from taillift.models.bundle.feature_statistics import STATISTICS, FeatureStatistics, unit
from taillift.models.errors import UserError


def test_the_covariance_of_large_classes_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    mixing = random.standard_normal((8, 8))
    rows = (random.standard_normal((400, 8)) @ mixing).astype(np.float32)
    made = FeatureStatistics.of(rows, np.zeros(400, np.int64), 1)
    expected, _ = ledoit_wolf(rows, assume_centered=False)
    assert np.allclose(made.covariance, expected * 400 / 399, rtol=0.01, atol=0.02)
    assert np.allclose(made.means, rows.mean(0), atol=1e-5)


def test_few_photos_give_a_covariance_that_is_near_round_and_has_an_inverse() -> None:
    random = np.random.default_rng(1)
    rows = random.standard_normal((6, 40)).astype(np.float32)
    made = FeatureStatistics.of(rows, np.array([0, 0, 1, 1, 2, 2]), 3)
    values = np.linalg.eigvalsh(made.covariance)
    assert values.min() > 0.1 * values.max() > 0


def test_the_covariance_is_within_classes_and_not_between_them() -> None:
    random = np.random.default_rng(2)
    labels = np.repeat([0, 1], 500)
    rows = random.standard_normal((1_000, 3)) * [1, 2, 3] + 50 * labels[:, None]
    made = FeatureStatistics.of(rows.astype(np.float32), labels, 2)
    assert np.allclose(np.diag(made.covariance), [1, 4, 9], rtol=0.15)


def test_single_photos_have_no_covariance_and_their_draws_are_themselves() -> None:
    made = FeatureStatistics.of(np.eye(3, dtype=np.float32), np.arange(3), 3)
    assert not made.covariance.any()
    assert not made.root().any()


def test_joining_is_measuring_all_photos_at_once() -> None:
    random = np.random.default_rng(3)
    rows = random.standard_normal((900, 4)).astype(np.float32)
    labels = random.integers(0, 3, 900)
    whole = FeatureStatistics.of(rows, labels, 3)
    halves = [
        FeatureStatistics.of(rows[part], labels[part], 3) for part in np.split(np.arange(900), 2)
    ]
    joined = halves[0].joined(halves[1])
    assert np.allclose(joined.means, whole.means, atol=1e-5)
    assert np.allclose(joined.covariance, whole.covariance, atol=0.02)
    assert joined.counts.tolist() == whole.counts.tolist()


def test_classes_are_chosen_and_new_ones_are_empty() -> None:
    made = FeatureStatistics.of(np.eye(3, dtype=np.float32), np.arange(3), 3)
    chosen = made.only([2, None, 0])
    assert chosen.means.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert chosen.counts.tolist() == [1, 0, 1]


def test_the_root_multiplied_by_itself_is_the_covariance() -> None:
    random = np.random.default_rng(4)
    rows = random.standard_normal((50, 6)).astype(np.float32)
    made = FeatureStatistics.of(rows, np.zeros(50, np.int64), 1)
    assert np.allclose(made.root() @ made.root(), made.covariance, atol=1e-5)


def test_a_file_of_another_shape_or_with_nan_is_refused(tmp_path: Path) -> None:
    made = FeatureStatistics.of(unit(np.ones((2, 3), np.float32)), np.arange(2), 2)
    made.save(tmp_path)
    assert FeatureStatistics.read(tmp_path, 2, 3).means.shape == (2, 3)
    with pytest.raises(UserError, match=rf"{STATISTICS} does not hold means float32 \[3, 3\]"):
        FeatureStatistics.read(tmp_path, 3, 3)
    FeatureStatistics(made.means * np.float32(np.nan), made.covariance, made.counts).save(tmp_path)
    with pytest.raises(UserError, match="all finite"):
        FeatureStatistics.read(tmp_path, 2, 3)
    (tmp_path / STATISTICS).write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        FeatureStatistics.read(tmp_path, 2, 3)


def test_means_move_as_the_photos_near_them_do() -> None:
    means = np.eye(4, dtype=np.float32)
    means[3] = 0
    known = FeatureStatistics(means, np.eye(4, dtype=np.float32), np.array([5, 5, 5, 0]))
    before = unit(np.array([[1, 0.1, 0, 0], [0, 1, 0, 0.1]], np.float32))
    after = before + np.array([[0, 0, 0, 0.5], [0, 0, 0, -0.5]], np.float32)
    moved = known.moved(before, after)
    np.testing.assert_allclose(moved.means[0], [1, 0, 0, 0.5], atol=1e-3)
    np.testing.assert_allclose(moved.means[1], [0, 1, 0, -0.5], atol=1e-3)
    # Both photos are equally far from the third class, and the fourth has no photos.
    np.testing.assert_allclose(moved.means[2], [0, 0, 1, 0], atol=1e-6)
    assert not moved.means[3].any()
    assert moved.counts is known.counts
    assert moved.covariance is known.covariance
