"""Comparisons with real runs of a tiny model: what is kept, repeated, replaced and refused."""

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
from taillift.training.comparison.compare import (
    as_chosen,
    choose,
    collect,
    compare,
    evaluated,
    expected_seconds,
    in_order,
)
from taillift.training.comparison.outcome import (
    Outcome,
    kind_of,
    read_outcome,
    write_csv,
    write_outcome,
)
from taillift.training.data.dataset import Dataset
from taillift.training.evaluation import TAUS
from taillift.training.fit.checkpoint import ParentCheckpoint, read_metadata, restore, save
from taillift.training.fit.resume import resume_path
from taillift.training.recipe.recipe import NAMES, Recipe, load_recipe
from taillift.training.train import Run, Trainer
from tests.support.outcomes import failed, outcome_of, tail_of
from tests.support.tiny import write_backbone

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SMALL = {"epochs": 1, "batch": 16, "augmentation.copies": 2, "precision": "fp32"}
# The weights of LoRA in the tiny tower's two blocks of width 64, at the recipe's smallest rank,
# and of a head with three classes.
LORA = 2 * 4 * 64 * 16 + 3 * 64
# With these rates the first epochs end in infinity.
DIVERGING: dict[str, Any] = {
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
    """Return the outcomes, and the lines that were logged."""
    lines: list[str] = []
    outcomes = compare(dataset, backbone, recipes, out, CPU, log=lines.append, **more)
    return outcomes, lines


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_run_leaves_its_checkpoint_its_outcome_and_its_rows(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    recipes = [recipe(name, seed) for name in ("zero-shot", "lora") for seed in (0, 1)]
    outcomes, lines = run(colours, backbone, recipes, tmp_path)
    assert [(outcome.recipe.name, outcome.recipe.seed) for outcome in outcomes] == [
        *(("zero-shot", 0), ("zero-shot", 1), ("lora", 0), ("lora", 1))
    ], "in the order of the request"
    assert lines[0].startswith("[1/4] ")
    for outcome in outcomes:
        path = tmp_path / f"{outcome.recipe.name}-{outcome.recipe.seed}.json"
        assert read_outcome(path) == outcome
        assert read_metadata(path.with_suffix(".safetensors")).recipe == outcome.recipe
        assert outcome.evaluation is not None
        assert outcome.evaluation.images == 6
        assert len(outcome.accuracies) == 3
        assert outcome.fingerprint == colours.fingerprint
        assert outcome.record is not None
    assert [outcome.trainable_parameters for outcome in outcomes] == [0, 0, LORA, LORA]
    table = rows(tmp_path)
    assert [(row["recipe"], row["seed"], row["views"]) for row in table] == [
        (name, seed, views) for name in ("lora", "zero-shot") for seed in "01" for views in "15"
    ]
    lora = outcomes[2].evaluation
    assert lora is not None
    assert float(table[0]["overall"]) == pytest.approx(lora.single.overall, abs=0.01)
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"
    for outcome in outcomes:
        assert outcome.evaluation is not None
        (as_it_is,) = (point for point in outcome.tau_curve if point.tau == 1)
        assert as_it_is.mean_class == pytest.approx(outcome.evaluation.full.mean_class)
    with (tmp_path / "tau.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4 * len(TAUS)


def test_the_curve_of_plain_cross_entropy_begins_with_the_model_as_it_is(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"loss.name": "cross-entropy"}
    plain = recipe("head", **changes)
    ((outcome,), _) = run(colours, backbone, [plain], tmp_path)
    assert outcome.evaluation is not None
    assert outcome.tau_curve[0].tau == 0
    assert outcome.tau_curve[0].mean_class == pytest.approx(outcome.evaluation.full.mean_class)


def test_the_curve_moves_by_what_the_loss_has_counted_pseudo_labels_included(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"loss.name": "cross-entropy"}
    plain = recipe("head", **changes)
    ((outcome,), _) = run(colours, backbone, [plain], tmp_path)
    model, metadata = restore(tmp_path / "head-0.safetensors")
    counted = metadata.model_copy(update={"pseudo_counts": (0.0, 0.0, 500.0)})
    found = evaluated(Trainer(colours, backbone, CPU), Run(model, counted), outcome, 0)
    assert found.evaluation is not None
    assert found.tau_curve[0].mean_class == pytest.approx(found.evaluation.full.mean_class)
    assert found.tau_curve != outcome.tau_curve


def test_finished_runs_are_not_repeated_and_missing_ones_are_run(
    colours: Dataset, backbone: Backbone, tmp_path: Path, trained: list[str]
) -> None:
    first, _ = run(colours, backbone, [recipe("lora")], tmp_path)
    (tmp_path / "results.csv").unlink()
    again, lines = run(colours, backbone, [recipe("lora")], tmp_path)
    assert again == first
    assert lines == ["1 of 1 runs were finished before"]
    assert len(rows(tmp_path)) == 2, "the rows are written again"
    more, lines = run(colours, backbone, [recipe("lora"), recipe("lora", 1)], tmp_path)
    assert more[0] == first[0]
    assert lines[0] == "1 of 2 runs were finished before"
    assert "about 0:00:" in lines[1], "the time left is estimated from the known run"
    assert trained == ["lora-0", "lora-1"]


def test_a_run_that_diverges_does_not_stop_the_others_and_is_repeated(
    colours: Dataset, backbone: Backbone, tmp_path: Path, trained: list[str]
) -> None:
    diverging = recipe("full", **DIVERGING)
    outcomes, lines = run(colours, backbone, [diverging, recipe("lora")], tmp_path)
    assert outcomes[0].failure is not None
    assert "the loss is" in outcomes[0].failure
    assert outcomes[0].evaluation is None
    assert outcomes[1].evaluation is not None
    assert any(line.strip().startswith("failed: the loss is") for line in lines)
    assert not (tmp_path / "full-0.safetensors").exists()
    assert [(row["recipe"], row["views"]) for row in rows(tmp_path)] == [
        *(("full", ""), ("lora", "1"), ("lora", "5"))
    ]
    run(colours, backbone, [diverging, recipe("lora")], tmp_path)
    assert sorted(trained) == ["full-0", "full-0", "lora-0"]


def test_results_of_another_run_are_kept_unless_they_are_to_be_replaced(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    (first,), _ = run(colours, backbone, [recipe("lora")], tmp_path)
    other = recipe("lora", epochs=2)
    with pytest.raises(UserError, match=r"lora-0.safetensors is of another recipe, data or back"):
        run(colours, backbone, [recipe("zero-shot"), other], tmp_path)
    assert read_outcome(tmp_path / "lora-0.json") == first
    assert not (tmp_path / "zero-shot-0.json").exists(), "the error comes before any work"
    (second,), _ = run(colours, backbone, [other], tmp_path, replace=True)
    assert second.recipe.epochs == 2
    assert read_outcome(tmp_path / "lora-0.json") == second


def test_other_descriptions_make_another_run(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    sentences, out = tmp_path / "sentences.json", tmp_path / "out"
    initial: Any = {"name": "descriptions", "path": str(sentences)}
    described = recipe("head", **{"head.initial": initial})

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
    assert not (tmp_path / "zero-shot-0.json").exists(), "the error comes before any work"
    assert {row["recipe"] for row in rows(tmp_path)} == {"lora"}
    run(changed, backbone, [recipe("zero-shot")], tmp_path, replace=True)
    assert {row["recipe"] for row in rows(tmp_path)} == {"zero-shot"}
    assert (tmp_path / "lora-0.safetensors").exists(), "its checkpoint stays"


def test_an_interrupted_run_continues_and_another_runs_state_is_replaced_only_on_request(
    colours: Dataset, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = recipe("lora", epochs=3)
    (whole,), _ = run(colours, backbone, [long], tmp_path / "whole")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", stop)
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
    state.write_bytes(b"of an unknown run")
    (other,), _ = run(colours, backbone, [recipe("lora")], tmp_path, replace=True)
    assert other.failure is None


def test_a_checkpoint_that_train_has_left_is_evaluated_and_not_trained_again(
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


def test_recipes_that_share_a_title_are_distinguished_by_name(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    mine = recipe("zero-shot").model_copy(update={"name": "mine", "title": "head only"})
    _, lines = run(colours, backbone, [mine, recipe("head")], tmp_path)
    labels = sorted(line.split("] ")[1].split(", ")[0] for line in lines if line.startswith("["))
    assert labels == ["head only (head)", "head only (mine)"]


def test_a_recipe_that_is_asked_for_twice_is_refused(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="lora with seed 0 is asked for twice"):
        run(colours, backbone, [recipe("lora"), recipe("lora", epochs=2)], tmp_path)


def test_a_soup_over_seeds_is_not_compared_as_if_it_were_several(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"soup.seeds": [0, 1]}
    recipes = [recipe("soup", seed, **changes) for seed in (0, 1)]
    with pytest.raises(UserError, match="makes the same soup with every seed"):
        run(colours, backbone, recipes, tmp_path)


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
    plain = write_csv
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


def test_files_that_are_not_outcomes_are_left_out_of_the_rows(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("[1]")
    (tmp_path / "torn.json").write_text('{"key": ')
    write_outcome(tmp_path / "lift-0.json", outcome_of("lift", 0, [50.0] * 6, tail_of(6)))
    collect(tmp_path)
    assert len(rows(tmp_path)) == 2


def test_recipes_that_crop_photos_in_the_same_way_follow_each_other() -> None:
    names = ["head", "lift-plus", "full", "lift"]
    recipes = [load_recipe(name, {"seed": seed}) for seed in (1, 0) for name in names]
    ordered = [(recipe.seed, recipe.name) for recipe in in_order(recipes)]
    assert ordered == [
        (seed, name) for seed in (0, 1) for name in ("lift-plus", "head", "full", "lift")
    ]


def test_time_is_estimated_from_the_same_recipe_or_the_average() -> None:
    counts = tail_of(6)
    lift, head = (outcome_of(name, 0, [50.0] * 6, counts) for name in ("lift", "head"))
    known = [
        lift.model_copy(update={"seconds": 100.0}),
        failed(head).model_copy(update={"seconds": 20.0}),
    ]
    missing = [load_recipe(name, {"seed": 1}) for name in ("lift", "full")]
    assert expected_seconds(missing, known) == 100 + 60
    assert expected_seconds(missing, []) is None


def test_shipped_recipes_have_the_kinds_under_which_they_are_compared() -> None:
    kinds = {name: kind_of(load_recipe(name)) for name in NAMES}
    assert {name for name in NAMES if kinds[name] == "frozen"} == {"zero-shot", "head"}
    assert {name for name in NAMES if kinds[name] == "heavy"} == {
        *("full", "full-adamw", "last-block", "soup")
    }
    assert kind_of(load_recipe("lift", {"epochs": 0})) == "frozen", "nothing is trained"


def test_runs_that_tune_the_tower_are_averaged_once_and_compared(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    recipes = [recipe(name) for name in ("head", "lora", "full", "adapter")]
    outcomes, lines = run(colours, backbone, recipes, tmp_path, soup=True)
    made = outcomes[-1]
    assert [one.recipe.name for one in outcomes] == ["head", "lora", "full", "adapter", "soup"]
    assert made.failure is None
    assert made.tau_curve
    metadata = read_metadata(tmp_path / "soup-0.safetensors")
    files = {parent.file for parent in metadata.parents}
    assert files <= {"lora-0.safetensors", "full-0.safetensors"}
    assert [line for line in lines if "soup of LoRA and full, SGD" in line]
    assert {row["recipe"] for row in rows(tmp_path)} == {"adapter", "full", "head", "lora", "soup"}
    again, lines = run(colours, backbone, recipes, tmp_path, soup=True)
    assert again == outcomes
    assert not [line for line in lines if "shares" in line]
    # The parts had to be trained for it, whatever their shares.
    trained = {one.recipe.name: one.trainable_parameters for one in outcomes}
    assert trained["soup"] == trained["lora"] + trained["full"]
    # A soup of other runs is not taken for this one.
    with pytest.raises(UserError, match="is of another recipe, data or backbone"):
        run(colours, backbone, [recipe("lora"), recipe("bias")], tmp_path, soup=True)


def test_a_checkpoint_that_is_not_its_runs_own_is_neither_averaged_nor_chosen(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    recipes = [recipe("lora"), recipe("full")]
    run(colours, backbone, recipes, tmp_path)
    # `train --replace` may have written another run's there.
    model, metadata = restore(tmp_path / "lora-0.safetensors")
    other = metadata.model_copy(update={"key": "0" * 64})
    save(tmp_path / "lora-0.safetensors", model, other, replace=True)
    outcomes, _ = run(colours, backbone, recipes, tmp_path, soup=True, replace=True)
    assert outcomes[-1].failure is not None
    assert "is not the checkpoint of the run in lora-0.json" in outcomes[-1].failure
    assert not (tmp_path / "soup-0.safetensors").exists()
    chosen = tmp_path / "chosen"
    path, _ = choose(colours, backbone, recipes, chosen)
    path.unlink()
    with pytest.raises(UserError, match=r"is not the checkpoint of the run in .*, or is gone"):
        choose(colours, backbone, recipes, chosen)


@pytest.mark.parametrize(
    ("names", "splits", "words"),
    [
        (("lora", "head"), {}, "name two or more"),
        (("lora", "vpt-deep"), {}, "name two or more"),
        (("lora", "full"), {"val": None}, "lacks one of them"),
        (("lora", "full"), {"test": None}, "lacks one of them"),
    ],
)
def test_what_cannot_be_averaged_is_refused_before_any_run(
    colours: Dataset,
    backbone: Backbone,
    tmp_path: Path,
    trained: list[str],
    names: tuple[str, ...],
    splits: dict[str, Any],
    words: str,
) -> None:
    dataset, recipes = replace(colours, **splits), [recipe(name) for name in names]
    with pytest.raises(UserError, match=words):
        run(dataset, backbone, recipes, tmp_path, soup=True)
    assert trained == []


def test_a_recipe_is_chosen_on_val_alone(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    recipes = [recipe("head"), recipe("lora")]
    lines: list[str] = []
    path, reason = choose(colours, backbone, recipes, tmp_path, log=lines.append)
    outcomes = [read_outcome(tmp_path / f"{name}-0.json") for name in ("head", "lora")]
    for outcome in outcomes:
        assert outcome is not None
        assert outcome.evaluation is not None
        assert outcome.evaluation.data == "colours val"
    assert reason.startswith("Take ")
    assert read_metadata(path).recipe.title in reason


def test_without_val_photos_are_set_aside_to_choose_on_and_all_are_trained_on_then(
    colours: Dataset, backbone: Backbone, tmp_path: Path, trained: list[str]
) -> None:
    bare = replace(colours, val=None)
    recipes = [recipe("head"), recipe("lora")]
    lines: list[str] = []
    path, _ = choose(bare, backbone, recipes, tmp_path, log=lines.append)
    assert lines[0].startswith("There is no val/: 11 training photos are set aside as val/")
    assert read_metadata(path).counts == tuple(colours.counts)
    aside = read_metadata(tmp_path / "held-out" / path.name)
    assert sum(aside.counts) == sum(colours.counts) - 11
    assert len(trained) == 3
    assert choose(bare, backbone, recipes, tmp_path)[0] == path
    assert len(trained) == 3, "finished runs are kept"


def test_the_taus_that_were_chosen_on_photos_set_aside_stay_when_all_are_trained_on(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    bare = replace(colours, val=None)
    fields: dict[str, Any] = {"loss.tau": "auto"}
    recipes = [recipe("head", **fields), recipe("lora", **fields)]
    path, _ = choose(bare, backbone, recipes, tmp_path)
    aside = read_metadata(tmp_path / "held-out" / path.name)
    assert aside.recipe.chosen_tau is not None
    assert read_metadata(path).recipe.chosen_tau == aside.recipe.chosen_tau


def test_without_val_another_runs_checkpoint_is_overwritten_only_on_request(
    colours: Dataset, backbone: Backbone, tmp_path: Path, trained: list[str]
) -> None:
    bare, recipes = replace(colours, val=None), [recipe("head"), recipe("lora")]
    other = Trainer(colours, backbone).train(recipe("zero-shot"))
    for name in ("head-0", "lora-0"):
        save(tmp_path / f"{name}.safetensors", other.model, other.metadata)
    with pytest.raises(UserError, match=r"0\.safetensors is of another recipe, data or backbone"):
        choose(bare, backbone, recipes, tmp_path)
    path, _ = choose(bare, backbone, recipes, tmp_path, replace=True)
    assert read_metadata(path).recipe.name in ("head", "lora")
    assert len(trained) == 4, "what was compared is kept"


def test_the_parents_of_a_soup_keep_the_taus_that_they_chose(
    colours: Dataset, backbone: Backbone
) -> None:
    fields: dict[str, Any] = {"loss.tau": "auto", "soup.parents": ["lora", "full", "lift"]}
    made = recipe("soup", **fields)
    assert made.soup is not None
    lora, full, _ = made.soup.parents
    found = Trainer(colours, backbone).train(recipe("zero-shot")).metadata
    used = tuple(
        ParentCheckpoint(
            file="", sha256="", share=0.5, recipe=parent.with_tau(tau), record=found.record
        )
        for parent, tau in ((lora, 0.0), (full, 1.5))
    )
    shared = made.soup.model_copy(update={"share": (0.5, 0.5, 0.0)})
    changes = {"recipe": made.with_tau(0.75).model_copy(update={"soup": shared}), "parents": used}
    again = as_chosen(made, found.model_copy(update=changes))
    assert again.soup is not None
    assert again.soup.shares == (0.5, 0.5, 0.0)
    assert [parent.chosen_tau for parent in again.soup.parents] == [0.0, 1.5, 0.75]
    assert again.undecided is None


def test_a_soup_reuses_the_runs_of_a_comparison_and_is_chosen_on_val(
    colours: Dataset, backbone: Backbone, tmp_path: Path, trained: list[str]
) -> None:
    parents = {"soup.parents": ["full", "full-adamw"]}
    changes: dict[str, Any] = {**parents, "soup.new_head": False, "soup.share": 0.5}
    recipes = [recipe("soup", **changes), recipe("full-adamw")]
    outcomes, lines = run(colours, backbone, recipes, tmp_path)
    assert trained == ["full-adamw-0", "full-0"]
    assert any(line.endswith("full, AdamW, seed 0: trained before") for line in lines)
    made, single = outcomes
    assert (made.recipe.name, kind_of(made.recipe)) == ("soup", "heavy")
    assert made.trainable_parameters == 2 * single.trainable_parameters
    assert made.evaluation is not None
    assert (made.evaluation.data, made.chosen_on) == ("colours test", "colours val")
    assert [len(hits) for hits in made.hits] == [2, 2, 2]
    assert read_metadata(tmp_path / "soup-0.safetensors").key == made.key
    again, _ = run(colours, backbone, recipes, tmp_path)
    assert again == outcomes
    (tmp_path / "soup-0.safetensors").unlink()
    (tmp_path / "soup-0.json").unlink()
    with pytest.raises(UserError, match=r"full-0\.safetensors is of another recipe"):
        run(colours, backbone, [recipe("soup", epochs=2)], tmp_path)
