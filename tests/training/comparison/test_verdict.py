"""The verdict on heavy fine-tuning, from made-up outcomes."""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.manifest import Thresholds
from taillift.models.bundle.schema import Group
from taillift.models.release.paired import PairedCounts
from taillift.training.comparison.outcome import Outcome
from taillift.training.comparison.verdict import (
    Difference,
    compare_kinds,
    interval,
    photo_interval,
    recommendation,
)
from taillift.training.recipe.recipe import Aim
from tests.support.outcomes import failed, outcome_of

COUNTS = [500] * 6 + [50] * 6 + [5] * 8
GROUPS = Thresholds().groups(COUNTS)
FEW = slice(12, 20)


def runs(name: str, few: float, others: float = 70.0, seeds: int = 3) -> list[Outcome]:
    """Return runs whose classes differ far more than recipes do, and alike in every recipe."""
    random = np.random.default_rng(0)
    own = random.uniform(-20, 20, len(COUNTS))
    outcomes = []
    for seed in range(seeds):
        rates = own + others
        rates[FEW] = own[FEW] + few
        luck = np.random.default_rng(crc32(f"{name} {seed}".encode())).normal(0, 0.5, len(COUNTS))
        rates = np.clip(rates + luck, 0, 100)
        outcomes.append(outcome_of(name, seed, rates.tolist(), COUNTS))
    return outcomes


def deciding(outcomes: list[Outcome]) -> Difference:
    verdict = compare_kinds(outcomes, GROUPS)
    assert verdict is not None
    return verdict.deciding[0]


def test_harm_to_few_shot_classes_is_found_even_if_all_others_gain() -> None:
    difference = deciding(runs("lift", 60.0) + runs("full", 50.0, others=75.0))
    assert (difference.heavy, difference.light, difference.measure) == ("full, SGD", "LIFT", "few")
    assert difference.points == pytest.approx(-10, abs=1)
    assert difference.low < -10 < difference.high < 0
    assert (difference.seeds, difference.classes, difference.answer) == (3, 8, "yes")
    assert "points worse than LIFT on few-shot classes" in difference.reason


def test_heavy_fine_tuning_that_gains_does_no_harm() -> None:
    difference = deciding(runs("lift", 50.0) + runs("full", 60.0))
    assert difference.answer == "no"
    assert "10." in difference.reason or "9." in difference.reason
    assert "points better than LIFT" in difference.reason


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (-0.6, -0.1, "no"),
        (-0.6, 0.4, "no"),
        (-1.4, -0.1, "yes"),
        (-1.4, 0.4, "cannot tell"),
        (0.1, 0.4, "no"),
    ],
)
def test_less_than_a_point_is_not_harm_however_certain(
    low: float, high: float, answer: str
) -> None:
    difference = Difference(
        "full", "LIFT", "few", (low + high) / 2, low, high, seeds=3, classes=100
    )
    assert difference.answer == answer


def test_a_difference_within_the_noise_gives_no_answer() -> None:
    random = np.random.default_rng(1)
    outcomes = [
        outcome_of(name, seed, random.uniform(20, 90, len(COUNTS)).tolist(), COUNTS)
        for name in ("lift", "full")
        for seed in range(3)
    ]
    difference = deciding(outcomes)
    assert difference.low < -1 < difference.high
    assert difference.answer == "cannot tell"
    assert "includes harm as well as none" in difference.reason


def test_one_seed_gives_no_answer_however_large_the_difference() -> None:
    difference = deciding(runs("lift", 60.0, seeds=1) + runs("full", 20.0, seeds=1))
    assert difference.high < 0
    assert difference.answer == "cannot tell"
    assert "one seed" in difference.reason


def test_three_classes_give_no_answer() -> None:
    counts = [500] * 6 + [5] * 3
    outcomes = [
        outcome_of(name, seed, [70.0] * 6 + [few] * 3, counts)
        for name, few in (("lift", 60.0), ("full", 20.0))
        for seed in range(3)
    ]
    verdict = compare_kinds(outcomes, Thresholds().groups(counts))
    assert verdict is not None
    assert verdict.headline == "Cannot tell."
    assert "3 classes are too few" in verdict.deciding[0].reason


def test_if_no_class_is_few_shot_all_classes_decide() -> None:
    counts = [500] * 8
    outcomes = [
        outcome_of(name, seed, [rate + seed] * 8, counts)
        for name, rate in (("lift", 60.0), ("full", 50.0))
        for seed in range(2)
    ]
    verdict = compare_kinds(outcomes, ["many"] * 8)
    assert verdict is not None
    assert [difference.measure for difference in verdict.differences[0]] == ["mean-class"]
    assert verdict.headline == "Yes."


