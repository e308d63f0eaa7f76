"""The exit rule fitted on held-out photos."""

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from taillift.models.bundle.ensemble import ExitRule, run_stages
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.exit_rule import (
    Candidate,
    HeldOutViews,
    candidate_stages,
    fit_exit,
)
from taillift.training.calibration.held_out import HeldOut

SIX: tuple[Group, ...] = ("many", "many", "medium", "medium", "few", "few")


def simulated(
    labels: np.ndarray, seed: int = 0, clear: float = 7.0, groups: tuple[Group, ...] = SIX
) -> HeldOut:
    """Return photos whose views share their difficulty; `clear` is how far the class stands out."""
    rng = np.random.default_rng(seed)
    photos = rng.normal(0, 1.5, (len(labels), 1, len(groups)))
    photos[np.arange(len(labels)), 0, labels] += clear
    views = rng.normal(0, 0.8, (len(labels), 5, len(groups)))
    logits = (photos + views).astype(np.float32)
    return HeldOut("photos", "validation", logits, np.asarray(labels, np.int64), groups)


def lost(rule: ExitRule, pool: HeldOut) -> dict[str, float]:
    """Return points of accuracy lost on `pool`, overall and by group; its classes are balanced."""
    mean_logits, _ = run_stages(rule, pool.view_logits)
    full = pool.view_logits.mean(axis=1).argmax(axis=1) == pool.labels
    losses = 100.0 * (full.astype(int) - (mean_logits.argmax(axis=1) == pool.labels))
    groups = np.array(pool.groups)[pool.labels]
    return {"overall": losses.mean(), **{group: losses[groups == group].mean() for group in GROUPS}}


@pytest.fixture(scope="module")
def pool() -> HeldOut:
    return simulated(np.arange(60_000) % 6, seed=99)


def test_certified_bounds_are_exceeded_no_more_often_than_stated(pool: HeldOut) -> None:
    splits = [np.random.default_rng(seed).permutation(len(pool))[:1500] for seed in range(25)]
    rules = [fit_exit(pool.only(rows), tolerance=2.0) for rows in splits]
    losses = [lost(rule, pool) for rule in rules]
    assert all(rule.certified and rule.mean_views < 2.5 for rule in rules)
    broken = sum(max(of_rule.values()) > 2.0 for of_rule in losses)
    assert broken <= binom.ppf(0.99, len(rules), 0.05)
    parts: tuple[Literal["overall"] | Group, ...] = ("overall", *GROUPS)
    for part in parts:
        fitted = [rule.overall if part == "overall" else rule.groups[part] for rule in rules]
        over = sum(of_rule[part] > loss.bound for of_rule, loss in zip(losses, fitted, strict=True))
        assert over <= binom.ppf(0.99, len(rules), 0.05), part


def test_a_rule_that_is_not_certified_says_what_is_missing() -> None:
    rule = fit_exit(simulated(np.arange(300) % 6, clear=5))
    assert not rule.certified
    assert rule.overall.bound > 0.5
    assert 1 < rule.mean_views < 3
    assert any("not certified" in note for note in rule.notes)
    assert (
        "few: 100 photos are too few to certify: even without a single changed answer the bound is "
        "3.0 points"
    ) in rule.notes


def test_a_certified_rule_says_how_much_the_certificate_costs() -> None:
    rule = fit_exit(simulated(np.arange(4000) % 6, clear=2.5))
    assert rule.certified
    assert max(loss.bound for loss in (rule.overall, *rule.groups.values())) <= 0.5
    (note,) = [note for note in rule.notes if "instead of" in note]
    assert note.endswith(f"instead of {rule.mean_views:.2f}")


def test_views_that_change_nothing_are_not_taken() -> None:
    alike = simulated(np.arange(600) % 6, clear=2.5)
    alike.view_logits[:] = alike.view_logits[:, :1]
    assert fit_exit(alike).mean_views == 1


def test_rules_that_are_not_certified_lose_less_than_the_tolerance_on_average() -> None:
    hard = simulated(np.arange(20_000) % 6, seed=5, clear=2.5)
    rules = [fit_exit(simulated(np.arange(600) % 6, seed, clear=2.5)) for seed in range(10)]
    assert not any(rule.certified for rule in rules)
    assert all(1.3 < rule.mean_views < 3.5 for rule in rules)
    assert np.mean([lost(rule, hard)["overall"] for rule in rules]) < 0.5


