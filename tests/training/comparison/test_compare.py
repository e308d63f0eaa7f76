"""Comparisons with real runs of a tiny model: what is kept, repeated, and in the way."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone, load_backbone
from taillift.training.comparison import compare as module
from taillift.training.comparison.compare import collect, compare, expected_seconds, in_order
from taillift.training.comparison.outcome import Outcome, kind_of, read_outcome, write_outcome
from taillift.training.data.dataset import Dataset
from taillift.training.fit.checkpoint import read_metadata, save
from taillift.training.fit.resume import resume_path
from taillift.training.recipe.recipe import NAMES, Recipe, load_recipe
from taillift.training.train import Trainer
from tests.support.outcomes import failed, outcome_of, tail_of
from tests.support.tiny import write_backbone

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SMALL = {"epochs": 1, "batch": 16, "augmentation.copies": 2, "precision": "fp32"}
# Of the tiny tower's two blocks of width 64 at the recipe's least rank, and of three classes.
LORA = 2 * 4 * 64 * 16 + 3 * 64
# A rate at which the first epochs end in infinity.
WILD = {
    "optimiser.head_rate": 1e38,
    "optimiser.tuner_rate": 1e38,
    "epochs": 3,
    "head.kind": "linear",
}


@pytest.fixture(scope="module")
def backbone(tiny_backbone: str) -> Backbone:
    return load_backbone(tiny_backbone)


def recipe(name: str, seed: int = 0, **changes: Any) -> Recipe:
    trained = {} if name == "zero-shot" else SMALL
    return load_recipe(name, {**trained, "seed": seed, **changes})


def run(
    dataset: Dataset, backbone: Backbone, recipes: Sequence[Recipe], out: Path, **more: Any
) -> tuple[list[Outcome], list[str]]:
    """The outcomes, and what was told meanwhile."""
    told: list[str] = []
    outcomes = compare(dataset, backbone, recipes, out, CPU, tell=told.append, **more)
    return outcomes, told


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the recipes that were trained, in order."""
    names: list[str] = []
    plain = Trainer.train

    def counted(self: Trainer, recipe: Recipe, *rest: Any) -> Any:
        names.append(f"{recipe.name}-{recipe.seed}")
        return plain(self, recipe, *rest)

    monkeypatch.setattr(Trainer, "train", counted)
    return names


