"""Tests of the priors that a file gives."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taillift.models.bundle.posterior import Prior, log_prior
from taillift.models.errors import UserError
from taillift.service.inference.priors import read_priors
from tests.support.palette import CLASSES, palette_manifest

MANIFEST = palette_manifest("v", {})
EVEN = dict.fromkeys(CLASSES, 1)


def read(path: Path, content: str | bytes | object) -> dict[str, np.ndarray]:
    match content:
        case bytes():
            path.write_bytes(content)
        case str():
            path.write_text(content)
        case _:
            path.write_text(json.dumps(content))
    return dict(read_priors(path, MANIFEST))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "priors.json"


def test_without_a_file_there_are_the_reserved_priors() -> None:
    priors = read_priors(None, MANIFEST)
    assert set(priors) == set(Prior)
    for name, logs in priors.items():
        np.testing.assert_array_equal(logs, log_prior(Prior(name), MANIFEST.counts))


def test_a_files_weights_become_shares_in_the_order_of_the_classes(path: Path) -> None:
    weights = {label: index for index, label in enumerate(CLASSES)}
    priors = read(path, {"winter": dict(reversed(weights.items())), "even": EVEN})
    assert list(priors) == ["uniform", "train", "winter", "even"]
    np.testing.assert_allclose(np.exp(priors["winter"]), np.arange(7) / 21)
    assert priors["winter"][0] == -np.inf
    np.testing.assert_allclose(priors["even"], priors["uniform"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "priors.json is not JSON"),
        (b"\xff\xfe{", "priors.json is not JSON"),
        ("[" * 100_000, "priors.json is not JSON"),
        ([1], "must hold"),
        ({"uniform": EVEN}, "'uniform' .* the name is taken"),
        ({"train": EVEN}, "'train' .* the name is taken"),
        ({"winter": [1]}, "'winter' .* must be an object"),
        ({"winter": {**EVEN, "yelow": 1}}, r"no class 'yelow' \(did you mean \"yellow\"\?\)"),
        ({"winter": {"red": 1}}, "class 'green' and 5 more missing"),
        ({"winter": {k: v for k, v in EVEN.items() if k != "cyan"}}, "class 'cyan' missing"),
        ({"winter": dict.fromkeys(CLASSES, 0)}, "every weight is 0"),
        ({"winter": {**EVEN, "red": -1}}, "'red' has weight '-1'"),
        ({"winter": {**EVEN, "red": True}}, "'red' has weight 'True'"),
        ({"winter": {**EVEN, "red": "1"}}, "'red' has weight '1'"),
        ({"winter": {**EVEN, "red": None}}, "'red' has weight 'None'"),
        ({"winter": {**EVEN, "red": {}}}, "'red' has weight 'an object or a list'"),
        ({"winter": {**EVEN, "red": float("nan")}}, "'red' has weight 'nan'"),
        ({"winter": {**EVEN, "red": float("inf")}}, "'red' has weight 'inf'"),
        ({"winter": {**EVEN, "red": 10**400}}, "'red' has weight '10000"),
        ('{"winter": {"red": 1, "red": 2}}', "'red' appears twice"),
        (f'{{"w": {json.dumps(EVEN)}, "w": {json.dumps(EVEN)}}}', "'w' .* appears twice"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(path: Path, content: object, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as raised:
        read(path, content)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300 + len(str(path))


def test_a_file_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(UserError, match=r"priors\.json cannot be read: No such file"):
        read_priors(path, MANIFEST)


@given(st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(max_size=5), st.integers())))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_a_file_without_a_prior_of_these_classes_is_a_user_error(
    path: Path, content: dict[str, dict[str, int]]
) -> None:
    if content:
        with pytest.raises(UserError):
            read(path, content)


@given(st.lists(st.floats(0, 1e300), min_size=7, max_size=7).filter(any))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_weights_become_shares(path: Path, weights: list[float]) -> None:
    priors = read(path, {"season": dict(zip(CLASSES, weights, strict=True))})["season"]
    assert np.exp(priors).sum() == pytest.approx(1)
    shares = np.array(weights) / max(weights)
    assert ((priors == -np.inf) == (shares == 0)).all() or max(weights) > 1e290


def test_a_prior_names_a_class_in_any_unicode_form_but_not_in_two(path: Path) -> None:
    first, *others = CLASSES
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for label, name in ((composed, decomposed), (decomposed, composed)):
        classes = [one.model_copy(update={"label": label}) for one in MANIFEST.classes[:1]]
        manifest = MANIFEST.model_copy(update={"classes": (*classes, *MANIFEST.classes[1:])})
        weights = {name: 6, **dict.fromkeys(others, 1)}
        path.write_text(json.dumps({"winter": weights}))
        assert np.exp(read_priors(path, manifest)["winter"][0]) == pytest.approx(0.5)
        path.write_text(json.dumps({"winter": {**weights, label: 6}}))
        with pytest.raises(UserError, match=r"'winter' in .* in two Unicode forms, .*U\+0301"):
            read_priors(path, manifest)
    assert first not in weights
