"""The sequential test for drift: what it finds, how soon, and how rarely it is wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.streams import SimulatedBundle, batches, few_shot_bundle, simulate
from taillift.service.tail.distributions import Doubles
from taillift.service.tail.drift import Drift, Evidence, discoveries, log_lower_bound
from taillift.service.tail.reference import Expected, Reference, Source, expect, reference_from

LOOK = 100


def expectation(
    bundle: SimulatedBundle, source: Source = Source.UNIFORM
) -> tuple[Reference, Expected]:
    confusion = bundle.confusion
    reference = reference_from(source, bundle.counts, confusion)
    return reference, expect(reference, confusion)


def settled(bundle: SimulatedBundle, looks: int, seed: int) -> tuple[Drift, Doubles]:
    """Return a test after `looks` at expected traffic, and the shares of the true classes."""
    reference, expected = expectation(bundle)
    drift = Drift(expected.classes)
    rng = np.random.default_rng(seed)
    for counts in batches(rng, reference.prior @ bundle.matrix, LOOK, looks):
        drift.update(counts, LOOK)
    return drift, reference.prior.copy()


def found_after(drift: Drift, rates: Doubles, index: int, looks: int, seed: int) -> float:
    """Return the predictions after which the class is found, infinite if it is not."""
    for look, counts in enumerate(batches(np.random.default_rng(seed), rates, LOOK, looks), 1):
        drift.update(counts, LOOK)
        if drift.found[index]:
            return look * LOOK
    return float("inf")


def test_the_mean_evidence_of_an_expected_stream_is_at_most_one() -> None:
    """E[e] <= 1, at a fixed time and at the first time when the evidence looks convincing."""
    rng = np.random.default_rng(0)
    rates = np.full(4_000, 0.05)
    evidence = Evidence(2, rates, cap=1e9)
    bets = np.array([0.02, 0.1])[:, None]
    stopped = np.full(len(rates), np.nan)
    for _ in range(60):
        hits = rng.binomial(20, rates)
        hit, miss = np.log(bets / rates), np.log((1 - bets) / (1 - rates))
        evidence.update(hits * hit + (20 - hits) * miss, 20)
        stopped = np.where(np.isnan(stopped) & (evidence.e_values > 2), evidence.e_values, stopped)
    at_stop = np.where(np.isnan(stopped), evidence.e_values, stopped)
    error = at_stop.std() / np.sqrt(len(at_stop))
    assert at_stop.mean() <= 1 + 3 * error
    assert at_stop.mean() > 0.9
    assert (at_stop >= 20).mean() <= 1 / 20


@pytest.mark.parametrize("held_out", [1, 5, 20])
@pytest.mark.parametrize("source", [Source.UNIFORM, Source.TRAIN])
def test_expected_traffic_raises_no_alarm_however_few_photos_were_held_out(
    held_out: int, source: Source
) -> None:
    """Each of 8 bundles with 30 classes is looked at 100 times; 5 % may raise an alarm."""
    alarms = 0
    for seed in range(8):
        bundle = simulate(seed, held_out)
        reference, expected = expectation(bundle, source)
        drift = Drift(expected.classes)
        alarm = False
        rng = np.random.default_rng(seed)
        for counts in batches(rng, reference.prior @ bundle.matrix, LOOK, 100):
            drift.update(counts, LOOK)
            alarm |= bool(drift.found.any())
        alarms += alarm
    assert alarms <= 1


def test_a_class_that_dies_late_is_found_within_the_promised_delay() -> None:
    bundle = few_shot_bundle(20)
    late = 0
    for seed in range(10):
        drift, mix = settled(bundle, 100, seed)
        assert not drift.found.any()
        mix[3] = 0
        rates = mix / mix.sum() @ bundle.matrix
        promise = float(drift.delay(rates)[3])
        # The class is expected once in 22 predictions: about 50 of its own.
        assert promise < 1_500
        late += found_after(drift, rates, 3, 40, seed + 100) > promise + LOOK
        assert drift.direction[3] == -1
    assert late <= 1


def test_a_class_that_doubles_is_found_within_the_promised_delay() -> None:
    bundle = few_shot_bundle(20)
    late = 0
    for seed in range(5):
        drift, mix = settled(bundle, 300, seed)
        mix[3] *= 2
        rates = mix / mix.sum() @ bundle.matrix
        promise = float(drift.delay(rates)[3])
        assert promise < 8_000
        late += found_after(drift, rates, 3, 80, seed + 100) > promise + LOOK
        assert drift.direction[3] == 1
    assert late <= 1


def test_two_swapped_classes_are_found_and_no_other() -> None:
    bundle = few_shot_bundle(20)
    _, expected = expectation(bundle)
    mix = np.where(np.arange(20) == 0, 4.0, 1.0) / 23
    confusion = bundle.confusion
    expected = expect(Reference(Source.OWN, mix), confusion)
    drift = Drift(expected.classes)
    for counts in batches(np.random.default_rng(0), mix @ bundle.matrix, LOOK, 100):
        drift.update(counts, LOOK)
    assert not drift.found.any()
    mix[[0, 1]] = mix[[1, 0]]
    rates = mix @ bundle.matrix
    assert found_after(drift, rates, 1, 20, 1) < 2_000
    assert found_after(drift, rates, 0, 20, 2) < 2_000
    assert np.flatnonzero(drift.found).tolist() == [0, 1]
    assert drift.direction[:2].tolist() == [-1, 1]


def test_a_class_that_comes_back_is_cleared() -> None:
    bundle = few_shot_bundle(20)
    drift, mix = settled(bundle, 50, 0)
    gone = mix.copy()
    gone[3] = 0
    for counts in batches(np.random.default_rng(1), gone @ bundle.matrix, LOOK, 200):
        drift.update(counts, LOOK)
    assert drift.found[3]
    for counts in batches(np.random.default_rng(2), mix @ bundle.matrix, LOOK, 40):
        drift.update(counts, LOOK)
    assert not drift.found.any()


def test_the_stream_narrows_the_band_but_a_dying_class_does_not_lower_it() -> None:
    bundle = few_shot_bundle(20, held_out=5)
    drift, mix = settled(bundle, 0, 0)
    at_first = drift.band.low.copy()
    drift, mix = settled(bundle, 200, 0)
    learned = drift.band.low.copy()
    truth = mix @ bundle.matrix
    assert (learned > at_first).all()
    assert (learned < truth).all()
    assert (drift.band.high > truth).all()
    mix[3] = 0
    found_after(drift, mix @ bundle.matrix, 3, 200, 1)
    for counts in batches(np.random.default_rng(2), mix @ bundle.matrix, LOOK, 400):
        drift.update(counts, LOOK)
    assert drift.band.low[3] >= learned[3]
    assert drift.found[3]


@given(
    st.one_of(st.just(0.0), st.floats(1e-6, 1e7)),
    st.one_of(st.just(0.0), st.floats(1e-6, 1e7)),
    st.floats(1e-3, 60),
)
def test_a_confidence_bound_has_the_given_likelihood(
    hits: float, misses: float, nats: float
) -> None:
    def log_likelihood(log_rate: float) -> float:
        return hits * log_rate + misses * float(np.log(-np.expm1(log_rate)))

    most = log_likelihood(np.log(hits / (hits + misses))) if hits and misses else 0.0
    floor = most - nats
    (bound,) = log_lower_bound(np.array([hits]), np.array([misses]), np.array([floor])).tolist()
    if bound > -690:
        assert log_likelihood(bound) == pytest.approx(floor, rel=1e-9, abs=1e-4 * nats)
        assert not misses or bound <= np.log((hits + 1e-9) / (hits + misses))
    else:
        assert log_likelihood(-690) >= floor - 1e-9 * abs(floor)


def test_one_large_batch_finds_what_many_small_ones_find() -> None:
    bundle = few_shot_bundle(20)
    _, expected = expectation(bundle)
    once, often = Drift(expected.classes), Drift(expected.classes)
    gone = np.full(20, 50)
    gone[3] = 0
    once.update(20 * gone, int(20 * gone.sum()))
    for _ in range(20):
        often.update(gone, int(gone.sum()))
    assert np.flatnonzero(once.found).tolist() == np.flatnonzero(often.found).tolist() == [3]


def test_the_evidence_stays_finite_for_any_counts() -> None:
    bundle = few_shot_bundle(20)
    _, expected = expectation(bundle)
    drift = Drift(expected.classes)
    everything = np.zeros(20, np.int64)
    everything[3] = 10**9
    for _ in range(3):
        drift.update(everything, 10**9)
        drift.update(np.zeros(20, np.int64), 0)
    assert np.isfinite(drift.e_values).all()
    assert drift.found.all()


def test_a_change_within_the_band_has_an_infinite_delay() -> None:
    bundle = few_shot_bundle(20, held_out=1)
    drift, mix = settled(bundle, 0, 0)
    assert np.isinf(drift.delay(mix @ bundle.matrix * 1.05)).all()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(0.01, 0.5))
def test_discoveries_are_the_largest_set_that_e_bh_allows(
    values: list[float], level: float
) -> None:
    found = discoveries(np.array(values), level)
    ranked = sorted(values, reverse=True)
    sizes = [k for k in range(1, len(values) + 1) if ranked[k - 1] >= len(values) / (level * k)]
    assert found.sum() == max(sizes, default=0)
    assert not found.any() or min(np.array(values)[found]) >= max(
        np.array(values)[~found], default=0
    )


def test_false_discoveries_are_rare_among_true_ones() -> None:
    bundle = few_shot_bundle(40)
    shares = []
    for seed in range(8):
        drift, mix = settled(bundle, 50, seed)
        mix[:8] = 0
        # The shares of the others grow by less than the tolerance: they must not be found.
        mix[8:] = (1 - 0.15) / 32 * 1.0
        mix[8] += 1 - mix.sum()
        found_after(drift, mix @ bundle.matrix, 39, 60, seed)
        found = np.flatnonzero(drift.found)
        assert set(range(8)) <= set(found.tolist())
        shares.append(np.isin(found, range(9)).mean())
    assert np.mean(shares) > 0.95