def test_every_run_leaves_its_checkpoint_its_outcome_and_its_rows(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    recipes = [recipe(name, seed) for name in ("zero-shot", "lora") for seed in (0, 1)]
    outcomes, told = run(colours, backbone, recipes, tmp_path)
    assert [(one.recipe.name, one.recipe.seed) for one in outcomes] == [
        *(("zero-shot", 0), ("zero-shot", 1), ("lora", 0), ("lora", 1))
    ], "as they were asked for"
    assert told[0].startswith("[1/4] ")
    for one in outcomes:
        path = tmp_path / f"{one.recipe.name}-{one.recipe.seed}.json"
        assert read_outcome(path) == one
        assert read_metadata(path.with_suffix(".safetensors")).recipe == one.recipe
        assert one.evaluation is not None
        assert one.evaluation.images == 6
        assert len(one.accuracies) == 3
        assert one.fingerprint == colours.fingerprint
        assert one.record is not None
    assert [one.trainable_parameters for one in outcomes] == [0, 0, LORA, LORA]
    found = rows(tmp_path)
    assert [(row["recipe"], row["seed"], row["views"]) for row in found] == [
        (name, seed, views) for name in ("lora", "zero-shot") for seed in "01" for views in "15"
    ]
    assert float(found[0]["overall"]) == pytest.approx(
        outcomes[2].evaluation.single.overall, abs=0.01
    )  # type: ignore[union-attr]
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def test_what_is_finished_is_not_run_again_and_what_is_missing_is(
    colours: Dataset, backbone: Backbone, tmp_path: Path, trained: list[str]
) -> None:
    first, _ = run(colours, backbone, [recipe("lora")], tmp_path)
    (tmp_path / "results.csv").unlink()
    again, told = run(colours, backbone, [recipe("lora")], tmp_path)
    assert again == first
    assert told == ["1 of 1 runs were finished before"]
    assert len(rows(tmp_path)) == 2, "the rows are made anew"
    more, told = run(colours, backbone, [recipe("lora"), recipe("lora", 1)], tmp_path)
    assert more[0] == first[0]
    assert told[0] == "1 of 2 runs were finished before"
    assert "about 0:00:" in told[1], "the time left is estimated from the run that is known"
    assert trained == ["lora-0", "lora-1"]


def test_a_run_that_diverges_stops_no_other_and_is_tried_again(
    colours: Dataset, backbone: Backbone, tmp_path: Path, trained: list[str]
) -> None:
    wild = recipe("full", **WILD)
    outcomes, told = run(colours, backbone, [wild, recipe("lora")], tmp_path)
    assert outcomes[0].failure is not None
    assert "the loss is" in outcomes[0].failure
    assert outcomes[0].evaluation is None
    assert outcomes[1].evaluation is not None
    assert any(line.strip().startswith("failed: the loss is") for line in told)
    assert not (tmp_path / "full-0.safetensors").exists()
    assert [(row["recipe"], row["views"]) for row in rows(tmp_path)] == [
        *(("full", ""), ("lora", "1"), ("lora", "5"))
    ]
    run(colours, backbone, [wild, recipe("lora")], tmp_path)
    assert sorted(trained) == ["full-0", "full-0", "lora-0"]


def test_results_of_something_else_are_kept_unless_replacing_is_asked_for(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    (first,), _ = run(colours, backbone, [recipe("lora")], tmp_path)
    other = recipe("lora", epochs=2)
    with pytest.raises(UserError, match=r"lora-0.safetensors is of another recipe, data or back"):
        run(colours, backbone, [recipe("zero-shot"), other], tmp_path)
    assert read_outcome(tmp_path / "lora-0.json") == first
    assert not (tmp_path / "zero-shot-0.json").exists(), "told before any work"
    (second,), _ = run(colours, backbone, [other], tmp_path, replace=True)
    assert second.recipe.epochs == 2
    assert read_outcome(tmp_path / "lora-0.json") == second


def test_a_run_that_started_from_other_descriptions_is_another_one(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    sentences, out = tmp_path / "sentences.json", tmp_path / "out"
    described = recipe("head", **{"head.initial": {"name": "descriptions", "path": str(sentences)}})

    def starts_from(word: str, **more: bool) -> torch.Tensor:
        sentences.write_text(json.dumps({name: [f"{word} {name}"] for name in colours.names}))
        run(colours, backbone, [described], out, **more)
        return load_file(out / "head-0.safetensors")["head.weight"]

    first = starts_from("a jolly")
    with pytest.raises(UserError, match=r"head-0\.safetensors is of another recipe"):
        starts_from("a gloomy")
    assert not torch.equal(starts_from("a gloomy", replace=True), first)


@pytest.mark.parametrize("other", ["photos", "backbone"])
def test_results_on_other_photos_or_of_another_backbone_are_never_mixed(
    colours: Dataset, backbone: Backbone, tmp_path: Path, other: str
) -> None:
    run(colours, backbone, [recipe("lora")], tmp_path)
    changed = replace(colours, val=None) if other == "photos" else colours
    if other == "backbone":
        backbone = load_backbone(write_backbone(tmp_path, seed=1))
    with pytest.raises(UserError, match=r"lora-0\.json is of other photos or another backbone"):
        run(changed, backbone, [recipe("zero-shot")], tmp_path)
    assert not (tmp_path / "zero-shot-0.json").exists(), "told before any work"
    assert {row["recipe"] for row in rows(tmp_path)} == {"lora"}
    run(changed, backbone, [recipe("zero-shot")], tmp_path, replace=True)
    assert {row["recipe"] for row in rows(tmp_path)} == {"zero-shot"}
    assert (tmp_path / "lora-0.safetensors").exists(), "it is not in the way"


def test_what_an_interrupted_run_left_is_gone_on_from_and_another_runs_only_replaced(
    colours: Dataset, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = recipe("lora", epochs=3)
    (whole,), _ = run(colours, backbone, [long], tmp_path / "whole")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_measure", stop)
        with pytest.raises(KeyboardInterrupt):
            run(colours, backbone, [long], tmp_path)
    state = resume_path(tmp_path / "lora-0.safetensors")
    assert state.exists()
    (other,), _ = run(colours, backbone, [recipe("lora")], tmp_path)
    assert other.failure is not None
    assert "interrupted run with another recipe" in other.failure
    (resumed,), _ = run(colours, backbone, [long], tmp_path)
    assert resumed.accuracies == whole.accuracies
    assert not state.exists()
    state.write_bytes(b"of who knows what")
    (other,), _ = run(colours, backbone, [recipe("lora")], tmp_path, replace=True)
    assert other.failure is None


def test_what_train_has_left_is_measured_and_not_trained_again(
    colours: Dataset, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,), _ = run(colours, backbone, [recipe("lora")], tmp_path / "whole")
    trained = Trainer(colours, backbone, CPU).train(recipe("lora"))
    save(tmp_path / "lora-0.safetensors", trained.model, trained.metadata)

    def train(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Trainer, "train", train)
    (measured,), _ = run(colours, backbone, [recipe("lora")], tmp_path)
    assert measured.accuracies == whole.accuracies
    assert measured.trainable_parameters == whole.trainable_parameters
    assert measured.record == trained.metadata.record
    assert measured.seconds >= trained.metadata.record.seconds


def test_recipes_that_share_a_title_are_told_apart(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    mine = recipe("zero-shot").model_copy(update={"name": "mine", "title": "head only"})
    _, told = run(colours, backbone, [mine, recipe("head")], tmp_path)
    begun = sorted(line.split("] ")[1].split(", ")[0] for line in told if line.startswith("["))
    assert begun == ["head only (head)", "head only (mine)"]


def test_a_recipe_that_is_asked_for_twice_is_refused(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="lora with seed 0 is asked for twice"):
        run(colours, backbone, [recipe("lora"), recipe("lora", epochs=2)], tmp_path)


def test_without_held_out_photos_there_is_nothing_to_compare_on(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    bare = Dataset("bare", colours.classes, colours.names, colours.train, None, None)
    with pytest.raises(UserError, match="bare has neither test/ nor val/"):
        run(bare, backbone, [recipe("lora")], tmp_path)


def test_rows_of_several_processes_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process leaves its outcome and its CSV while this one writes its own CSV."""
    counts = tail_of(6)
    mine, other = (outcome_of("lift", seed, [50.0] * 6, counts) for seed in (0, 1))
    write_outcome(tmp_path / "lift-0.json", mine)
    plain = module.write_csv
    written: list[int] = []

    def slow(path: Path, outcomes: Sequence[Outcome]) -> None:
        if not written:
            write_outcome(tmp_path / "lift-1.json", other)
            plain(path, [mine, other])
        written.append(len(outcomes))
        plain(path, outcomes)

    monkeypatch.setattr(module, "write_csv", slow)
    collect(tmp_path)
    assert written == [1, 2]
    assert [row["seed"] for row in rows(tmp_path)] == ["0", "0", "1", "1"]


def test_what_is_no_outcome_is_left_out_of_the_rows(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("[1]")
    (tmp_path / "torn.json").write_text('{"key": ')
    write_outcome(tmp_path / "lift-0.json", outcome_of("lift", 0, [50.0] * 6, tail_of(6)))
    collect(tmp_path)
    assert len(rows(tmp_path)) == 2


def test_recipes_whose_photos_are_cropped_alike_follow_each_other() -> None:
    names = ["head", "lift-plus", "full", "lift"]
    recipes = [load_recipe(name, {"seed": seed}) for seed in (1, 0) for name in names]
    found = [(one.seed, one.name) for one in in_order(recipes)]
    assert found == [
        (seed, name) for seed in (0, 1) for name in ("lift-plus", "head", "full", "lift")
    ]


def test_time_is_estimated_from_the_same_recipe_or_the_average() -> None:
    counts = tail_of(6)
    lift, head = (outcome_of(name, 0, [50.0] * 6, counts) for name in ("lift", "head"))
    known = [
        lift.model_copy(update={"seconds": 100.0}),
        failed(head).model_copy(update={"seconds": 20.0}),
    ]
    asked = [load_recipe(name, {"seed": 1}) for name in ("lift", "full")]
    assert expected_seconds(asked, known) == 100 + 60
    assert expected_seconds(asked, []) is None


def test_shipped_recipes_are_of_the_kind_that_they_are_compared_as() -> None:
    kinds = {name: kind_of(load_recipe(name)) for name in NAMES}
    assert {name for name in NAMES if kinds[name] == "frozen"} == {"zero-shot", "head"}
    assert {name for name in NAMES if kinds[name] == "heavy"} == {
        *("full", "full-adamw", "last-block")
    }
    assert kind_of(load_recipe("lift", {"epochs": 0})) == "frozen", "nothing is trained"
