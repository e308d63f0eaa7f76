"""What an interrupted run is known by, and what is left of one when its file is damaged."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taillift.models.errors import UserError
from taillift.training.fit.distributed import Processes
from taillift.training.fit.progress import Progress
from taillift.training.fit.resume import Resume, read_state, run_key
from taillift.training.recipe.recipe import Recipe


def described(path: Path) -> Recipe:
    return Recipe.model_validate(
        {"name": "x", "head": {"initial": {"name": "descriptions", "path": str(path)}}}
    )


def test_a_run_with_other_descriptions_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps({"cat": ["it purrs"]}))
    first = run_key(described(path), "data", "backbone")
    assert run_key(described(path), "data", "backbone") == first
    path.write_text(json.dumps({"cat": ["it mews"]}))
    assert run_key(described(path), "data", "backbone") != first


def test_descriptions_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sentences\.json: No such file"):
        run_key(described(tmp_path / "sentences.json"), "data", "backbone")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "run.resume"
    learner = {"trained": [torch.arange(6.0)], "average": [torch.ones(6)], "scaler": {}}
    Resume(path, "key", Processes(torch.device("cpu"))).write(Progress("fp32", done=3), learner)
    return path


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_damaged_state_is_told_or_does_no_harm(
    state: Path, tmp_path: Path, place: float, change: int
) -> None:
    """Wherever the damage is: in a name, in the file's order, or in a tensor's bytes."""
    data = bytearray(state.read_bytes())
    data[int(place * len(data))] ^= change
    damaged = tmp_path / "run.resume"
    damaged.write_bytes(data)
    refusal = "left by an interrupted run, cannot be read: remove it to start from the beginning"
    assert content(damaged) in (content(state), f"{damaged}, {refusal}")


def content(path: Path) -> object:
    """Every number that is kept, or why there is none."""
    try:
        kept = read_state(path, "key")
    except UserError as error:
        return str(error)
    assert kept is not None
    learner = kept["learner"]
    return kept["progress"], [learner[key][0].tolist() for key in ("trained", "average")]
