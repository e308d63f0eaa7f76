"""Tests of which guesses are accepted by what held-out photos say, and of their counts."""

import numpy as np
import pytest
import torch

from taillift.training.data.pool import FOREIGN, UNKNOWN
from taillift.training.recipe.semi_supervision import HeldOutEvidence
from taillift.training.unlabelled.acceptance import (
    PseudoLabelTally,
    SetAcceptance,
    precision_bounds,
    tally_counts,
)


def test_a_bound_is_exact_and_0_without_a_right_guess() -> None:
    """With n of n right, a precision p gives that with probability p^n."""
    bounds = precision_bounds(np.array([5, 0, 0, 30]), np.array([5, 4, 0, 40]), 0.9)
    assert bounds[:3].tolist() == pytest.approx([0.1 ** (1 / 5), 0, 0])
    assert 0.62 < bounds[3] < 0.75


def test_only_guesses_alone_in_their_set_are_accepted_as_far_as_their_class_was_right() -> None:
    """Wrong guesses on val/ have a smaller probability, and class 2 has no photo there."""
    held_out = torch.tensor(
        [*[[0.9, 0.05, 0.05]] * 8, *[[0.3, 0.6, 0.1]] * 4, *[[0.2, 0.7, 0.1]] * 4]
    )
    labels = torch.tensor([0] * 12 + [1] * 4)
    acceptance = SetAcceptance(HeldOutEvidence(coverage=0.5), labels, ["few"] * 3)
    acceptance.update(held_out)
    guesses = torch.tensor(
        [[0.97, 0.02, 0.01], [0.5, 0.48, 0.02], [0.1, 0.85, 0.05], [0.02, 0.03, 0.95]]
    )
    singles = acceptance.singles(guesses)
    thresholds = acceptance.coverage.thresholds(0.5)
    expected = (guesses.numpy() >= thresholds).sum(1) == 1
    assert singles.tolist() == expected.tolist()
    assert singles[0]
    weights = acceptance.weights(guesses)
    assert weights[0].item() == pytest.approx(0.1 ** (1 / 8))
    assert weights[1] == 0, "no probability reaches a threshold"
    assert weights[2].item() == pytest.approx(0.1 ** (1 / 4)), "four of eight guesses were accepted"
    assert weights[3] == 0, "nothing is known of class 2"


def test_a_tally_counts_by_class_and_knows_what_it_cannot_judge() -> None:
    guesses = torch.tensor([0, 0, 1, 2, 2, 2])
    accepted = torch.tensor([True, True, True, True, False, False])
    soft = torch.tensor([False, False, False, False, True, True])
    truth = torch.tensor([0, 1, 1, UNKNOWN, FOREIGN, 2])
    tally = PseudoLabelTally(3)
    for part in (slice(0, 2), slice(2, 6)):
        tally.add(tally_counts(guesses[part], accepted[part], soft[part], truth[part], 3))
    epoch = tally.epoch(["many", "medium", "few"])
    assert (epoch.seen, epoch.accepted, epoch.soft) == (6, 4, 2)
    assert (epoch.foreign, epoch.foreign_accepted, epoch.foreign_soft) == (1, 0, 1)
    assert epoch.groups["many"].model_dump() == {
        "accepted": 2,
        "judged": 2,
        "right": 1,
        "photos": 1,
    }
    assert epoch.groups["few"].model_dump() == {
        "accepted": 1,
        "judged": 0,
        "right": 0,
        "photos": 1,
    }
    tally.clear()
    assert tally.epoch(["many", "medium", "few"]).seen == 0
