"""The prior that follows the groups' shares: how far it moves, and when it stands still."""

import numpy as np
import pytest

from benchmarks.streams import SimulatedBundle, simulate
from taillift.models.bundle.schema import GROUPS
from taillift.models.errors import UserError
from taillift.service.tail.distributions import Doubles
from taillift.service.tail.monitor import ModelProfile, Rules, TailMonitor
from taillift.service.tail.prevalence import LiveRules, LiveShares, nearest
from taillift.service.tail.reference import Source
from taillift.service.tail.snapshot import restore, to_arrays

BUNDLE = simulate(3, held_out=20, per_group=5)
EVEN = np.full(3, 1 / 3)
TRAIN = np.array(BUNDLE.counts, np.float64)


class Clock:
    now = 1.7e9

    def __call__(self) -> float:
        return self.now


def new_monitor(
    reference: Source = Source.TRAIN, bundle: SimulatedBundle = BUNDLE, clock: Clock | None = None
) -> TailMonitor:
    profile = ModelProfile(
        version="v1",
        labels=tuple(f"class {index}" for index in range(len(bundle.groups))),
        groups=tuple(bundle.groups),
        counts=tuple(bundle.counts),
        pairs=tuple(bundle.pairs),
    )
    return TailMonitor(profile, Rules(reference=reference, live=LiveRules()), clock or Clock())


def feed(monitor: TailMonitor, mix: Doubles, predictions: int, seed: int = 0) -> None:
    """Observe predictions of images whose classes are mixed like `mix` [C]."""
    rates = mix / mix.sum() @ BUNDLE.matrix
    labels = np.random.default_rng(seed).choice(len(mix), predictions, p=rates / rates.sum())
    for label in labels.tolist():
        monitor.observe(label, 0.5)
    monitor.refresh()


def current(monitor: TailMonitor) -> LiveShares:
    assert monitor.live is not None
    return monitor.live.current


def shares(monitor: TailMonitor) -> Doubles:
    return np.array([*current(monitor).shares.values()])


def in_groups(mix: Doubles) -> Doubles:
    group = [GROUPS.index(name) for name in BUNDLE.groups]
    return np.bincount(group, mix / mix.sum(), 3).astype(np.float64)


def test_before_there_are_enough_images_all_classes_are_equally_likely() -> None:
    monitor = new_monitor()
    feed(monitor, TRAIN[::-1], 199)
    np.testing.assert_allclose(shares(monitor), EVEN, atol=1e-6)
    np.testing.assert_allclose(current(monitor).log_prior, -np.log(15), atol=1e-5)
    assert (current(monitor).as_of, current(monitor).frozen) == (None, "")


def test_the_shares_are_estimated_after_every_100_images_however_they_are_counted() -> None:
    monitor = new_monitor()
    changes, before = [], current(monitor)
    for image in range(450):
        monitor.observe(image * 7 % 15, 0.5)
        if image % 33 == 0:
            monitor.refresh()  # A scrape.
        if current(monitor) is not before:
            changes.append(image + 1)
            before = current(monitor)
    assert changes == [200, 300, 400]


def test_a_balanced_stream_moves_nothing() -> None:
    for seed in range(2):
        monitor = new_monitor()
        feed(monitor, np.ones(15), 2_000, seed)
        np.testing.assert_allclose(shares(monitor), EVEN, atol=0.03)


@pytest.mark.parametrize("mix", [TRAIN, TRAIN[::-1]], ids=["as in training", "reversed"])
def test_a_skewed_stream_is_followed_toward_its_shares_and_not_beyond(mix: Doubles) -> None:
    monitor = new_monitor()
    feed(monitor, mix, 2_000)
    moved, true = shares(monitor) - EVEN, in_groups(mix) - EVEN
    assert moved @ true / (true @ true) == pytest.approx(0.7, abs=0.25)
    assert shares(monitor).sum() == pytest.approx(1, abs=2e-6)
    assert np.exp(current(monitor).log_prior).sum() == pytest.approx(1)
    assert (current(monitor).as_of, current(monitor).frozen) == (Clock.now, "")


def test_alarms_that_the_groups_shares_explain_do_not_stop_it() -> None:
    monitor = new_monitor(Source.TRAIN)
    feed(monitor, TRAIN[::-1], 3_000)
    assert monitor.drift.found.any()
    assert current(monitor).frozen == ""


def test_it_stands_still_while_few_shot_classes_are_missing() -> None:
    """The rare classes come often, and then none of their images is recognised any more."""
    clock, few = Clock(), np.array([name == "few" for name in BUNDLE.groups])
    monitor = new_monitor(Source.UNIFORM, clock=clock)
    feed(monitor, np.where(few, 3.0, 1.0), 2_000)
    assert shares(monitor)[2] > 0.4
    alarms = 0
    for seed in range(25):
        before = current(monitor)
        clock.now += 60
        feed(monitor, np.where(few, 0.0, 1.0), 100, seed)
        if monitor.silence.found.any():
            alarms += 1
            assert "few-shot" in current(monitor).frozen
            assert (current(monitor).shares, current(monitor).as_of) == (
                before.shares,
                before.as_of,
            )
        # A change of the rates looks like dependence for a while: no alarm, and wide intervals.
        assert shares(monitor)[2] > 0.333
    assert alarms > 10


def test_a_stream_of_one_class_moves_nothing_and_is_forgotten() -> None:
    for label in (7, 14):
        monitor = new_monitor()
        feed(monitor, np.eye(15)[label], 500)
        np.testing.assert_allclose(shares(monitor), EVEN, atol=1e-6)
        assert f"class {label}" in current(monitor).frozen
        feed(monitor, np.ones(15), 1_000)
        assert current(monitor).frozen == ""
        np.testing.assert_allclose(shares(monitor), EVEN, atol=0.03)


def test_a_restart_loses_nothing() -> None:
    one, other = new_monitor(), new_monitor()
    feed(one, TRAIN, 1_230)
    restore(other, to_arrays(one))
    assert (current(other).shares, current(other).as_of) == (
        current(one).shares,
        current(one).as_of,
    )
    for monitor in (one, other):
        feed(monitor, TRAIN[::-1], 500)
    assert current(other).shares == current(one).shares


def test_a_file_from_before_it_begins_it_anew() -> None:
    one, other = new_monitor(), new_monitor()
    feed(one, TRAIN, 1_000)
    arrays = to_arrays(one)
    restore(other, {name: one for name, one in arrays.items() if not name.startswith("live/")})
    np.testing.assert_allclose(shares(other), EVEN, atol=1e-6)
    assert other.predictions == 1_000
    with pytest.raises(ValueError, match="live/shares"):
        restore(new_monitor(), {name: one for name, one in arrays.items() if name != "live/shares"})


def test_too_few_held_out_photos_are_refused() -> None:
    few = simulate(0, held_out=0, per_group=4)
    with pytest.raises(UserError, match="0 held-out photos of the group 'many'"):
        new_monitor(bundle=few)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ([0.2, 0.2, 0.2], [0.5, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]),
        ([0.6, 0.0, 0.0], [0.8, 0.3, 0.3], [0.6, 0.2, 0.2]),
        ([0.0, 0.0, 0.5], [0.1, 0.5, 0.9], [0.1, 0.4, 0.5]),
        ([0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]),
    ],
)
def test_the_nearest_shares_in_a_box(
    low: list[float], high: list[float], expected: list[float]
) -> None:
    found = nearest(EVEN, np.array(low), np.array(high))
    np.testing.assert_allclose(found, expected, atol=1e-9)
