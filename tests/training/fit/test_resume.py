"""The key of a run, and resume files that are damaged."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taillift.models.errors import UserError
from taillift.training.fit.distributed import Processes
from taillift.training.fit.progress import Progress
from taillift.training.fit.resume import FORMAT, Resume, read_state, run_key
from taillift.training.recipe.recipe import Recipe


def recipe_with(path: Path) -> Recipe:
    """Return a recipe whose head starts from the descriptions at `path`."""
    return Recipe.model_validate(
        {"name": "x", "head": {"initial": {"name": "descriptions", "path": str(path)}}}
    )


def test_a_run_with_other_descriptions_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps({"cat": ["it purrs"]}))
    first = run_key(recipe_with(path), "data", "backbone")
    assert run_key(recipe_with(path), "data", "backbone") == first
    path.write_text(json.dumps({"cat": ["it mews"]}))
    assert run_key(recipe_with(path), "data", "backbone") != first


def test_a_run_without_unlabelled_photos_is_the_run_that_it_was_before_there_were_any() -> None:
    recipe = Recipe(name="x")
    fields = recipe.model_dump(mode="json", exclude={"unlabelled", "bounded", "effort", "soup"})
    fields["loss"] = {"name": "logit-adjusted", "tau": 1.0}
    parts = json.dumps([FORMAT, fields, "data", "backbone"], sort_keys=True)
    assert run_key(recipe, "data", "backbone") == hashlib.sha256(parts.encode()).hexdigest()
    taught = Recipe.model_validate({"name": "x", "unlabelled": {"name": "loft"}})
    assert run_key(taught, "data", "backbone") != run_key(recipe, "data", "backbone")


@pytest.mark.parametrize("loss", [{"cues": {}}, {"tau": "auto"}, {"tau": "auto", "chosen": 1.5}])
def test_another_loss_is_another_run(loss: dict[str, object]) -> None:
    recipe = Recipe.model_validate({"name": "x", "loss": loss})
    assert run_key(recipe, "data", "backbone") != run_key(Recipe(name="x"), "data", "backbone")


def test_missing_descriptions_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sentences\.json: No such file"):
        run_key(recipe_with(tmp_path / "sentences.json"), "data", "backbone")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "run.resume"
    optimisation = {"trained": [torch.arange(6.0)], "average": [torch.ones(6)], "scaler": {}}
    Resume(path, "key", Processes(torch.device("cpu"))).write(
        Progress("fp32", done=3), optimisation
    )
    return path


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
@example(position=0.880859375, change=16)
def test_every_changed_byte_is_told(
    state: Path, tmp_path: Path, position: float, change: int
) -> None:
    """The damage may be in a name, in the archive's directory, in a tensor or in the digest."""
    data = bytearray(state.read_bytes())
    data[int(position * len(data))] ^= change
    damaged = tmp_path / "run.resume"
    damaged.write_bytes(data)
    refusal = "left by an interrupted run, cannot be read: remove it to start from the beginning"
    assert content(damaged) == f"{damaged}, {refusal}"


@pytest.mark.parametrize("length", [0, 1, 21, 100, -1, -16, -17, -48])
def test_a_file_that_was_cut_off_is_told(state: Path, tmp_path: Path, length: int) -> None:
    damaged = tmp_path / "run.resume"
    whole = state.read_bytes()
    damaged.write_bytes(whole[:length])
    without_digest = length == -48
    assert (content(damaged) == content(state)) == without_digest


def test_an_older_file_without_a_digest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run.resume"
    learner = {"trained": [torch.arange(6.0)], "average": [torch.ones(6)], "scaler": {}}
    progress = asdict(Progress("fp32", done=3))
    torch.save({"key": "key", "progress": progress, "learner": learner}, path)
    assert Resume(path, "key", Processes(torch.device("cpu"))).done == 3


def content(path: Path) -> object:
    """Return every number in the file, or the reason why it is refused."""
    try:
        loaded = read_state(path, "key")
    except UserError as error:
        return str(error)
    assert loaded is not None
    state = loaded["learner"]
    return loaded["progress"], [state[key][0].tolist() for key in ("trained", "average")]
