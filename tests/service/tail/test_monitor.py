"""The monitor: one call per prediction, and the state that is read from it."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.streams import SimulatedBundle, few_shot_bundle, simulate
from taillift.service.monitoring.store import Store
from taillift.service.tail.monitor import WEEK, ModelProfile, Rules, TailMonitor
from taillift.service.tail.reference import Source
from taillift.service.tail.snapshot import restore, to_arrays
from taillift.service.tail.state import class_state, tail_state

START = 1.7e9
UNIFORM = Rules(reference=Source.UNIFORM)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def profile(bundle: SimulatedBundle, version: str = "v1") -> ModelProfile:
    return ModelProfile(
        version=version,
        labels=tuple(f"class {index}" for index in range(len(bundle.groups))),
        groups=tuple(bundle.groups),
        counts=tuple(bundle.counts),
        pairs=tuple(bundle.pairs),
    )


def feed(
    monitor: TailMonitor,
    clock: Clock,
    bundle: SimulatedBundle,
    predictions: int,
    lost: int | None = None,
) -> None:
    """Observe one image a minute, of all classes equally often except the `lost` one."""
    mix = np.ones(len(bundle.groups))
    if lost is not None:
        mix[lost] = 0
    rng = np.random.default_rng(0)
    labels = rng.choice(len(mix), predictions, p=mix / mix.sum() @ bundle.matrix)
    for label in labels.tolist():
        clock.now += 60
        monitor.observe(label, 0.9 if label % 2 else 0.5)


def test_a_new_monitor_shows_every_class_and_finds_none() -> None:
    monitor = TailMonitor(profile(simulate(0, 5)), UNIFORM, Clock())
    state = tail_state(monitor)
    assert (state.predictions, state.drifting, state.silent) == (0, 0, 0)
    assert [group.group for group in state.groups] == ["many", "medium", "few"]
    assert state.groups[2].prevalence == pytest.approx(1 / 3)
    assert state.groups[2].verdict == "as expected"
    shown = class_state(monitor, 29)
    assert (shown.predicted, shown.chance, shown.confidence, shown.last_seen) == (0, 1, None, None)
    assert math.isnan(shown.ratio)
    assert (shown.interval.low, shown.interval.high) == (0, 1)


def test_expected_traffic_is_as_expected() -> None:
    bundle, clock = few_shot_bundle(20), Clock()
    monitor = TailMonitor(profile(bundle), UNIFORM, clock)
    feed(monitor, clock, bundle, 5_000)
    state, shown = tail_state(monitor), class_state(monitor, 3)
    assert (state.drifting, state.silent, state.window_predictions) == (0, 0, 5_000)
    assert state.classes.predicted.sum() == 5_000
    assert state.classes.expected.sum() == pytest.approx(5_000)
    assert shown.predicted == state.classes.predicted[3]
    assert shown.expected == pytest.approx(250, rel=0.1)
    assert shown.interval.low < shown.predicted / 5_000 < shown.interval.high
    assert shown.expected_interval.low < 0.05 < shown.expected_interval.high
    assert shown.ratio == pytest.approx(1, abs=0.25)
    assert shown.verdict == "as expected"
    assert shown.confidence is not None
    assert shown.confidence.median == pytest.approx(0.91, abs=0.011)
    assert (state.groups[0].share, state.groups[0].prevalence) == (1, 1)


def test_a_lost_class_is_silent() -> None:
    bundle, clock = few_shot_bundle(20), Clock()
    monitor = TailMonitor(profile(bundle), UNIFORM, clock)
    feed(monitor, clock, bundle, 2_000)
    promise = class_state(monitor, 3).silence_delay
    assert promise is not None
    feed(monitor, clock, bundle, math.ceil(promise), lost=3)
    state, shown = tail_state(monitor), class_state(monitor, 3)
    assert np.flatnonzero(state.classes.silent).tolist() == [3]
    assert shown.verdict == "silent"
    assert shown.silence_e_value is not None
    assert shown.silence_e_value > 600
    assert shown.ratio < 1


def test_the_window_forgets_but_the_evidence_does_not() -> None:
    bundle, clock = few_shot_bundle(20), Clock()
    monitor = TailMonitor(profile(bundle), UNIFORM, clock)
    feed(monitor, clock, bundle, 3_000, lost=3)
    clock.now += WEEK
    state, shown = tail_state(monitor), class_state(monitor, 3)
    assert (state.window_predictions, shown.predicted, shown.confidence) == (0, 0, None)
    assert state.predictions == 3_000
    assert shown.verdict == "silent"
    assert shown.last_seen is not None
    assert START < shown.last_seen < clock.now - WEEK


def test_group_shares_are_corrected() -> None:
    bundle, clock = simulate(3, 50), Clock()
    monitor = TailMonitor(profile(bundle), UNIFORM, clock)
    feed(monitor, clock, bundle, 3_000)
    few = tail_state(monitor).groups[2]
    assert few.prevalence_interval.low < 1 / 3 < few.prevalence_interval.high
    assert few.interval.low < few.share < few.interval.high
    assert few.expected_interval.low < few.expected_share < few.expected_interval.high


def test_frequent_looks_change_no_count() -> None:
    bundle = few_shot_bundle(5)
    clocks = [Clock(), Clock()]
    rarely, often = (TailMonitor(profile(bundle), UNIFORM, clock) for clock in clocks)
    for number in range(100):
        for monitor, clock in zip((rarely, often), clocks, strict=True):
            clock.now += 60
            monitor.observe(number % 5, 0.5)
        tail_state(often)
    states = [tail_state(monitor).classes for monitor in (rarely, often)]
    np.testing.assert_array_equal(states[0].predicted, states[1].predicted)
    np.testing.assert_array_equal(states[0].last_seen, states[1].last_seen)


@pytest.mark.parametrize("times", [1, 3])
def test_every_look_finds_what_a_fresh_monitor_with_the_same_past_finds(times: int) -> None:
    bundle, clock = few_shot_bundle(20), Clock()
    monitor = TailMonitor(profile(bundle), UNIFORM, clock)
    rates = np.ones(len(bundle.groups)) / len(bundle.groups) @ bundle.matrix
    labels = np.random.default_rng(0).choice(len(rates), 6_000 // times, p=rates).repeat(times)
    for start in range(0, len(labels), 250):
        for label in labels[start : start + 250].tolist():
            monitor.observe(label, 0.5)
        monitor.refresh()
        fresh = TailMonitor(profile(bundle), UNIFORM, clock)
        restore(fresh, to_arrays(monitor))
        np.testing.assert_allclose(fresh.drift.e_values, monitor.drift.e_values, rtol=1e-3)
        silence, wanted = (one.silence.evidence.e_values for one in (fresh, monitor))
        np.testing.assert_allclose(silence, wanted, rtol=1e-3)


def test_a_restart_loses_nothing(tmp_path: Path) -> None:
    bundle, clock = few_shot_bundle(20), Clock()
    before = TailMonitor(profile(bundle), UNIFORM, clock)
    feed(before, clock, bundle, 3_000, lost=3)
    wanted = tail_state(before)
    with Store(tmp_path / "tail.db") as store:
        store.save("v1", to_arrays(before))
    later = Clock()
    later.now = clock.now
    after = TailMonitor(profile(bundle), UNIFORM, later)
    with Store(tmp_path / "tail.db") as store:
        restore(after, store.load("v1"))
    got = tail_state(after)
    assert got.groups == wanted.groups
    for name, values in vars(wanted.classes).items():
        np.testing.assert_array_equal(getattr(got.classes, name), values)
    assert class_state(after, 3) == class_state(before, 3)
    feed(before, clock, bundle, 500)
    feed(after, later, bundle, 500)
    assert tail_state(before).classes.e_value == pytest.approx(tail_state(after).classes.e_value)


def test_saved_arrays_do_not_change_when_the_monitor_goes_on() -> None:
    bundle, clock = few_shot_bundle(5), Clock()
    monitor = TailMonitor(profile(bundle), UNIFORM, clock)
    feed(monitor, clock, bundle, 300)
    monitor.refresh()
    arrays = to_arrays(monitor)
    copies = {name: array.copy() for name, array in arrays.items()}
    feed(monitor, clock, bundle, 300)
    monitor.refresh()
    for name, array in copies.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_under_another_level_the_evidence_begins_anew_and_the_window_does_not() -> None:
    bundle, clock = few_shot_bundle(20), Clock()
    before = TailMonitor(profile(bundle), UNIFORM, clock)
    feed(before, clock, bundle, 3_000, lost=3)
    before.refresh()
    after = TailMonitor(profile(bundle), Rules(Source.UNIFORM, level=0.01), clock)
    restore(after, to_arrays(before))
    state = tail_state(after)
    assert (state.predictions, state.window_predictions) == (0, 3_000)
    assert state.silent == 0


def test_without_saved_arrays_the_monitor_starts_fresh() -> None:
    monitor = TailMonitor(profile(few_shot_bundle(5)), UNIFORM, Clock())
    restore(monitor, {})
    assert tail_state(monitor).predictions == 0


def test_counting_began_with_the_first_prediction_also_after_a_restart(tmp_path: Path) -> None:
    clock, bundle = Clock(), simulate(0, 5)
    monitor = TailMonitor(profile(bundle), UNIFORM, clock)
    assert monitor.counted_since is None
    feed(monitor, clock, bundle, 20)
    monitor.refresh()
    assert monitor.counted_since == START + 60
    with Store(tmp_path / "tail.npz") as store:
        store.save("v1", to_arrays(monitor))
        again = TailMonitor(profile(bundle), UNIFORM, clock)
        restore(again, store.load("v1"))
    feed(again, clock, bundle, 20)
    again.refresh()
    assert again.counted_since == START + 60
    clock.now += WEEK
    monitor.refresh()
    assert monitor.counted_since is None
    feed(monitor, clock, bundle, 1)
    monitor.refresh()
    assert clock.now - WEEK / 12 <= (monitor.counted_since or 0) <= clock.now


def test_counts_of_an_old_tail_file_began_with_their_part_of_the_window() -> None:
    clock, bundle = Clock(), simulate(0, 5)
    monitor = TailMonitor(profile(bundle), UNIFORM, clock)
    feed(monitor, clock, bundle, 20)
    monitor.refresh()
    arrays = to_arrays(monitor)
    del arrays["began"]
    again = TailMonitor(profile(bundle), Rules(reference=Source.TRAIN), clock)
    restore(again, arrays)
    feed(again, clock, bundle, 20)
    again.refresh()
    assert again.counted_since == START // (WEEK / 12) * (WEEK / 12)


def test_as_expected_is_said_only_after_enough_predictions() -> None:
    clock, bundle = Clock(), simulate(0, 5)
    monitor = TailMonitor(profile(bundle), UNIFORM, clock)
    missing = [tail_state(monitor).classes.missing]
    for _ in range(3):
        feed(monitor, clock, bundle, 1_000)
        missing.append(tail_state(monitor).classes.missing)
    known = np.isfinite(missing[0])
    assert known.any()
    assert (missing[0][known] >= 1_500).all(), "at first nothing shows what depends on what"
    for before, after in itertools.pairwise(missing):
        assert (after[known] <= before[known]).all()
    first = tail_state(TailMonitor(profile(bundle), UNIFORM, Clock())).groups[0]
    assert first.words.startswith("not enough evidence yet: ")
    assert dataclasses.replace(first, missing=0.0).words == "as expected"
    assert dataclasses.replace(first, missing=math.inf).words == "not enough evidence yet"
    assert dataclasses.replace(first, verdict="fewer").words == "fewer"


def test_dependent_predictions_are_missed_for_longer() -> None:
    clock, bundle = Clock(), simulate(0, 5)
    monitor, films = (TailMonitor(profile(bundle), UNIFORM, clock) for _ in range(2))
    labels = np.random.default_rng(0).integers(0, len(bundle.groups), 3_000)
    for label in labels.tolist():
        monitor.observe(label, 0.9)
    for label in np.repeat(labels[:100], 30).tolist():
        films.observe(label, 0.9)
    alone, in_films = (tail_state(each).classes.missing for each in (monitor, films))
    assert (in_films >= alone).all()
    assert (in_films > alone).any()