def test_a_rule_states_what_applying_it_gives() -> None:
    held = simulated(np.arange(500) % 6, clear=3)
    rule = fit_exit(held, tolerance=1.0)
    mean_logits, taken = run_stages(rule, held.view_logits)
    full = held.view_logits.mean(axis=1).argmax(axis=1)
    assert rule.mean_views == pytest.approx(taken.mean())
    assert rule.disagreement == pytest.approx(100 * (mean_logits.argmax(1) != full).mean())
    assert rule.overall.estimate == pytest.approx(lost(rule, held)["overall"])
    assert rule.images == rule.overall.photos == 500
    assert sum(loss.photos for loss in rule.groups.values()) == 500


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 61))
def test_every_candidate_is_measured_as_it_is_applied(seed: int, index: int) -> None:
    held = simulated(np.arange(40) % 6, seed, clear=1)
    photos = HeldOutViews(held)
    stages = [*candidate_stages(photos)][index]
    candidate = Candidate(photos, stages, 0.5)
    mean_logits, taken = run_stages(stages, held.view_logits)
    np.testing.assert_array_equal(candidate.taken, taken)
    np.testing.assert_array_equal(candidate.answers, mean_logits.argmax(axis=1))


def test_candidates_go_from_all_views_to_one() -> None:
    held = simulated(np.arange(200) % 6, clear=1)
    photos = HeldOutViews(held)
    views = [Candidate(photos, stages, 0.5).mean_views for stages in candidate_stages(photos)]
    assert (views[0], views[-1]) == (5, 1)
    assert all(before >= after for before, after in pairwise(views))


def test_the_margin_of_a_stage_shrinks_with_the_change_of_the_views_after_it() -> None:
    """The third view decides: the mean over three views is the mean over five."""
    held = simulated(np.arange(300) % 6)
    settled = held.view_logits.copy()
    settled[:, 3:] = settled[:, :3].mean(axis=1, keepdims=True)
    *_, before, _ = candidate_stages(HeldOutViews(held))
    *_, after, _ = candidate_stages(HeldOutViews(replace(held, view_logits=settled)))
    independent = [np.sqrt((1 / k - 1 / 5) / (1 - 1 / 5)) for k in (1, 2, 3)]
    assert np.divide(before.leads, before.leads[0]) == pytest.approx(independent, abs=0.1)
    assert after.leads[1] > 0
    assert after.leads[2] == 0


def degenerate() -> dict[str, tuple[HeldOut, str]]:
    labels = np.arange(60) % 6
    single = simulated(np.array([0]))
    alike = simulated(labels)
    alike.view_logits[:] = alike.view_logits[0]
    return {
        "nothing": (single.only(np.array([], np.int64)), "there are no held-out photos"),
        "one photo": (single, "5 of 6 classes have no photo"),
        "one photo a class": (simulated(np.arange(6)), "few: 2 photos are too few to certify"),
        "no photo of a class": (simulated(np.arange(60) % 5), "1 of 6 classes have no photo"),
        "no photo of a group": (simulated(np.arange(60) % 4), "few: no photos, so what it would"),
        "no class of a group": (simulated(np.arange(300) % 4, groups=SIX[:4]), "not certified"),
        "one image, all labels": (alike, "the 60 photos show only 1 different images"),
        "cross-fitting": (
            replace(simulated(labels), source="cross-fitting"),
            "trained without these photos, not on this model",
        ),
    }


@pytest.mark.parametrize("kind", degenerate())
def test_poor_photos_give_a_rule_that_says_what_they_could_not_show(kind: str) -> None:
    held, note = degenerate()[kind]
    rule = fit_exit(held)
    assert ExitRule.model_validate_json(rule.model_dump_json()) == rule
    assert any(note in text for text in rule.notes), rule.notes
    assert not (rule.certified and rule.leads)
    run_stages(rule, held.view_logits)


@pytest.mark.parametrize(
    "kind", ["nothing", "one photo", "one photo a class", "no photo of a group"]
)
def test_with_hardly_any_photos_or_none_of_a_group_images_take_all_views(
    kind: str,
) -> None:
    rule = fit_exit(degenerate()[kind][0])
    assert (rule.stages, rule.leads, rule.mean_views) == ((5,), (), 5)
