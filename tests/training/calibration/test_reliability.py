from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.schema import GROUPS
from taillift.training.calibration.predictions import ScoredPredictions, answers, effective
from taillift.training.calibration.reliability import (
    BINS,
    FEWEST,
    bins,
    calibration_error,
    change,
    changes_of,
    expected_error,
    resolution,
)
from taillift.training.report.reliability_diagram import draw_reliability
from tests.support.simulated import held_out


def verdicts(photos: int, off_by: float = 0.0, seed: int = 0) -> ScoredPredictions:
    """Confidence between a third and two thirds, and that many points too high."""
    random = np.random.default_rng(seed)
    confidence = random.uniform(1 / 3, 2 / 3, photos)
    right = random.random(photos) < confidence - off_by / 100
    groups = np.arange(photos) % len(GROUPS)
    return ScoredPredictions(confidence, right, groups, np.full(photos, 1 / photos))


@pytest.mark.parametrize("off_by", [-20.0, 10.0])
def test_a_constant_gap_is_the_error(off_by: float) -> None:
    assert calibration_error(bins(verdicts(50_000, off_by))) == pytest.approx(abs(off_by), abs=1)


@pytest.mark.parametrize("off_by", [0.0, 5.0])
def test_few_photos_do_not_make_the_error_larger_on_average(off_by: float) -> None:
    """Of the plain estimate's square, chance alone makes 12 points' here."""
    every = [bins(verdicts(300, off_by, seed)) for seed in range(300)]
    squares = [100**2 * sum(b.share * (gap(b) ** 2 - b.noise) for b in one) for one in every]
    plain = [100**2 * sum(b.share * gap(b) ** 2 for b in one) for one in every]
    assert np.mean(squares) == pytest.approx(off_by**2, abs=12)
    assert np.mean(plain) > off_by**2 + 100


def gap(one: object) -> float:
    return one.confidence - one.accuracy  # type: ignore[attr-defined]


@pytest.mark.parametrize("photos", [120, 1000])
def test_perfect_confidence_stays_under_the_resolution_19_times_of_20(photos: int) -> None:
    every = [bins(verdicts(photos, seed=seed)) for seed in range(300)]
    under = np.mean([calibration_error(one) < resolution(one) for one in every])
    assert 0.9 <= under <= 0.99


@pytest.mark.parametrize("off_by", [-20.0, 10.0])
def test_the_plain_error_is_a_constant_gap_too(off_by: float) -> None:
    found = verdicts(50_000, off_by)
    assert expected_error(found) == pytest.approx(abs(off_by), abs=1)


def test_the_plain_error_is_the_mean_gap_of_15_equal_bins() -> None:
    """One bin is all right and one all wrong at a confidence of a half; the others are even."""
    confidence = np.linspace(0.495, 0.505, 60)
    right = np.arange(60) % 2 == 0
    right[:4], right[-4:] = False, True
    found = expected_error(
        ScoredPredictions(confidence, right, np.zeros(60, np.int64), np.ones(60))
    )
    bins_of_four = confidence.reshape(15, 4).mean(1), right.reshape(15, 4).mean(1)
    assert found == pytest.approx(100 * np.abs(bins_of_four[0] - bins_of_four[1]).mean())
    assert found == pytest.approx(100 / 15, abs=0.5)


def test_the_plain_error_weighs_classes_as_the_rest_does() -> None:
    """Nine photos of ten are right as promised, the tenth class of weight is always wrong."""
    confidence = np.full(1000, 0.5)
    right = np.arange(1000) % 2 == 0
    right[900:] = False
    groups = np.zeros(1000, np.int64)
    even = np.ones(1000)
    heavy = np.where(np.arange(1000) < 900, 1.0, 9.0)
    found = [expected_error(ScoredPredictions(confidence, right, groups, w)) for w in (even, heavy)]
    assert found == pytest.approx([5, 25], abs=1)


def test_chance_makes_the_plain_error_more_than_the_other() -> None:
    perfect = verdicts(300)
    found = change(perfect, perfect)
    assert found.after is not None
    assert found.ece_after == found.ece_before == expected_error(perfect)
    assert found.ece_after > found.after


@given(st.integers(1, 2000), st.integers(0, 99))
def test_bins_share_the_photos_evenly(photos: int, seed: int) -> None:
    every = bins(verdicts(photos, seed=seed))
    assert len(every) == np.clip(photos // 20, 1, BINS)
    assert sum(one.share for one in every) == pytest.approx(1)
    np.testing.assert_allclose([one.share for one in every], 1 / len(every), atol=1.01 / photos)
    assert [one.confidence for one in every] == sorted(one.confidence for one in every)


def test_weights_count_like_photos() -> None:
    once = verdicts(500)
    twice = ScoredPredictions(
        *(np.concatenate([one, one[:250]]) for one in (once.confidence, once.right, once.groups)),
        np.ones(750),
    )
    weighted = ScoredPredictions(
        once.confidence, once.right, once.groups, np.where(np.arange(500) < 250, 2.0, 1.0)
    )
    pairs = zip(bins(twice), bins(weighted), strict=True)
    for one, other in pairs:
        assert (one.confidence, one.accuracy) == pytest.approx(
            (other.confidence, other.accuracy), abs=0.05
        )


def test_fewer_than_enough_photos_say_nothing() -> None:
    few, enough = verdicts(FEWEST - 1), verdicts(FEWEST)
    found = change(few, few)
    assert (found.photos, found.before, found.after, found.enough) == (99, None, None, False)
    assert found.ece_before is None
    assert found.ece_after is None
    assert change(enough, enough).after is not None


def test_a_small_error_of_few_photos_is_not_enough_to_be_halved() -> None:
    large, small = verdicts(400, 40.0), verdicts(400, 2.0)
    assert change(large, small).enough
    assert not change(small, small).enough


def test_no_answer_in_a_group_is_no_error() -> None:
    assert bins(verdicts(30).of_group(1).of_group(2)) == []
    assert effective(np.array([])) == 0


def test_the_diagram_takes_any_number_of_photos(tmp_path: Path) -> None:
    every = [answers(held)[0] for held in (held_out(700), held_out(0))]
    verdicts = [(one.uncalibrated(), one.at(np.full(len(one), 2.0))) for one in every]
    draw_reliability(tmp_path / "reliability.png", dict(zip(Ensemble, verdicts, strict=False)))
    with Image.open(tmp_path / "reliability.png") as image:
        colours = image.convert("RGB").getcolors(2**24)
        assert image.height > image.width / 2
        assert colours is not None
        assert len(colours) > 100


def test_errors_say_which_groups_have_too_few_photos() -> None:
    every = answers(held_out(250, [0.4] * 3, groups=["many"] * 7 + ["few"]))
    found = changes_of("simulated photos", [(one, one.at(np.full(250, 0.4))) for one in every])
    assert found.off.overall.enough
    assert found.off.groups["many"].enough
    assert found.off.groups["medium"].photos == 0
    assert found.notes == (
        "off: fewer than 100 photos, too few for an error: few",
        "full: fewer than 100 photos, too few for an error: few",
    )
    sure = changes_of(
        "simulated photos", [(one, one.uncalibrated()) for one in answers(held_out(400))]
    )
    assert sure.notes[-1] == (
        "full: too few photos to tell half the error from none: overall, many, medium, few"
    )
