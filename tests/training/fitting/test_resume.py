"""What an interrupted run is known by."""

import json
from pathlib import Path

import pytest

from models import UserError
from training.fitting.resume import run_key
from training.recipe import Recipe


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
