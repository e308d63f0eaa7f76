"""Group shares of the images, corrected for the model's confusions."""

import numpy as np
import pytest

from benchmarks.streams import SimulatedBundle, simulate
from taillift.models.bundle.schema import GROUPS, Group
from taillift.service.tail.confusion import Confusion, estimate_confusion
from taillift.service.tail.distributions import Doubles, Indices
from taillift.service.tail.prevalence import Prevalence
from taillift.service.tail.reference import Source, reference_from


def shifted(bundle: SimulatedBundle, seed: int, predictions: int) -> tuple[Doubles, Indices]:
    """Return group shares unlike those in training, and predictions [G] of such images.

    The mix within the groups differs, too.
    """
    rng = np.random.default_rng(seed)
    group = bundle.confusion.group
    shares = 0.05 + 0.85 * rng.dirichlet([2, 2, 2])
    mix = np.array(bundle.counts) * rng.gamma(4, 0.25, len(group))
    mix *= (shares / np.bincount(group, mix))[group]
    predicted = rng.multinomial(predictions, mix @ bundle.matrix)
    return shares, np.bincount(group, predicted, len(GROUPS)).astype(np.int64)


def prevalence(bundle: SimulatedBundle) -> tuple[Confusion, Prevalence]:
    confusion = bundle.confusion
    reference = reference_from(Source.TRAIN, bundle.counts, confusion)
    return confusion, Prevalence(confusion, reference)


@pytest.mark.parametrize("predictions", [100, 1_000, 10_000])
def test_known_shifts_lie_within_the_intervals(predictions: int) -> None:
    """The coverage is nominally 95 %, averaged over groups, up to about 1,000 predictions."""
    inside = []
    for seed in range(60):
        bundle = simulate(seed, held_out=20)
        truth, counts = shifted(bundle, seed, predictions)
        shares = prevalence(bundle)[1].estimate(counts)
        inside.append((shares.low <= truth) & (truth <= shares.high))
    assert np.mean(inside) > 0.9


def test_corrected_shares_are_nearer_than_raw_ones_and_than_those_by_inversion() -> None:
    errors = []
    for seed in range(60):
        bundle = simulate(seed, held_out=5)
        truth, counts = shifted(bundle, seed, 100)
        confusion, estimator = prevalence(bundle)
        raw = counts / counts.sum()
        within = (
            np.array(bundle.counts) / np.bincount(confusion.group, bundle.counts)[confusion.group]
        )
        matrix = np.stack(
            [
                within[confusion.group == g] @ confusion.into_groups[confusion.group == g]
                for g in range(3)
            ]
        )
        inverted = np.linalg.solve(matrix.T, raw).clip(0)
        estimates = [estimator.estimate(counts).share, inverted / inverted.sum(), raw]
        errors.append([((estimate - truth) ** 2).mean() for estimate in estimates])
    corrected, inverse, raw_error = np.mean(errors, 0)
    assert corrected < inverse
    assert corrected < 0.8 * raw_error


def test_with_a_good_model_and_many_images_the_shares_are_those_predicted() -> None:
    groups: list[Group] = ["many", "medium", "few"]
    confusion = estimate_confusion(groups, [(k, k, 10_000) for k in range(3)])
    estimator = Prevalence(confusion, reference_from(Source.UNIFORM, [1, 1, 1], confusion))
    shares = estimator.estimate(np.array([60_000, 30_000, 10_000]))
    np.testing.assert_allclose(shares.share, [0.6, 0.3, 0.1], atol=2e-3)
    assert (shares.high - shares.low).max() < 0.02


def test_before_any_prediction_the_shares_are_those_of_the_reference() -> None:
    bundle = simulate(0, held_out=5)
    confusion, estimator = prevalence(bundle)
    shares = estimator.estimate(np.zeros(3, np.int64))
    prior = np.array(bundle.counts) / sum(bundle.counts)
    np.testing.assert_allclose(shares.share, np.bincount(confusion.group, prior), atol=1e-6)
    assert (shares.high - shares.low).min() > 0.1


def test_a_group_without_classes_has_no_share() -> None:
    groups: list[Group] = ["many", "few"]
    confusion = estimate_confusion(groups, [(0, 0, 20), (1, 1, 10), (1, 0, 10)])
    estimator = Prevalence(confusion, reference_from(Source.UNIFORM, [1, 1], confusion))
    shares = estimator.estimate(np.array([50, 0, 50]))
    assert shares.share[1] == shares.high[1] == 0
    assert shares.share.sum() == pytest.approx(1)
    assert shares.low[2] < shares.share[2] < shares.high[2]


def test_a_single_group_has_all_images() -> None:
    groups: list[Group] = ["few", "few"]
    confusion = estimate_confusion(groups, [])
    estimator = Prevalence(confusion, reference_from(Source.UNIFORM, [1, 1], confusion))
    assert estimator.estimate(np.array([0, 0, 7])).share.tolist() == [0, 0, 1]
