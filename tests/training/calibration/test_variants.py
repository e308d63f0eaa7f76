"""All parts of a variant are fitted on the same distinct photos, and say what they show."""

from dataclasses import replace

import numpy as np
import pytest

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.manifest import Variant
from taillift.training.calibration.variants import calibrate
from tests.support.simulated import held_out, seen


def notes_of(variant: Variant) -> list[tuple[str, ...]]:
    parts = (variant.exit, variant.calibration, variant.sets, variant.review)
    return [part.notes for part in parts if part]


def test_duplicates_of_photos_count_once_in_every_part() -> None:
    held = held_out(60, [3.0] * 3)
    once = calibrate(held).variant
    copied = calibrate(held.only(np.tile(np.arange(60), 20))).variant
    for notes in notes_of(copied):
        assert "1140 of 1200 photos are duplicates of others and count once" in notes
    assert (once.exit, once.calibration, once.sets, once.review) == (
        copied.exit and copied.exit.model_copy(update={"notes": once.exit and once.exit.notes}),
        copied.calibration
        and copied.calibration.model_copy(
            update={"notes": once.calibration and once.calibration.notes}
        ),
        copied.sets and copied.sets.model_copy(update={"notes": once.sets and once.sets.notes}),
        copied.review
        and copied.review.model_copy(update={"notes": once.review and once.review.notes}),
    )


def test_photos_that_are_answered_with_certainty_are_not_duplicates_of_each_other() -> None:
    """Their probabilities agree to many digits, but their logits do not."""
    random = np.random.default_rng(0)
    labels = np.arange(900) % 9
    logits = random.normal(0, 0.5, (900, 9)) + 40 * np.eye(9)[labels]
    fitted = calibrate(seen(logits, labels)).variant
    assert fitted.sets is not None
    assert fitted.review is not None
    assert fitted.sets.photos == 900
    assert [group.photos for group in fitted.review.groups.values()] == [300, 300, 300]
    assert [group.certified for group in fitted.review.groups.values()] == [True, True, True]


def test_one_image_with_all_labels_is_noted_in_every_part_and_saves_no_view() -> None:
    held = seen(np.tile(np.arange(9.0), (90, 1)), np.arange(90) % 9)
    fitted = calibrate(held).variant
    for notes in notes_of(fitted):
        assert "81 of 90 photos are duplicates of others and count once" in notes
        assert "the 9 photos show only 1 different images, with several labels" in notes
    assert fitted.exit is not None
    assert fitted.exit.mean_views == 5


def test_parts_that_were_measured_on_other_photos_say_so() -> None:
    fit, check = (replace(held_out(300, seed=seed), data=f"made-up {seed}") for seed in (1, 2))
    before = calibrate(fit)
    after = before.measured_on(check)
    assert before.sets.data == "the photos of the fit, by cross-validation"
    assert before.review.data == "the photos of the fit, which flatters them"
    errors = after.calibration.errors
    assert errors is not None
    assert {errors.data, after.sets.data, after.review.data} == {"made-up 2"}
    assert after.sets.estimates != before.sets.estimates
    thresholds = [
        [group.threshold for group in fitted.review.groups.values()] for fitted in (before, after)
    ]
    assert thresholds[0] == thresholds[1]
    assert after.rule == before.rule


@pytest.mark.parametrize("ensemble", list(Ensemble))
def test_without_other_photos_the_answers_to_those_of_the_fit_are_kept(ensemble: Ensemble) -> None:
    before, after = calibrate(held_out(600, [3.0] * 3)).scored[ensemble]
    assert len(before) == len(after) == 600
    assert np.array_equal(before.right, after.right)
    assert before.confidence.mean() > before.right.mean() + 0.1
    assert after.confidence.mean() == pytest.approx(after.right.mean(), abs=0.05)