def test_every_heavy_recipe_is_compared_with_lift_and_the_best_other_light_one() -> None:
    outcomes = [
        *runs("lift", 60.0),
        *runs("bias", 50.0),
        *runs("lora", 55.0),
        *runs("head", 90.0),
        *runs("zero-shot", 90.0),
        *runs("full", 40.0),
        *runs("full-adamw", 70.0),
    ]
    verdict = compare_kinds(outcomes, GROUPS)
    assert verdict is not None
    pairs = [(pair.heavy, pair.light, pair.measure) for pair in verdict.differences[0]]
    assert pairs == [
        ("full, SGD", "LIFT", "few"),
        ("full, SGD", "LIFT", "mean-class"),
        ("full, SGD", "LoRA", "few"),
        ("full, SGD", "LoRA", "mean-class"),
    ]
    assert verdict.headline == "It depends: full, SGD: yes; full, AdamW: no"


def test_without_a_heavy_or_a_light_recipe_there_is_no_verdict() -> None:
    assert compare_kinds(runs("lift", 50.0) + runs("head", 40.0), GROUPS) is None
    assert compare_kinds(runs("full", 50.0) + runs("head", 40.0), GROUPS) is None
    all_failed = [failed(outcome) for outcome in runs("full", 50.0)]
    assert compare_kinds(runs("lift", 50.0) + all_failed, GROUPS) is None


def test_only_seeds_that_both_have_and_classes_with_photos_are_paired() -> None:
    lift, full = runs("lift", 60.0), runs("full", 40.0)
    lost = lift[0].model_copy(update={"accuracies": (*lift[0].accuracies[:-1], None)})
    difference = deciding([lost, *lift[1:], failed(full[1]), full[0], full[2]])
    assert (difference.seeds, difference.classes) == (2, 7)


@given(
    st.floats(-50, 50),
    st.integers(1, 4),
    st.integers(1, 30),
    st.floats(0, 20),
)
def test_an_interval_contains_the_mean_and_moves_with_it(
    shift: float, seeds: int, classes: int, noise: float
) -> None:
    points = np.random.default_rng(seeds * classes).normal(0, noise, (seeds, classes))
    low, high = interval(points)
    assert low - 1e-9 <= points.mean() <= high + 1e-9
    assert interval(points + shift) == pytest.approx((low + shift, high + shift), abs=1e-6)


def test_an_interval_is_as_wide_as_classes_and_seeds_vary() -> None:
    random = np.random.default_rng(0)
    by_class = np.tile(random.normal(0, 10, 100), (3, 1))
    low, high = interval(by_class)
    assert high - low == pytest.approx(2 * 1.96 * by_class[0].std() / 10, rel=0.1)
    assert interval(np.full((3, 100), -4.0)) == pytest.approx((-4, -4))


def taken(
    outcomes: list[Outcome], groups: Sequence[Group] = GROUPS, aim: Aim = "mean-class"
) -> tuple[str, str]:
    """Return the label of the recommended recipe, and the sentence."""
    made = recommendation(outcomes, groups, aim)
    assert made is not None
    assert made.sentence.startswith(f"Take {made.row.label}: ")
    return made.row.label, made.sentence


def test_a_cheaper_recipe_that_may_be_as_good_is_taken() -> None:
    label, sentence = taken(runs("full", 60.2, 70.2) + runs("lift", 60.0) + runs("head", 40.0))
    assert label == "LIFT"
    assert "full, SGD is 0." in sentence
    assert sentence.endswith("which may be noise, and trains 85.1 M weights instead of 178 k.")


def test_the_best_is_taken_if_cheaper_ones_are_worse_beyond_noise() -> None:
    label, sentence = taken(runs("full", 60.0, 80.0) + runs("lift", 60.0))
    assert label == "full, SGD"
    assert "worse beyond noise" in sentence
    label, sentence = taken(runs("full", 60.0) + runs("head", 60.0, 80.0))
    assert label == "head only"
    assert "none trains fewer weights" in sentence


def test_a_soup_that_may_be_as_good_is_taken_before_cheaper_ones() -> None:
    rates = {"full": 60.2, "soup": 60.0, "lift": 60.1, "head": 40.0}
    outcomes = [run for name, rate in rates.items() for run in runs(name, rate)]
    label, sentence = taken(outcomes)
    assert label == "soup"
    assert sentence.endswith(
        "may be noise, and an average of several trainings depends less on luck."
    )
    label, sentence = taken(runs("soup", 61.0) + runs("lift", 60.0))
    assert label == "soup"
    assert "it is the best on all classes on average, and an average of several" in sentence
    assert "LIFT is 0." in sentence


