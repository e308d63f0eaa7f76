"""Few-shot classes that have gone silent, and those whose loss would be hidden."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.streams import SimulatedBundle, batches, few_shot_bundle, simulate
from taillift.service.tail.confusion import estimate_confusion
from taillift.service.tail.distributions import Doubles
from taillift.service.tail.drift import Drift
from taillift.service.tail.reference import Source, expect, reference_from
from taillift.service.tail.silence import Silence

LOOK = 100


class Watch:
    """The drift test and the silence test of one bundle under the uniform reference."""

    def __init__(self, bundle: SimulatedBundle, seed: int) -> None:
        confusion = bundle.confusion
        self.mix = reference_from(Source.UNIFORM, bundle.counts, confusion).prior.copy()
        self.expected = expect(reference_from(Source.UNIFORM, bundle.counts, confusion), confusion)
        self.matrix = bundle.matrix
        self.drift = Drift(self.expected.classes)
        few = np.array([group == "few" for group in bundle.groups])
        self.silence = Silence(self.expected, few, self.drift)
        self._rng = np.random.default_rng(seed)

    def run(self, mix: Doubles, looks: int, until: int | None = None) -> float:
        """Return the predictions until the class `until` is silent, infinite if it is not."""
        rates = mix / mix.sum() @ self.matrix
        for look, counts in enumerate(batches(self._rng, rates, LOOK, looks), 1):
            self.silence.update(counts, LOOK)
            self.drift.update(counts, LOOK)
            if until is not None and self.silence.found[until]:
                return look * LOOK
        return float("inf")


@pytest.mark.parametrize("before", [0, 100])
def test_a_lost_class_is_called_silent_within_the_promised_delay(before: int) -> None:
    late = 0
    for seed in range(10):
        watch = Watch(few_shot_bundle(20), seed)
        watch.run(watch.mix, before)
        promise = float(watch.silence.delay()[3])
        assert promise < 1_200
        mix = watch.mix.copy()
        mix[3] = 0
        late += watch.run(mix, 40, until=3) > promise + LOOK
        assert np.flatnonzero(watch.silence.found).tolist() in ([3], [])
    assert late <= 1


def test_a_class_that_is_half_as_frequent_drifts_and_is_not_silent() -> None:
    watch = Watch(few_shot_bundle(20, held_out=50), 0)
    watch.run(watch.mix, 200)
    mix = watch.mix.copy()
    mix[3] /= 2
    watch.run(mix, 200)
    assert watch.drift.found[3]
    assert not watch.silence.found.any()


@pytest.mark.parametrize("held_out", [1, 5, 20])
def test_expected_traffic_silences_nothing(held_out: int) -> None:
    for seed in range(5):
        watch = Watch(simulate(seed, held_out), seed)
        watch.run(watch.mix, 100)
        assert not watch.silence.found.any()


def test_only_few_shot_classes_are_called_silent() -> None:
    watch = Watch(simulate(1, 20), 1)
    mix = watch.mix.copy()
    mix[0] = 0
    watch.run(mix, 150)
    assert watch.drift.found[0]
    assert not watch.silence.found.any()


def test_a_hidden_loss_has_an_infinite_delay() -> None:
    confusion = estimate_confusion(
        ["many", "few"], [(0, 0, 500), (0, 1, 500), (1, 1, 500), (1, 0, 500)]
    )
    expected = expect(reference_from(Source.UNIFORM, [1, 1], confusion), confusion)
    drift = Drift(expected.classes)
    silence = Silence(expected, np.array([False, True]), drift)
    assert silence.hidden.tolist() == [True]
    assert np.isinf(silence.delay()).all()
    silence.update(np.array([1_000, 0]), 1_000)
    assert not silence.found.any()


def test_without_few_shot_classes_nothing_is_watched() -> None:
    confusion = estimate_confusion(["many", "medium"], [])
    expected = expect(reference_from(Source.UNIFORM, [1, 1], confusion), confusion)
    silence = Silence(expected, np.array([False, False]), Drift(expected.classes))
    silence.update(np.array([1_000, 0]), 1_000)
    assert (len(silence.delay()), silence.found.tolist()) == (0, [False, False])


def test_the_chance_of_so_few_includes_what_held_out_photos_leave_open() -> None:
    watch = Watch(few_shot_bundle(20), 0)
    rates = watch.expected.classes
    chance = watch.silence.chance(3, 2, 150)
    assert chance == pytest.approx(stats.betabinom(150, rates.a[3], rates.b[3]).cdf(2), rel=1e-9)
    assert chance > stats.binom(150, rates.mean[3]).cdf(2)
