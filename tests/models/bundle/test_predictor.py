"""Tests of the way from an image's outputs to its prediction."""

from pathlib import Path

import numpy as np
import pytest

from taillift.models.bundle.ensemble import Ensemble, ImageOutputs
from taillift.models.bundle.folder import HeldOutScores
from taillift.models.bundle.manifest import Manifest, Variant
from taillift.models.bundle.posterior import Prior, log_prior
from taillift.models.bundle.prediction_sets import Interpolation, PredictionSets
from taillift.models.bundle.predictor import Predictor
from taillift.models.bundle.review import GroupReview, Review
from taillift.models.bundle.schema import Precision
from taillift.models.errors import UserError
from tests.support.palette import (
    CLASSES,
    RULE,
    TEMPERATURE,
    logits_of,
    palette_manifest,
    write_bundle,
)

LOGITS = logits_of([(90, 100, 110), (200, 30, 30)])
COUNTS = [count for _, count in CLASSES.values()]
VIEWS = {Ensemble.OFF: 1, Ensemble.FULL: 5}


def predictor(**variant: object) -> Predictor:
    plain = palette_manifest("v", {})
    changed = plain.variants[Precision.FP32].model_copy(update=variant)
    return Predictor(
        plain.model_copy(update={"variants": {Precision.FP32: changed}}), Precision.FP32
    )


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    shares: np.ndarray = weights / weights.sum(-1, keepdims=True)
    return shares


@pytest.mark.parametrize(
    ("ensemble", "views", "temperature"),
    [("off", 1, 1), ("full", 5, TEMPERATURE), ("adaptive", 1, 1), ("adaptive", 5, TEMPERATURE)],
)
def test_each_way_to_answer_has_its_temperature(
    ensemble: str, views: int, temperature: float
) -> None:
    found = predictor().probabilities(LOGITS, np.array([views, views]), Ensemble(ensemble))
    np.testing.assert_allclose(found, softmax(LOGITS / temperature), rtol=1e-5)


def test_without_calibration_it_is_the_softmax() -> None:
    found = predictor(calibration=None).probabilities(LOGITS, np.array([5, 5]), Ensemble.FULL)
    np.testing.assert_allclose(found, softmax(LOGITS), rtol=1e-5)


def test_logits_that_carry_the_training_prior_lose_it() -> None:
    """A head trained with cross-entropy gives the same answers as one with logit adjustment."""
    plain = palette_manifest("v", {})
    shares = np.array(COUNTS) / sum(COUNTS)
    classes = tuple(
        one.model_copy(update={"prior": share})
        for one, share in zip(plain.classes, shares, strict=True)
    )
    biased: Manifest = plain.model_copy(update={"classes": classes})
    carrying = (LOGITS + np.log(shares)).astype(np.float32)
    one, two = np.array([1, 1]), predictor()
    other = Predictor(biased, Precision.FP32)
    for target in (None, log_prior(Prior.TRAIN, COUNTS)):
        np.testing.assert_allclose(
            other.probabilities(other.without_prior(carrying), one, Ensemble.OFF, target),
            two.probabilities(two.without_prior(LOGITS), one, Ensemble.OFF, target),
            rtol=1e-4,
        )


