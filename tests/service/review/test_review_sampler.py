"""The choice of photos to label: how often rare ones are drawn, the budget, and what p is worth."""

from random import Random
from typing import NamedTuple

import numpy as np
import pytest

from taillift.models.bundle.arrays import Doubles, Flags, Floats
from taillift.service.feedback.live_accuracy import WeightedSums
from taillift.service.review.review_sampler import DAY, ReviewSampler
from tests.support.simulated_labels import FEW, PHOTOS, simulated_stream

RARE = 0.045


class Stream(NamedTuple):
    """Photos of a simulated time: when each came, and whether it is rare and answered rightly.

    `mass` [N] is what the model gives to few-shot classes; the truth is drawn from it.
    """

    times: Doubles
    mass: Doubles
    rare: Flags
    right: Flags


def stream(seed: int, days: float, a_day: int) -> Stream:
    """Simulate photos of which `RARE` show a few-shot class, more by day than by night.

    The model is calibrated: of photos with a mass m, the share m is rare. It is wrong more often
    if it is unsure, and on rare photos.
    """
    rng = np.random.default_rng(seed)
    size = int(days * a_day)
    hours = np.sort(rng.uniform(0, days, size))
    times = DAY * (hours + 0.12 * np.sin(2 * np.pi * hours))
    likely = rng.random(size) < 0.06
    mass = np.where(likely, rng.beta(3, 2, size), rng.beta(0.3, 30, size))
    mass *= RARE / mass.mean()
    rare = rng.random(size) < mass
    right = rng.random(size) < np.where(rare, 0.55, 0.75 - 0.4 * mass)
    return Stream(np.sort(times), mass, rare, right)


def sample(photos: Stream, per_day: float, seed: int = 0) -> Doubles:
    """Return the probability with which each photo was drawn, [N]; 0 for those that were not."""
    now = 0.0
    sampler = ReviewSampler(per_day, lambda: now, Random(seed))
    probabilities = np.zeros(len(photos.times))
    for index, mass in enumerate(photos.mass.tolist()):
        now = float(photos.times[index])
        probabilities[index] = sampler.draw(mass, lambda: True)
    return probabilities


@pytest.fixture(scope="module")
def month() -> tuple[Stream, Doubles]:
    photos = stream(seed=1, days=30, a_day=2_000)
    return photos, sample(photos, per_day=100)


def test_rare_photos_are_offered_twice_as_often_as_by_a_random_queue(
    month: tuple[Stream, Doubles],
) -> None:
    photos, p = month
    kept = p > 0
    at_random = kept.sum() * photos.rare.mean()
    assert photos.rare[kept].sum() > 4 * at_random


def test_rare_photos_are_offered_twice_as_often_by_a_model_that_hardly_tells_them() -> None:
    """Half of the rare photos look like any others to this model."""
    photos = stream(seed=7, days=30, a_day=2_000)
    missed = np.random.default_rng(7).random(len(photos.mass)) < 0.5
    unsure = photos._replace(mass=np.where(missed, RARE * photos.mass, photos.mass))
    kept = sample(unsure, per_day=100) > 0
    assert photos.rare[kept].sum() > 2 * kept.sum() * photos.rare.mean()