def test_a_soup_that_is_worse_beyond_noise_is_not_taken() -> None:
    worse = runs("soup", 50.0, 65.0)
    label, sentence = taken(worse + runs("full", 60.0) + runs("lift", 60.0))
    assert label == "LIFT"
    label, sentence = taken(worse + runs("full", 60.0) + runs("lift", 50.0, 65.0))
    assert label == "full, SGD"
    assert "soups and recipes that train fewer weights are worse beyond noise: soup is" in sentence


def test_one_seed_is_said_to_be_few_and_one_recipe_is_no_choice() -> None:
    _, sentence = taken(runs("full", 60.0, seeds=1) + runs("lift", 50.0, seeds=1))
    assert sentence.endswith("One seed cannot tell luck from method: pass --seeds 0,1,2.")
    assert recommendation(runs("lift", 60.0), GROUPS) is None
    gone = [failed(outcome) for outcome in runs("full", 60.0)]
    assert recommendation([*runs("lift", 60.0), *gone], GROUPS) is None


def seen(name: str, hits: Sequence[str], seed: int = 0) -> Outcome:
    """Return a run with these hits on val/ in each class, and the same accuracy elsewhere."""
    outcome = outcome_of(name, seed, [50.0] * len(hits), [50] * len(hits))
    return outcome.model_copy(update={"hits": tuple(hits), "chosen_on": "made-up val"})


def test_a_photo_more_in_each_of_two_classes_is_noise() -> None:
    """Drawing classes again would never leave this difference."""
    outcomes = [seen("full", ["1111110000"] * 2), seen("lift", ["1111100000"] * 2)]
    label, sentence = taken(outcomes, ["many"] * 2)
    assert label == "LIFT"
    assert "on made-up val, full, SGD is 10.0 points better" in sentence
    # Earlier outcomes have no hits; then two classes do not say anything.
    rates = {"full": 60.0, "lift": 50.0}
    old = [outcome_of(name, 0, [rate] * 2, [50] * 2) for name, rate in rates.items()]
    assert taken(old, ["many"] * 2)[0] == "LIFT"


def test_two_classes_with_many_photos_are_enough() -> None:
    outcomes = [seen("full", ["1" * 90 + "0" * 10] * 2), seen("lift", ["1" * 60 + "0" * 40] * 2)]
    label, sentence = taken(outcomes, ["many"] * 2)
    assert label == "full, SGD"
    assert "LIFT is 30.0 points worse (95 % interval +2" in sentence


def test_the_aim_decides_which_classes_count() -> None:
    groups: list[Group] = ["many", "few"]
    full, lift = ["1" * 90 + "0" * 10, "0" * 100], ["1" * 40 + "0" * 60, "1" * 10 + "0" * 90]
    outcomes = [seen("full", full), seen("lift", lift), seen("head", ["0" * 100] * 2)]
    assert taken(outcomes, groups)[0] == "full, SGD"
    label, sentence = taken(outcomes, groups, "few")
    assert label == "LIFT"
    assert "it is the best on few-shot classes" in sentence
    assert recommendation(outcomes, ["many", "many"], "few") is None


def test_classes_without_photos_do_not_count() -> None:
    outcomes = [seen("full", ["1" * 50, ""]), seen("lift", ["0" * 50, ""])]
    assert taken(outcomes, ["many", "few"])[0] == "full, SGD"


@pytest.mark.parametrize(("classes", "photos"), [(2, 10), (3, 5), (20, 3)])
def test_the_interval_over_photos_holds_the_truth_however_few_the_classes(
    classes: int, photos: int
) -> None:
    """A seed's luck is a photo more or less, of 30 % of them; the recipes are equally good."""
    random = np.random.default_rng(0)
    held, tried = 0, 400
    for _ in range(tried):
        flips = random.choice([-1, 0, 1], size=(classes, photos), p=[0.15, 0.7, 0.15])
        gained, lost = (flips > 0).sum(1), (flips < 0).sum(1)
        low, high = photo_interval([PairedCounts(np.full(classes, photos), gained, lost)])
        held += low <= 0 <= high
    assert held >= 0.93 * tried


def test_seeds_that_disagree_widen_the_interval() -> None:
    def counts(gained: int, lost: int) -> PairedCounts:
        return PairedCounts(*(np.full(4, number) for number in (50, gained, lost)))

    def width(seeds: list[PairedCounts]) -> float:
        low, high = photo_interval(seeds)
        return high - low

    alike, apart = ([counts(5, 5)] * 3, [counts(10, 0), counts(5, 5), counts(0, 10)])
    assert width(apart) > 1.5 * width(alike)
