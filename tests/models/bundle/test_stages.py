"""Tests of the rule that says when an image needs no more views."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from taillift.models.bundle.ensemble import ExitRule, Loss, Stages, margin, run_stages

MARGINS = st.floats(0, 6, width=32)
STAGES = st.sets(st.integers(1, 5), min_size=1).flatmap(
    lambda views: st.lists(MARGINS, min_size=len(views) - 1, max_size=len(views) - 1).map(
        lambda leads: Stages(stages=tuple(sorted(views)), leads=tuple(leads))
    )
)
LOGITS = st.integers(0, 6).flatmap(
    lambda count: arrays(np.float32, (count, 5, 3), elements=st.floats(-4, 4, width=16))
)


@given(STAGES, LOGITS)
def test_an_image_stops_at_the_first_stage_that_lets_it(
    rule: Stages, view_logits: np.ndarray
) -> None:
    mean_logits, taken = run_stages(rule, view_logits)
    assert (mean_logits.dtype, mean_logits.shape) == (np.dtype("f4"), (len(view_logits), 3))
    for image, row, views in zip(view_logits, mean_logits, taken, strict=True):
        means = {k: image[:k].mean(axis=0, dtype="f4") for k in rule.stages}
        stopped = [k for k in rule.stages if rule.next(means[k][None], k)[0] == k]
        assert views == stopped[0]
        np.testing.assert_allclose(row, means[views], atol=1e-5)


@given(STAGES, LOGITS)
def test_views_are_asked_for_once_and_only_where_they_are_needed(
    rule: Stages, view_logits: np.ndarray
) -> None:
    given_views = np.full_like(view_logits, np.nan)

    def fill(rows: np.ndarray, first: int, last: int) -> None:
        assert np.isnan(given_views[rows, first:last]).all()
        given_views[rows, first:last] = view_logits[rows, first:last]

    mean_logits, taken = run_stages(rule, given_views, fill)
    np.testing.assert_array_equal((~np.isnan(given_views[:, :, 0])).sum(axis=1), taken)
    for result, expected in zip((mean_logits, taken), run_stages(rule, view_logits), strict=True):
        np.testing.assert_array_equal(result, expected)


@given(LOGITS, MARGINS, MARGINS)
def test_a_smaller_margin_never_takes_more_views(
    view_logits: np.ndarray, first: float, second: float
) -> None:
    taken = [
        run_stages(Stages(stages=(1, 5), leads=(least,)), view_logits)[1]
        for least in sorted((first, second))
    ]
    assert (taken[0] <= taken[1]).all()


def test_a_margin_is_the_best_class_less_the_second_and_enough_when_equal() -> None:
    logits = np.array([[1, 3.5, 2], [0, 0, -1]], "f4")
    np.testing.assert_array_equal(margin(logits), [1.5, 0])
    rule = Stages(stages=(1, 3, 5), leads=(1.5, 2))
    np.testing.assert_array_equal(rule.next(logits, 1), [1, 3])
    np.testing.assert_array_equal(rule.next(logits, 3), [5, 5])
    np.testing.assert_array_equal(rule.next(logits, 5), [5, 5])
    np.testing.assert_array_equal(rule.next(logits, 0), [1, 1])
    with pytest.raises(ValueError, match="tuple"):
        rule.next(logits, 2)


@pytest.mark.parametrize(
    ("stages", "leads"),
    [((5, 1), (1.0,)), ((1, 1, 5), (1.0, 1.0)), ((0, 5), (1.0,)), ((1, 6), (1.0,)), ((1, 5), ())],
)
def test_stages_that_do_not_fit_together_are_refused(
    stages: tuple[int, ...], leads: tuple[float, ...]
) -> None:
    with pytest.raises(ValidationError, match="stages"):
        Stages(stages=stages, leads=leads)


def test_a_rule_survives_the_manifest() -> None:
    nothing = Loss(photos=0, estimate=None, error=None, expected=None, bound=100)
    rule = ExitRule(
        stages=(1, 5),
        leads=(0.7,),
        tolerance=0.5,
        data="val",
        source="validation",
        images=0,
        overall=nothing,
        groups={"few": nothing},
        disagreement=None,
        mean_views=5,
        certified=False,
        notes=("no photos",),
    )
    assert ExitRule.model_validate_json(rule.model_dump_json()) == rule