def test_about_the_budget_is_kept_over_a_month_and_in_each_week(
    month: tuple[Stream, Doubles],
) -> None:
    photos, p = month
    days = (photos.times // DAY).astype(int)
    by_day = np.bincount(days, p > 0, minlength=30)[:30]
    assert by_day.sum() == pytest.approx(3_000, rel=0.02)
    weeks = by_day[2:].reshape(4, 7).sum(1)
    assert np.abs(weeks / 700 - 1).max() < 0.06
    assert by_day.max() < 150


@pytest.mark.parametrize("a_day", [200, 20_000])
def test_the_budget_holds_for_few_and_for_many_photos(a_day: int) -> None:
    photos = stream(seed=2, days=4, a_day=a_day)
    days = (photos.times // DAY).astype(int)
    by_day = np.bincount(days, sample(photos, per_day=100) > 0)
    assert by_day[0] < 150
    assert by_day[1:4].sum() == pytest.approx(300, rel=0.2)


def test_with_fewer_photos_than_the_budget_nearly_all_are_kept() -> None:
    photos = stream(seed=3, days=10, a_day=60)
    later = photos.times > 2 * DAY
    p = sample(photos, per_day=100)
    assert (p[later] > 0).mean() > 0.9


def test_the_budget_holds_for_a_camera_that_mostly_sends_the_same_scene() -> None:
    """All but one of 50 photos look like one that is kept."""
    photos = stream(seed=8, days=12, a_day=20_000)
    new = np.random.default_rng(8).random(len(photos.mass)) < 0.02
    now = 0.0
    sampler = ReviewSampler(100, lambda: now, Random(0))
    kept = np.zeros(len(new), bool)
    for index, (mass, eligible) in enumerate(zip(photos.mass.tolist(), new.tolist(), strict=True)):
        now = float(photos.times[index])
        kept[index] = sampler.draw(mass, lambda: eligible) > 0  # noqa: B023
    by_day = np.bincount((photos.times // DAY).astype(int), kept, minlength=12)[:12]
    assert by_day[6:].mean() == pytest.approx(100, rel=0.15)
    assert by_day.max() < 200


def test_when_ten_times_as_many_photos_come_the_budget_holds_again_the_day_after() -> None:
    quiet, busy = stream(seed=4, days=5, a_day=500), stream(seed=5, days=6, a_day=5_000)
    times = np.concatenate([quiet.times, busy.times + 5 * DAY])
    joined = Stream(
        times, *(np.concatenate(pair) for pair in zip(quiet[1:], busy[1:], strict=True))
    )
    days = (times // DAY).astype(int)
    by_day = np.bincount(days, sample(joined, 100) > 0, minlength=11)
    assert by_day[5:].max() < 250
    assert by_day[6:].mean() == pytest.approx(100, rel=0.2)


def test_the_live_accuracy_from_such_a_queue_is_right_and_the_plain_one_is_not() -> None:
    """60 runs of 5,000 photos in three days with a budget of 100 a day, with a known truth."""
    times = np.linspace(0, 3 * DAY, PHOTOS)
    within, errors, plain, found = np.zeros(2), [], [], []
    for seed in range(60):
        photos = simulated_stream(seed)
        mass = photos.posteriors[:, FEW].sum(1)
        p = sample(Stream(times, mass, photos.rare, photos.right), 100, seed)
        drawn = p > 0
        # The second kind is that of the rare photos, whose share is their recall.
        sums = WeightedSums.none_yet(2)
        for kind, chosen in enumerate((drawn, drawn & photos.rare)):
            kinds = np.full(chosen.sum(), kind)
            sums.add(kinds, 1 / p[chosen], photos.right[chosen])
        truths = photos.right.mean(), photos.right[photos.rare].mean()
        shares = sums.shares()
        within += [
            share.low <= truth <= share.high for share, truth in zip(shares, truths, strict=True)
        ]
        errors.append([share.estimate - truth for share, truth in zip(shares, truths, strict=True)])
        plain.append(photos.right[drawn].mean() - truths[0])
        found.append(photos.rare[drawn].mean() / photos.rare.mean())
    assert within.min() / 60 >= 0.93
    assert np.abs(np.mean(errors, 0)).max() < 0.02
    assert np.mean(plain) < -0.05
    assert np.mean(found) > 2


def test_the_probability_is_known_before_the_draw() -> None:
    """Two samplers with different luck give the first photo the same probability."""
    samplers = [ReviewSampler(100, lambda: 0.0, Random(seed)) for seed in range(400)]
    drawn = [sampler.draw(0.3, lambda: True) for sampler in samplers]
    (p,) = {p for p in drawn if p}
    assert p == pytest.approx(0.32)
    assert np.mean(np.array(drawn) > 0) == pytest.approx(0.32, abs=0.08)


def test_a_photo_that_is_not_eligible_has_no_probability_and_uses_no_budget() -> None:
    sampler = ReviewSampler(1, lambda: 0.0, Random(0))
    assert [sampler.draw(1.0, lambda: False) for _ in range(9)] == [0.0] * 9
    assert ReviewSampler(1, lambda: 0.0, Random(0)).draw(1.0, lambda: True) > 0


def row(*values: float) -> Floats:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("features", "digest", "version", "new"),
    [
        (row(2, 0.2, 0), 9, "v", False),  # Its cosine with the first is 0.995.
        (row(1, 0.4, 0), 9, "v", True),  # 0.93
        (row(1, 0, 0), 9, "w", True),  # Features of another version mean nothing here.
        (row(0, 0, 1), 7, "w", False),  # The same file.
        (row(0, 0, 0), 9, "v", True),
    ],
)
def test_photos_that_look_like_one_that_is_kept_are_not_new(
    features: Floats, digest: int, version: str, new: bool
) -> None:
    sampler = ReviewSampler(100)
    sampler.remember("a", "v", 7, row(1, 0, 0))
    sampler.remember("b", "v", 8, row(0, 0, 0))
    assert sampler.is_new(version, digest, features) == new
    sampler.forget("a")
    assert sampler.is_new(version, digest, features)


def test_a_clock_that_goes_back_does_not_upset_the_budget() -> None:
    """The clock of a machine may be set, back or forth."""
    steady = [1e6 + 43.2 * photo for photo in range(20_000)]
    times = iter([1e6, 0.0, 0.0, *steady])
    sampler = ReviewSampler(100, lambda: next(times), Random(1))
    drawn = [sampler.draw(0.1, lambda: True) for _ in range(20_002)]
    assert max(drawn) <= 1
    assert np.count_nonzero(drawn[10_002:]) == pytest.approx(500, rel=0.2)
