"""The exit rule fitted on held-out photos."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from taillift.models.bundle.ensemble import ExitRule, run_stages
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.exit_rule import Candidate, HeldOutViews, candidates, fit_exit
from taillift.training.calibration.held_out import HeldOut

SIX: tuple[Group, ...] = ("many", "many", "medium", "medium", "few", "few")


def simulated(
    labels: np.ndarray, seed: int = 0, clear: float = 7.0, groups: tuple[Group, ...] = SIX
) -> HeldOut:
    """Views of one photo share what makes it hard; `clear` is how far its class stands out."""
    rng = np.random.default_rng(seed)
    photos = rng.normal(0, 1.5, (len(labels), 1, len(groups)))
    photos[np.arange(len(labels)), 0, labels] += clear
    views = rng.normal(0, 0.8, (len(labels), 5, len(groups)))
    logits = (photos + views).astype(np.float32)
    return HeldOut("photos", "validation", logits, np.asarray(labels, np.int64), groups)


def lost(rule: ExitRule, pool: HeldOut) -> dict[str, float]:
    """Points of accuracy lost on `pool`, overall and by group: with as many of each class."""
    mean_logits, _ = run_stages(rule, pool.view_logits)
    full = pool.view_logits.mean(axis=1).argmax(axis=1) == pool.labels
    losses = 100.0 * (full.astype(int) - (mean_logits.argmax(axis=1) == pool.labels))
    groups = np.array(pool.groups)[pool.labels]
    return {"overall": losses.mean(), **{one: losses[groups == one].mean() for one in GROUPS}}


@pytest.fixture(scope="module")
def pool() -> HeldOut:
    return simulated(np.arange(60_000) % 6, seed=99)


def test_certified_bounds_are_broken_no_more_often_than_they_say(pool: HeldOut) -> None:
    splits = [np.random.default_rng(seed).permutation(len(pool))[:1500] for seed in range(25)]
    rules = [fit_exit(pool.only(rows), tolerance=2.0) for rows in splits]
    losses = [lost(rule, pool) for rule in rules]
    assert all(rule.certified and rule.mean_views < 2.5 for rule in rules)
    broken = sum(max(one.values()) > 2.0 for one in losses)
    assert broken <= binom.ppf(0.99, len(rules), 0.05)
    for part in ("overall", *GROUPS):
        bounds = [rule.overall if part == "overall" else rule.groups[part] for rule in rules]
        over = sum(one[part] > bound.bound for one, bound in zip(losses, bounds, strict=True))
        assert over <= binom.ppf(0.99, len(rules), 0.05), part


def test_a_rule_that_is_not_certified_says_what_is_missing() -> None:
    rule = fit_exit(simulated(np.arange(300) % 6, clear=5))
    assert not rule.certified
    assert rule.overall.bound > 0.5
    assert 1 < rule.mean_views < 3
    assert any("not certified" in note for note in rule.notes)
    assert (
        "few: 100 photos, with which even without a single changed answer the bound is 3.0 points"
        in rule.notes
    )


def test_a_certified_rule_says_how_much_the_certificate_costs() -> None:
    rule = fit_exit(simulated(np.arange(4000) % 6, clear=2.5))
    assert rule.certified
    assert max(one.bound for one in (rule.overall, *rule.groups.values())) <= 0.5
    (note,) = [note for note in rule.notes if "instead of" in note]
    assert note.endswith(f"instead of {rule.mean_views:.2f}")


def test_views_that_change_nothing_are_not_taken() -> None:
    alike = simulated(np.arange(600) % 6, clear=2.5)
    alike.view_logits[:] = alike.view_logits[:, :1]
    assert fit_exit(alike).mean_views == 1


def test_rules_that_are_not_certified_lose_on_average_what_is_tolerated() -> None:
    hard = simulated(np.arange(20_000) % 6, seed=5, clear=2.5)
    rules = [fit_exit(simulated(np.arange(600) % 6, seed, clear=2.5)) for seed in range(10)]
    assert not any(rule.certified for rule in rules)
    assert all(1.3 < rule.mean_views < 3.5 for rule in rules)
    assert np.mean([lost(rule, hard)["overall"] for rule in rules]) < 0.5


def test_what_the_rule_says_is_what_applying_it_does() -> None:
    held = simulated(np.arange(500) % 6, clear=3)
    rule = fit_exit(held, tolerance=1.0)
    mean_logits, taken = run_stages(rule, held.view_logits)
    full = held.view_logits.mean(axis=1).argmax(axis=1)
    assert rule.mean_views == pytest.approx(taken.mean())
    assert rule.disagreement == pytest.approx(100 * (mean_logits.argmax(1) != full).mean())
    assert rule.overall.estimate == pytest.approx(lost(rule, held)["overall"])
    assert rule.images == rule.overall.photos == 500
    assert sum(one.photos for one in rule.groups.values()) == 500


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 61))
def test_every_candidate_is_tried_as_it_is_applied(seed: int, place: int) -> None:
    held = simulated(np.arange(40) % 6, seed, clear=1)
    photos = HeldOutViews(held)
    stages = [*candidates(photos)][place]
    trial = Candidate(photos, stages, 0.5)
    mean_logits, taken = run_stages(stages, held.view_logits)
    np.testing.assert_array_equal(trial.taken, taken)
    np.testing.assert_array_equal(trial.answers, mean_logits.argmax(axis=1))


def test_candidates_go_from_all_views_to_one() -> None:
    held = simulated(np.arange(200) % 6, clear=1)
    photos = HeldOutViews(held)
    views = [Candidate(photos, stages, 0.5).mean_views for stages in candidates(photos)]
    assert (views[0], views[-1]) == (5, 1)
    assert all(before >= after for before, after in pairwise(views))


def test_a_stage_needs_the_less_lead_the_less_the_views_after_it_change() -> None:
    """The third view settles it: the mean of three is that of five."""
    held = simulated(np.arange(300) % 6)
    settled = held.view_logits.copy()
    settled[:, 3:] = settled[:, :3].mean(axis=1, keepdims=True)
    *_, before, _ = candidates(HeldOutViews(held))
    *_, after, _ = candidates(HeldOutViews(replace(held, view_logits=settled)))
    independent = [np.sqrt((1 / k - 1 / 5) / (1 - 1 / 5)) for k in (1, 2, 3)]
    assert np.divide(before.leads, before.leads[0]) == pytest.approx(independent, abs=0.1)
    assert after.leads[1] > 0
    assert after.leads[2] == 0


def degenerate() -> dict[str, tuple[HeldOut, str]]:
    labels = np.arange(60) % 6
    one = simulated(np.array([0]))
    alike = simulated(labels)
    alike.view_logits[:] = alike.view_logits[0]
    return {
        "nothing": (one.only(np.array([], np.int64)), "there are no held-out photos"),
        "one photo": (one, "5 of 6 classes have no photo"),
        "one photo a class": (simulated(np.arange(6)), "few: 2 photos, with which even without"),
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
    assert any(note in one for one in rule.notes), rule.notes
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