def test_sets_and_decisions_are_those_of_the_way_that_was_asked_for() -> None:
    labels = np.repeat(np.arange(7), 40)
    sure, unsure = np.full(280, 0.9, np.float32), np.full(280, 0.1, np.float32)
    plain = palette_manifest("v", {})
    sets = PredictionSets(interpolation=Interpolation(pull=0), photos=280, reach={}, data="others")
    variant = plain.variants[Precision.FP32].model_copy(update={"sets": sets})
    found = Predictor(
        plain.model_copy(update={"variants": {Precision.FP32: variant}}),
        Precision.FP32,
        HeldOutScores(labels, {Ensemble.OFF: sure, Ensemble.FULL: unsure}),
    )
    shares = np.array([[0.5, 0.2, 0.2, 0.05, 0.03, 0.01, 0.01]])
    off, full = (found.sets(shares, one, 0.9) for one in (Ensemble.OFF, Ensemble.FULL))
    assert off is not None
    assert full is not None
    assert np.flatnonzero(off[0]).tolist() == [0], "the answer is in its set always"
    assert np.flatnonzero(full[0]).tolist() == [0, 1, 2]
    assert found.sets(shares, Ensemble.ADAPTIVE, 0.9) is None
    assert found.members(shares[0], shares[0], Ensemble.FULL, 0.9) == [0, 1, 2]
    assert found.members(shares[0, ::-1], shares[0], Ensemble.FULL, 0.9) == [6, 2, 0, 1]
    assert found.members(shares[0], shares[0], Ensemble.FULL, None) is None


def test_answers_are_accepted_from_their_groups_threshold_on() -> None:
    group = GroupReview(photos=9, threshold=0.6, certified=False, accepted=50, error=1)
    found = predictor(review=Review(risk=5, level=95, data="others", groups={"many": group}))
    rows = [np.array([top, 1 - top, 0, 0, 0, 0, 0]) for top in (0.59, 0.6)]
    assert [found.decide(row) for row in rows] == ["review", "accept"]
    few = np.eye(7)[6]
    assert found.decide(few) == "review", "nothing is known of few"
    assert [reason.kind for row in (*rows, few) if (reason := found.explain(row))] == [
        "below threshold",
        "accepted",
        "no threshold",
    ]
    assert predictor(review=None).decide(few) is None


@pytest.mark.parametrize(("ensemble", "views"), VIEWS.items())
def test_one_call_gives_everything_that_is_said_of_an_image(ensemble: Ensemble, views: int) -> None:
    group = GroupReview(photos=9, threshold=0.0, certified=False, accepted=50, error=1)
    review = Review(risk=5, level=95, data="others", groups={"many": group})
    one = predictor(review=review)
    outputs = ImageOutputs(LOGITS[1], np.zeros(3, np.float32), views)
    many = LOGITS[1:], np.array([views]), ensemble
    train = log_prior(Prior.TRAIN, COUNTS)
    uniform, other = one.predict(outputs, ensemble), one.predict(outputs, ensemble, train)
    np.testing.assert_array_equal(uniform.requested, one.probabilities(*many)[0])
    np.testing.assert_array_equal(other.requested, one.probabilities(*many, train)[0])
    for prediction in (uniform, other):
        np.testing.assert_array_equal(prediction.uniform, uniform.requested)
        assert prediction.temperature == (TEMPERATURE if views == 5 else 1)
        assert prediction.views == views
        assert prediction.members is None
    assert (uniform.decision, other.decision) == ("accept", None)


def test_a_variant_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "plain", variants={Precision.FP32: Variant()})
    manifest = palette_manifest("v", {})
    with pytest.raises(UserError, match="has no int8 variant \\(it has fp32\\)") as caught:
        Predictor.open(folder, manifest, Precision.INT8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("views", "usual"), [(1.4, "adaptive"), (3.75, "adaptive"), (3.76, "full"), (5.0, "full")]
)
def test_adaptive_is_usual_only_if_it_saves_a_quarter_of_the_views(
    views: float, usual: str
) -> None:
    rule = RULE.model_copy(update={"mean_views": views})
    variant = Variant(exit=rule)
    assert variant.usual_ensemble == usual
    assert variant.usual_ensemble_reason.startswith(f"{usual}: ")
    assert f"{views:.2f} of 5 views" in variant.usual_ensemble_reason
    assert predictor(exit=rule).usual_ensemble == usual


def test_without_an_exit_rule_full_is_usual() -> None:
    assert Variant().usual_ensemble_reason == "full: there is no exit rule for adaptive"
