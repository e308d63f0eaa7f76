"""Calibration errors know what chance alone makes of few photos."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.calibration_error import (
    MAX_BINS,
    MIN_PHOTOS,
    Bin,
    ScoredPredictions,
    bins,
    calibration_error,
    effective_count,
    expected_error,
    minimum_detectable_error,
)
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.held_out import predictions_on
from taillift.training.calibration.reliability import change, errors_of
from tests.support.simulated import held_out


def scored(photos: int, off_by: float = 0.0, seed: int = 0) -> ScoredPredictions:
    """Return confidences from a third to two thirds, which are `off_by` points too high."""
    random = np.random.default_rng(seed)
    confidence = random.uniform(1 / 3, 2 / 3, photos)
    right = random.random(photos) < confidence - off_by / 100
    groups = np.arange(photos) % len(GROUPS)
    return ScoredPredictions(confidence, right, groups, np.full(photos, 1 / photos))


@pytest.mark.parametrize("off_by", [-20.0, 10.0])
def test_a_constant_gap_is_the_error(off_by: float) -> None:
    assert calibration_error(bins(scored(50_000, off_by))) == pytest.approx(abs(off_by), abs=1)


@pytest.mark.parametrize("off_by", [0.0, 5.0])
def test_few_photos_do_not_make_the_error_larger_on_average(off_by: float) -> None:
    """Chance alone adds more than 100 to the square of the plain estimate here."""
    runs = [bins(scored(300, off_by, seed)) for seed in range(300)]
    squares = [100**2 * sum(b.share * (gap(b) ** 2 - b.noise) for b in run) for run in runs]
    plain = [100**2 * sum(b.share * gap(b) ** 2 for b in run) for run in runs]
    assert np.mean(squares) == pytest.approx(off_by**2, abs=12)
    assert np.mean(plain) > off_by**2 + 100


def gap(b: Bin) -> float:
    return b.confidence - b.accuracy


@pytest.mark.parametrize("photos", [120, 1000])
def test_perfect_confidence_stays_under_the_detectable_error_19_times_of_20(photos: int) -> None:
    runs = [bins(scored(photos, seed=seed)) for seed in range(300)]
    under = np.mean([calibration_error(run) < minimum_detectable_error(run) for run in runs])
    assert 0.9 <= under <= 0.99


@pytest.mark.parametrize("off_by", [-20.0, 10.0])
def test_the_plain_error_is_a_constant_gap_too(off_by: float) -> None:
    predictions = scored(50_000, off_by)
    assert expected_error(predictions) == pytest.approx(abs(off_by), abs=1)


def test_the_plain_error_is_the_mean_gap_of_15_equal_bins() -> None:
    """At a confidence of a half, one bin is all right, one all wrong, and the others are even."""
    confidence = np.linspace(0.495, 0.505, 60)
    right = np.arange(60) % 2 == 0
    right[:4], right[-4:] = False, True
    error = expected_error(
        ScoredPredictions(confidence, right, np.zeros(60, np.int64), np.ones(60))
    )
    bins_of_four = confidence.reshape(15, 4).mean(1), right.reshape(15, 4).mean(1)
    assert error == pytest.approx(100 * np.abs(bins_of_four[0] - bins_of_four[1]).mean())
    assert error == pytest.approx(100 / 15, abs=0.5)


def test_the_plain_error_uses_the_weights_of_the_photos() -> None:
    """Nine photos of ten are right as often as promised; the tenth, of more weight, is wrong."""
    confidence = np.full(1000, 0.5)
    right = np.arange(1000) % 2 == 0
    right[900:] = False
    groups = np.zeros(1000, np.int64)
    even = np.ones(1000)
    heavy = np.where(np.arange(1000) < 900, 1.0, 9.0)
    errors = [
        expected_error(ScoredPredictions(confidence, right, groups, w)) for w in (even, heavy)
    ]
    assert errors == pytest.approx([5, 25], abs=1)


def test_chance_makes_the_plain_error_larger_than_the_other() -> None:
    perfect = scored(300)
    errors = change(perfect, perfect)
    assert errors.after is not None
    assert errors.ece_after == errors.ece_before == expected_error(perfect)
    assert errors.ece_after > errors.after


@given(st.integers(1, 2000), st.integers(0, 99))
def test_bins_share_the_photos_evenly(photos: int, seed: int) -> None:
    result = bins(scored(photos, seed=seed))
    assert len(result) == np.clip(photos // 20, 1, MAX_BINS)
    assert sum(b.share for b in result) == pytest.approx(1)
    np.testing.assert_allclose([b.share for b in result], 1 / len(result), atol=1.01 / photos)
    assert [b.confidence for b in result] == sorted(b.confidence for b in result)


def test_weights_count_like_photos() -> None:
    once = scored(500)
    twice = ScoredPredictions(
        np.concatenate([once.confidence, once.confidence[:250]]),
        np.concatenate([once.right, once.right[:250]]),
        np.concatenate([once.groups, once.groups[:250]]),
        np.ones(750),
    )
    weighted = ScoredPredictions(
        once.confidence, once.right, once.groups, np.where(np.arange(500) < 250, 2.0, 1.0)
    )
    pairs = zip(bins(twice), bins(weighted), strict=True)
    for doubled, heavy in pairs:
        assert (doubled.confidence, doubled.accuracy) == pytest.approx(
            (heavy.confidence, heavy.accuracy), abs=0.05
        )


def test_too_few_photos_give_no_error() -> None:
    few, enough = scored(MIN_PHOTOS - 1), scored(MIN_PHOTOS)
    errors = change(few, few)
    assert (errors.photos, errors.before, errors.after, errors.enough) == (99, None, None, False)
    assert errors.ece_before is None
    assert errors.ece_after is None
    assert change(enough, enough).after is not None


def test_a_small_error_of_few_photos_is_not_enough_to_be_halved() -> None:
    large, small = scored(400, 40.0), scored(400, 2.0)
    assert change(large, small).enough
    assert not change(small, small).enough


def test_a_group_without_answers_has_no_bins() -> None:
    assert bins(scored(30).of_group(1).of_group(2)) == []
    assert effective_count(np.array([])) == 0


def test_errors_say_which_groups_have_too_few_photos() -> None:
    many: Group = "many"
    ensembles = predictions_on(held_out(250, [0.4] * 3, groups=[*[many] * 7, "few"]))
    errors = errors_of(
        "simulated photos",
        [(predictions, predictions.at(np.full(250, 0.4))) for predictions in ensembles],
    )
    assert errors.off.overall.enough
    assert errors.off.groups["many"].enough
    assert errors.off.groups["medium"].photos == 0
    assert errors.notes == (
        "off: fewer than 100 photos, too few for an error: few",
        "full: fewer than 100 photos, too few for an error: few",
    )
    sure = errors_of(
        "simulated photos",
        [
            (predictions, predictions.uncalibrated())
            for predictions in predictions_on(held_out(400))
        ],
    )
    assert sure.notes[-1] == (
        "full: too few photos to tell half the error from none: overall, many, medium, few"
    )
