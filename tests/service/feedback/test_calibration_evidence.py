"""The bets against the confidences: how often they are wrong, and how soon they are right."""

import numpy as np
import pytest

from taillift.service.feedback.live_accuracy import CalibrationEvidence
from taillift.service.tail.distributions import Doubles
from tests.support.simulated_labels import simulated_stream

DAYS, PER_DAY, RUNS = 20, 75, 167
# As in the alert: 5 % for the three groups together.
CERTAIN = np.log10(60)


def highest(confidences: Doubles, truths: Doubles, probabilities: Doubles, rng: int) -> Doubles:
    """Return the highest evidence of any fourth day, for each of 3 RUNS streams of labels.

    The photos are drawn with their `probabilities` [N]; an answer is right with the chance in
    `truths` [N], and its confidence is the one in `confidences` [N].
    """
    random, found = np.random.default_rng(rng), np.zeros((RUNS, 3))
    groups = np.tile(np.arange(3), PER_DAY)
    for run in range(RUNS):
        evidence = CalibrationEvidence(90)
        for day in range(DAYS):
            drawn = random.choice(len(truths), len(groups), p=probabilities / probabilities.sum())
            correct = (random.random(len(groups)) < truths[drawn]).astype(np.float64)
            days = np.full(len(groups), day)
            evidence.add(days, groups, confidences[drawn], correct, probabilities[drawn])
            if day % 4 == 3:
                found[run] = np.maximum(found[run], evidence.log_e_values())
    return found.ravel()


@pytest.mark.parametrize("rule", ["tail mass"])
def test_sound_confidences_are_rarely_called_broken(rule: str) -> None:
    stream = simulated_stream(1)
    right = stream.posteriors.max(1)
    assert (highest(right, right, stream.probabilities(rule, 250), 2) > CERTAIN).mean() <= 0.05 / 3


@pytest.mark.parametrize("rule", ["random", "least margin", "tail mass"])
def test_logits_that_doubled_are_found(rule: str) -> None:
    stream = simulated_stream(1)
    sharper = stream.posteriors**2
    confidences = (sharper / sharper.sum(1, keepdims=True)).max(1)
    right = stream.posteriors.max(1)
    assert found_within(6 * PER_DAY, confidences, right, stream.probabilities(rule, 250)) >= 0.95


def test_confidences_that_are_too_low_are_found() -> None:
    stream = simulated_stream(1)
    right = stream.posteriors.max(1)
    chosen = stream.probabilities("tail mass", 250)
    assert found_within(6 * PER_DAY, 0.8 * right, right, chosen) >= 0.95


def found_within(labels: int, confidences: Doubles, truths: Doubles, chosen: Doubles) -> float:
    """Return the share of 100 streams of so many labels that are called broken."""
    random, evidence_of = np.random.default_rng(3), []
    for _ in range(100):
        drawn = random.choice(len(truths), labels, p=chosen / chosen.sum())
        correct = (random.random(labels) < truths[drawn]).astype(np.float64)
        evidence = CalibrationEvidence(90)
        zeros = np.zeros(labels, np.int64)
        evidence.add(
            np.arange(labels) // PER_DAY, zeros, confidences[drawn], correct, chosen[drawn]
        )
        evidence_of.append(evidence.log_e_values()[0])
    return float((np.array(evidence_of) > CERTAIN).mean())


def test_a_change_after_a_long_good_time_is_found() -> None:
    rng = np.random.default_rng(4)
    good, bad = 6_000, 750
    confidences = np.full(good + bad, 0.9)
    correct = (rng.random(good + bad) < np.repeat([0.9, 0.7], [good, bad])).astype(np.float64)
    days, groups = np.arange(good + bad) // PER_DAY, np.zeros(good + bad, np.int64)
    evidence = CalibrationEvidence(90)
    ones = np.ones(good + bad)
    evidence.add(days[:good], groups[:good], confidences[:good], correct[:good], ones[:good])
    assert evidence.log_e_values()[0] < CERTAIN
    evidence.add(days[good:], groups[good:], confidences[good:], correct[good:], ones[good:])
    assert evidence.log_e_values()[0] > CERTAIN
    assert evidence.log_e_values()[1:].tolist() == pytest.approx([0, 0])


def test_the_mean_of_the_e_value_is_one_at_most() -> None:
    """Two labels have four outcomes, so the mean can be computed."""
    mean = 0.0
    for first in (0.0, 1.0):
        for second in (0.0, 1.0):
            evidence = CalibrationEvidence(90)
            evidence.add(
                np.array([5, 6]),
                np.array([0, 0]),
                np.array([0.7, 0.9]),
                np.array([first, second]),
                np.array([0.02, 0.5]),
            )
            chance = (0.7 if first else 0.3) * (0.9 if second else 0.1)
            mean += chance * 10 ** float(evidence.log_e_values()[0])
    assert mean == pytest.approx(1)


def test_labels_that_are_taken_away_leave_nothing() -> None:
    evidence = CalibrationEvidence(90)
    ones = np.ones(9)
    labels = (np.arange(9), np.full(9, 2), 0.99 * ones, 0 * ones, 0.25 * ones)
    evidence.add(*labels)
    assert evidence.log_e_values()[2] > 0
    evidence.add(*labels, sign=-1)
    assert evidence.log_e_values() == pytest.approx(0)
