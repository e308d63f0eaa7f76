"""How dependent a stream is, and that its findings do not come from that."""

import numpy as np
import pytest

from benchmarks.streams import few_shot_bundle
from taillift.service.tail.dependence import (
    LONGEST,
    MAX_DIGESTS,
    Dependence,
    Sightings,
    group_digest,
    image_digest,
)
from taillift.service.tail.monitor import ModelProfile, Rules, TailMonitor
from taillift.service.tail.reference import Source
from taillift.service.tail.snapshot import restore, to_arrays

RATES = np.full(20, 0.05)


def learned(labels: np.ndarray) -> Dependence:
    dependence = Dependence(RATES)
    for start in range(0, len(labels), LONGEST):
        dependence.learn(labels[start : start + LONGEST])
    return dependence


def bursts(times: int, length: int, seed: int = 0) -> np.ndarray:
    things = np.random.default_rng(seed).choice(20, length // times + 1, p=RATES)
    return np.repeat(things, times)[:length]


def monitor_of(labels: np.ndarray) -> TailMonitor:
    bundle = few_shot_bundle(20)
    names = tuple(f"class {index}" for index in range(20))
    profile = ModelProfile(
        "v1", names, tuple(bundle.groups), tuple(bundle.counts), tuple(bundle.pairs)
    )
    monitor = TailMonitor(profile, Rules(Source.UNIFORM), lambda: 0.0)
    for label in labels.tolist():
        monitor.observe(label, 0.9)
    monitor.refresh()
    return monitor


@pytest.mark.parametrize("times", [1, 3, 10, 30])
def test_the_design_effect_is_about_the_number_of_shots(times: int) -> None:
    effect = learned(bursts(times, 12_000)).design_effect
    assert times <= effect + 0.3 * times
    assert effect < 2 * times


def test_it_does_not_depend_on_how_predictions_are_split() -> None:
    labels = bursts(10, 5_000)
    whole, single = learned(labels), Dependence(RATES)
    for start in range(0, len(labels), 7):
        single.learn(labels[start : start + 7])
    assert single.predictions == whole.predictions
    np.testing.assert_allclose(single.sums[0, :, 0], whole.sums[0, :, 0])
    assert single.design_effect == pytest.approx(whole.design_effect, rel=0.05)


def test_a_change_of_all_rates_is_not_taken_for_dependence() -> None:
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.integers(0, 20, 20_000), rng.integers(0, 5, 20_000)])
    assert learned(labels).design_effect < 3


def test_at_first_a_stream_is_taken_to_be_dependent() -> None:
    assert Dependence(RATES).design_effect == 64
    assert learned(bursts(1, 1_500)).design_effect == 1


def test_one_class_may_be_more_dependent_than_the_rest() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 19, 10_000)
    for start in range(0, 10_000, 1_000):
        labels[start : start + 20] = 19
    effects = learned(labels).class_effects
    assert effects[19] > 8
    assert effects[:19].max() < 3


@pytest.mark.parametrize("times", [3, 10, 30])
def test_bursts_at_the_expected_rates_find_nothing(times: int) -> None:
    monitor = monitor_of(bursts(times, 6_000))
    assert not monitor.drift.found.any()
    assert not monitor.silence.found.any()


def test_a_lost_class_is_found_in_a_stream_of_pairs() -> None:
    labels = bursts(2, 12_000)
    monitor = monitor_of(labels[labels != 3])
    assert np.flatnonzero(monitor.silence.found).tolist() == [3]


def test_one_photo_of_a_lost_class_does_not_hide_its_silence() -> None:
    monitor = monitor_of(bursts(1, 3_000))
    rest = bursts(1, 2_000, seed=1)
    for number, label in enumerate(rest[rest != 3].tolist()):
        monitor.observe(label, 0.9)
        if number % 60 == 0:
            monitor.observe(3, 0.9, [image_digest(b"the same photo")])
    monitor.refresh()
    assert np.flatnonzero(monitor.silence.found).tolist() == [3]


def test_a_restart_keeps_the_estimate_and_an_old_file_begins_it_anew() -> None:
    before = monitor_of(bursts(10, 5_000))
    arrays = to_arrays(before)
    after = monitor_of(np.zeros(0, np.int64))
    restore(after, arrays)
    assert after.dependence.design_effect == before.dependence.design_effect
    np.testing.assert_array_equal(after.drift.e_values, before.drift.e_values)
    old = {
        name: array
        for name, array in arrays.items()
        if not name.startswith(("dependence/", "sightings/"))
        and name not in {"held", "predictions"}
    }
    old["drift/predictions"] = np.array(5_000)
    anew = monitor_of(np.zeros(0, np.int64))
    restore(anew, old)
    assert (anew.predictions, anew.dependence.predictions) == (5_000, 0)
    assert anew.dependence.design_effect == 64


def test_a_thing_is_known_within_the_window_and_memory_is_bounded() -> None:
    seen = Sightings(100.0)
    photo, group = image_digest(b"photo"), group_digest("photo")
    assert photo != group
    assert not seen.add([photo], 0.0)
    assert seen.add([photo, group], 50.0)
    assert seen.add([group], 149.0)
    assert not seen.add([photo], 150.0)
    for digest in range(1, MAX_DIGESTS + 1):
        seen.add([digest], 150.0)
    assert not seen.add([photo], 150.0)
    again = Sightings(100.0)
    again.restore(seen.digests, seen.times, seen.next)
    assert again.add([photo, MAX_DIGESTS], 151.0)
