"""Temperatures are found, shrunk if photos are few, and bounded for any data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taillift.models.bundle.arrays import group_indices
from taillift.models.bundle.ensemble import Ensemble, MeanLogits
from taillift.models.bundle.manifest import Thresholds
from taillift.models.bundle.schema import GROUPS
from taillift.models.bundle.temperature import Calibration
from taillift.training.calibration.held_out import HeldOut, predictions_on
from taillift.training.calibration.reliability import measure_errors
from taillift.training.calibration.temperature import (
    LogTemperature,
    fit_temperatures,
    nll_curve,
    nll_grid,
    posterior,
    shrunk_posteriors,
)
from tests.support.simulated import NINE, draw, held_out, seen


def temperatures_of(held: HeldOut, adaptive: MeanLogits | None = None) -> Calibration:
    return fit_temperatures(held, adaptive).calibration


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_logits_is_found(true: float) -> None:
    calibration = temperatures_of(held_out(4000, [true] * 3))
    for temperatures in (calibration.off, calibration.full):
        assert temperatures.pooled == pytest.approx(true, rel=0.05)
        assert list(temperatures.groups.values()) == pytest.approx([true] * 3, rel=0.1)
    assert calibration.adaptive == {}


def test_one_view_and_all_views_have_temperatures_of_their_own() -> None:
    held = held_out(4000, [2.0] * 3)
    held.view_logits[:, 1:] /= 4
    calibration = temperatures_of(held)
    assert calibration.off.pooled == pytest.approx(2.0, rel=0.05)
    assert calibration.full.pooled == pytest.approx(2.0 * (1 + 4 / 4) / 5, rel=0.05)


def test_groups_of_the_predicted_class_have_their_own_if_photos_are_many() -> None:
    calibration = temperatures_of(held_out(6000, [0.5, 1.0, 2.0]))
    assert list(calibration.off.groups.values()) == pytest.approx([0.5, 1.0, 2.0], rel=0.1)


def test_images_that_stop_early_have_a_temperature_of_their_own() -> None:
    held = held_out(4000)
    sure = np.sort(held.view_logits[:, 0], 1)
    views = np.where(sure[:, -1] - sure[:, -2] > 2, 1, 5)
    logits = held.view_logits[:, 0] * np.where(views == 1, 3.0, 0.5)[:, None]
    calibration = temperatures_of(held, MeanLogits(logits.astype(np.float32), views))
    assert set(calibration.adaptive) == {1, 5}
    assert calibration.adaptive[1].pooled == pytest.approx(3.0, rel=0.1)
    assert calibration.adaptive[5].pooled == pytest.approx(0.5, rel=0.1)
    at = calibration.temperatures(logits, views, Ensemble.ADAPTIVE, group_indices(NINE))
    assert at[views == 1].min() > 2 > 1 > at[views == 5].max()


def test_without_photos_a_group_has_the_others_temperature_and_with_some_it_moves() -> None:
    true = np.log(3.0)
    own = curve_of(held_out(5000, [3.0] * 3))
    few = curve_of(held_out(40, [3.0] * 3))
    pooled = 0.0
    none, some, many = (shrunk_posteriors([curve], pooled)[0].mean for curve in (None, few, own))
    assert none == pooled
    assert pooled < some < many
    assert many == pytest.approx(true, abs=0.05)


@given(st.floats(-1, 1), st.floats(0.01, 1), st.integers(1, 200))
@settings(max_examples=30, deadline=None)
def test_a_posterior_lies_between_the_prior_and_what_the_photos_say(
    mean: float, variance: float, photos: int
) -> None:
    curve = curve_of(held_out(photos, [2.0] * 3, seed=photos))
    alone = posterior(curve, LogTemperature(mean, 100.0)).mean
    result = posterior(curve, LogTemperature(mean, variance))
    assert min(alone, mean) - 0.05 <= result.mean <= max(alone, mean) + 0.05
    assert result.variance <= variance * 1.05


def curve_of(held: HeldOut) -> np.ndarray:
    predictions = predictions_on(held)[0]
    curve = nll_curve(nll_grid(predictions), predictions.weights)
    assert curve is not None
    return curve


def test_long_tailed_photos_are_fitted_as_if_classes_were_equally_frequent() -> None:
    """Photos of rare classes need a different temperature, and still count the same."""
    counts = np.array([2000, 500, 100] * 3)
    tail = model(counts)
    even = model(np.full(9, 500))
    uneven = temperatures_of(tail).off.pooled
    assert uneven == pytest.approx(temperatures_of(even).off.pooled, rel=0.1)
    predictions = predictions_on(tail)[0]
    unweighted = nll_curve(nll_grid(predictions), np.ones(len(predictions)))
    assert np.exp(posterior(unweighted, LogTemperature(0, 1)).mean) != pytest.approx(
        uneven, rel=0.25
    )


def model(counts: np.ndarray) -> HeldOut:
    """Return photos with features around a direction per class; rare classes are overconfident."""
    random = np.random.default_rng(1)
    labels = np.repeat(np.arange(9), counts)
    features = 2 * np.eye(9)[labels] + random.normal(size=(len(labels), 9))
    logits = 2 * features * np.where(labels % 3 == 0, 1.0, 3.0)[:, None]
    return seen(logits, labels)


@pytest.mark.parametrize("ensemble", ["off", "full", "adaptive"])
def test_the_error_is_at_most_half_on_photos_that_were_not_in_the_fit(ensemble: str) -> None:
    fitted, unseen = (held_out(3000, [0.4, 0.5, 0.6], seed) for seed in (1, 2))
    mean_logits = [
        MeanLogits(held.view_logits[:, 0], np.ones(3000, np.int64)) for held in (fitted, unseen)
    ]
    calibration = temperatures_of(fitted, mean_logits[0])
    measured = measure_errors(calibration, "others", predictions_on(unseen, mean_logits[1]))
    for errors in (measured, calibration.errors):
        changes = getattr(errors, ensemble)
        for change in (changes.overall, *changes.groups.values()):
            assert change.enough
            assert change.after <= change.before / 2
    assert calibration.errors is not None
    assert "cross-validated" in calibration.errors.data


LABELS = np.arange(90) % 9
SHARP = 9.0 * np.eye(9)[LABELS] + np.linspace(0, 0.1, 90)[:, None]
RANDOM = held_out(90).view_logits[:, 0]
UNUSUAL: dict[str, tuple[np.ndarray, np.ndarray, str]] = {
    "no photo": (RANDOM[:0], LABELS[:0], "no held-out photos"),
    "one photo": (RANDOM[:1], LABELS[:1], "8 of 9 classes have no photo"),
    "a class missing": (RANDOM, LABELS % 8, "1 of 9 classes have no photo"),
    "one photo a class": (RANDOM[:9], LABELS[:9], "so few photos (9)"),
    "one image": (np.tile(RANDOM[:1], (90, 1)), LABELS, "show only 1 different image"),
    "all right": (SHARP, LABELS, "off: every answer is right"),
    "all wrong": (SHARP, (LABELS + 1) % 9, "off: every answer is wrong"),
    "huge logits": (1e6 * RANDOM, LABELS, "so few photos"),
    "one group predicted": (
        RANDOM + 99.0 * (np.arange(9) < 3),
        LABELS,
        "of their own, by the answer's group: medium 0, few 0",
    ),
}


@pytest.mark.parametrize("name", list(UNUSUAL))
def test_unusual_data_give_sane_temperatures_and_a_note(name: str) -> None:
    logits, labels, note = UNUSUAL[name]
    held = seen(logits, labels)
    views = np.where(np.arange(len(labels)) % 2, 1, 5)
    calibration = temperatures_of(held, MeanLogits(held.view_logits[:, 0], views))
    assert any(note in text for text in calibration.notes), calibration.notes
    for temperatures in (calibration.off, calibration.full, *calibration.adaptive.values()):
        for temperature in (temperatures.pooled, *temperatures.groups.values()):
            assert 1 / 12.2 < temperature < 12.2
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration
    at = calibration.temperatures(
        held.view_logits[:, 0], views, Ensemble.ADAPTIVE, group_indices(NINE)
    )
    assert np.isfinite(at).all()
    assert len(at) == len(labels)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_temperatures_are_bounded_for_any_photos(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 300), min_size=2, max_size=6))
    groups = Thresholds().groups(counts)
    photos = data.draw(st.integers(0, 40))
    labels = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=photos, max_size=photos))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    scale = data.draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
    held = seen(scale * random.normal(size=(photos, len(counts))), np.array(labels, int), groups)
    calibration = temperatures_of(held)
    assert calibration.notes
    assert all(
        1 / 12.2 < temperature < 12.2
        for temperature in (*calibration.off.row, *calibration.full.row)
    )


def test_groups_without_classes_make_no_note() -> None:
    calibration = temperatures_of(held_out(2000, [2.0] * 3, groups=["many"] * 5))
    assert calibration.notes == ()
    assert set(calibration.off.groups) == set(GROUPS)


def test_drawn_labels_are_as_frequent_as_their_weights() -> None:
    labels = draw(np.tile([1.0, 2.0, 1.0], (4000, 1)), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(labels) / 4000, [0.25, 0.5, 0.25], atol=0.03)


@pytest.mark.parametrize("photos", [20, 60, 400, 4000])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_model_that_is_calibrated_already_keeps_temperature_1(photos: int, seed: int) -> None:
    calibration, scored = fit_temperatures(held_out(photos, seed=seed))
    assert calibration.unproved == (Ensemble.OFF, Ensemble.FULL)
    for temperatures in (calibration.off, calibration.full):
        assert temperatures.row == [1.0, 1.0, 1.0]
    assert any("they stay 1" in note for note in calibration.notes)
    for before, after in scored.values():
        np.testing.assert_array_equal(before.confidence, after.confidence)
    assert calibration.errors is not None
    assert calibration.errors.off.overall.before == calibration.errors.off.overall.after


def test_only_the_ensembles_that_calibration_improves_have_temperatures() -> None:
    held = held_out(2000)
    sharp = MeanLogits(3 * held.view_logits[:, 0], np.where(np.arange(2000) % 2, 1, 5))
    calibration = temperatures_of(held, sharp)
    assert calibration.unproved == (Ensemble.OFF, Ensemble.FULL)
    assert calibration.adaptive[1].pooled == pytest.approx(3.0, rel=0.1)
    off = temperatures_of(held, sharp._replace(logits=held.view_logits[:, 0]))
    assert off.adaptive == {1: off.off, 5: off.full}, "it does not fall back to other ensembles"


def test_calibration_by_chance_is_rarely_taken_for_better() -> None:
    """The level allows 5 of 100; these are 60 fits of two ensembles that are the same."""
    shown = [Ensemble.OFF not in temperatures_of(held_out(120, seed=s)).unproved for s in range(60)]
    assert sum(shown) <= 6
