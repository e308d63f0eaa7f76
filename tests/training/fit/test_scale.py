"""Runs in several processes, and runs that are killed again and again."""

import multiprocessing
import random
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from taillift.training.data.dataset import Dataset
from taillift.training.data.photo import StoredPhoto
from taillift.training.fit.checkpoint import read_metadata
from taillift.training.fit.resume import resume_path
from taillift.training.recipe.recipe import Recipe
from tests.support import trainings

ADAPTFORMER = [{"name": "adaptformer", "rank": 2}]
COMMON = {"batch": 11, "precision": "fp32", "augmentation": {"copies": 2}}
ADAMW = {
    "name": "adamw",
    "head_rate": 1e-3,
    "tuner_rate": 1e-4,
    "warmup": 0.2,
    "step": "batch",
    "average": 0.9,
}


def root_of(dataset: Dataset) -> str:
    photo = dataset.train.photos[0]
    assert isinstance(photo, StoredPhoto)
    return str(photo.root)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_end_with_the_weights_of_one(
    colours: Dataset, tiny_backbone: str, tmp_path: Path
) -> None:
    """56 photos in batches of 11: parts of 6 and 5, and a last batch of one photo."""
    recipes = [
        Recipe.model_validate({**COMMON, **changes})
        for changes in (
            {"name": "sgd", "epochs": 2, "tuners": [{"name": "full"}]},
            {"name": "adamw", "epochs": 2, "tuners": ADAPTFORMER, "optimiser": ADAMW},
            {
                "name": "head",
                "epochs": 2,
                "head": {"initial": {"name": "class-mean"}},
                "loss": {"tau": "auto", "cues": {"gate": 0}},
            },
        )
    ]
    trainings.run(tiny_backbone, root_of(colours), recipes, tmp_path / "1")
    trainings.launch(2, tiny_backbone, root_of(colours), recipes, tmp_path / "2")
    for recipe in recipes:
        first, second = (tmp_path / number / f"{recipe.name}.safetensors" for number in ("1", "2"))
        alone, together = load_file(first), load_file(second)
        assert alone.keys() == together.keys()
        for name in alone:
            assert torch.allclose(alone[name], together[name], rtol=1e-5, atol=1e-6), name
        assert [read_metadata(path).record.processes for path in (first, second)] == [1, 2]
        assert read_metadata(second).recipe == read_metadata(first).recipe
        losses = read_metadata(first).record.losses
        assert read_metadata(second).record.losses == pytest.approx(losses, rel=1e-5)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(
    colours: Dataset, tiny_backbone: str, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainings"])
    changes = {"name": "run", "epochs": 6, "batch": 8, "tuners": ADAPTFORMER}
    recipe = Recipe.model_validate({**COMMON, **changes, "optimiser": ADAMW})

    def start(folder: str) -> ForkServerProcess:
        arguments = tiny_backbone, root_of(colours), [recipe], tmp_path / folder
        process = context.Process(target=trainings.run_saving_often, args=arguments)
        process.start()
        return process

    whole = start("whole")
    whole.join(120)
    assert whole.exitcode == 0
    moments = random.Random(0)
    checkpoint = tmp_path / "killed" / "run.safetensors"
    state = resume_path(checkpoint)
    for _ in range(3):
        process = start("killed")
        wait_for_change(state, process)
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, "it had not finished yet"
        assert not checkpoint.exists()
    process = start("killed")
    process.join(120)
    assert process.exitcode == 0
    expected, found = load_file(tmp_path / "whole" / "run.safetensors"), load_file(checkpoint)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not state.exists()


def wait_for_change(path: Path, process: ForkServerProcess) -> None:
    """Wait until the file is written again, the process ends, or a minute has passed."""

    def changed() -> int:
        return path.stat().st_mtime_ns if path.exists() else 0

    before, deadline = changed(), time.monotonic() + 60
    while changed() == before and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
