"""Tests of the temperature that each answer gets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from taillift.models.bundle.arrays import group_indices
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.posterior import posterior
from taillift.models.bundle.schema import Group
from taillift.models.bundle.temperature import Calibration, ErrorChange, Temperatures

GROUPS: list[Group] = ["many", "few", "medium", "few"]
LOGITS = arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32))


def temperatures(many: float, medium: float, few: float) -> Temperatures:
    return Temperatures(pooled=9.0, groups={"many": many, "medium": medium, "few": few})


CALIBRATION = Calibration(
    off=temperatures(1.1, 1.2, 1.3),
    full=temperatures(2.1, 2.2, 2.3),
    adaptive={1: temperatures(3.1, 3.2, 3.3), 5: temperatures(5.1, 5.2, 5.3)},
    data="simulated photos",
    source="validation",
    images=3,
)


def temperatures_of(ensemble: Ensemble, views: list[int], answers: list[int]) -> list[float]:
    logits = np.eye(4, dtype=np.float32)[answers]
    of = CALIBRATION.temperatures(logits, np.array(views), ensemble, group_indices(GROUPS))
    assert of.dtype == np.float64
    values: list[float] = of.tolist()
    return values


def test_the_predicted_class_decides_by_its_group() -> None:
    assert temperatures_of(Ensemble.OFF, [1] * 4, [0, 1, 2, 3]) == [1.1, 1.3, 1.2, 1.3]
    assert temperatures_of(Ensemble.FULL, [5] * 4, [3, 2, 1, 0]) == [2.3, 2.2, 2.3, 2.1]


def test_an_adaptive_answer_has_the_temperature_of_where_it_stopped() -> None:
    assert temperatures_of(Ensemble.ADAPTIVE, [5, 1, 1, 5], [0, 0, 1, 1]) == [5.1, 3.1, 3.3, 5.3]


def test_a_number_of_views_never_met_has_that_of_the_nearest() -> None:
    assert temperatures_of(Ensemble.ADAPTIVE, [2, 4], [0, 0]) == [3.1, 5.1]


def test_without_an_exit_rule_adaptive_answers_are_like_the_others() -> None:
    plain = CALIBRATION.model_copy(update={"adaptive": {}})
    logits = np.eye(4, dtype=np.float32)[[0, 0]]
    groups = group_indices(GROUPS)
    assert plain.temperatures(logits, np.array([1, 5]), Ensemble.ADAPTIVE, groups).tolist() == [
        1.1,
        2.1,
    ]


def test_a_group_without_a_temperature_has_the_pooled_one() -> None:
    assert Temperatures(pooled=2.0, groups={"few": 3.0}).row == [2.0, 2.0, 3.0]


def test_no_image_has_no_temperature() -> None:
    none = np.empty((0, 4), np.float32)
    row = CALIBRATION.temperatures(
        none, np.empty(0, np.int64), Ensemble.FULL, group_indices(GROUPS)
    )
    assert row.shape == (0,)


@given(LOGITS, st.lists(st.sampled_from([1, 5]), min_size=3, max_size=3))
def test_the_answer_stays_and_confidence_sums_to_one(logits: np.ndarray, views: list[int]) -> None:
    at = CALIBRATION.temperatures(logits, np.array(views), Ensemble.ADAPTIVE, group_indices(GROUPS))
    shares = posterior(logits, np.log(np.full(4, 0.25)), at)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(shares[range(3), logits.argmax(1)], shares.max(1))


def test_it_survives_json() -> None:
    assert Calibration.model_validate_json(CALIBRATION.model_dump_json()) == CALIBRATION


def test_a_temperature_is_positive() -> None:
    with pytest.raises(ValidationError, match=r"greater than or equal to 0\.01"):
        Temperatures(pooled=0.0, groups={})
    with pytest.raises(ValidationError, match=r"greater than or equal to 0\.01"):
        Temperatures(pooled=1.0, groups={"few": -1.0})


@pytest.mark.parametrize(
    ("before", "resolution", "enough"), [(8.0, 4.0, True), (7.9, 4.0, False), (None, None, False)]
)
def test_there_is_enough_if_half_the_error_can_be_detected(
    before: float | None, resolution: float | None, enough: bool
) -> None:
    change = ErrorChange(photos=200, before=before, after=before, resolution=resolution)
    assert change.enough is enough
