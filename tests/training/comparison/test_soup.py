"""Soups of real checkpoints of a tiny backbone: made, refused, chosen, exported and served."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from taillift.cli import app
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.extension import extend
from taillift.models.bundle.folder import DELTA
from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone, load_backbone
from taillift.models.lift.model import Model
from taillift.training.comparison.soup import (
    GRID,
    Ingredient,
    Parent,
    averaged,
    checkpoint_of,
    chosen_shares,
    given_shares,
    greedy_mixture,
    on_val,
    parents_of,
    read_ingredients,
    require_photos,
    seed_shares,
    soup_recipe,
    subset_shares,
    train_soup,
    with_new_head,
)
from taillift.training.data.dataset import Dataset
from taillift.training.export.export import export
from taillift.training.fit.build import resolve_recipe
from taillift.training.fit.checkpoint import own_photos, read_metadata, restore, save
from taillift.training.recipe.recipe import Recipe, load_recipe
from taillift.training.train import Run, Trainer
from tests.support.tiny import write_photo, write_photos

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
PIXELS = torch.randint(
    0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
SMALL = {"epochs": 1, "batch": 16, "augmentation.copies": 2, "precision": "fp32"}
# In the order of the tests; each with its changes to a recipe.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lift": ("lift", {"optimiser.tuner_rate": 0.05}),
    "full": ("full", {"optimiser.tuner_rate": 0.05}),
    "lora": ("lora", {"optimiser.tuner_rate": 0.05, "blocks": 1}),
    "head": ("head", {}),
    "linear": ("head", {"head.kind": "linear"}),
    "sharp": ("head", {"head.scale": 30}),
    "plain": ("head", {"loss.name": "cross-entropy"}),
    "adapter": ("adapter", {}),
    "bilinear": ("head", {"augmentation.interpolation": "bilinear"}),
}
Paths = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def backbone(tiny_backbone: str) -> Backbone:
    return load_backbone(tiny_backbone)


@pytest.fixture(scope="module")
def paths(colours: Dataset, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Trains the runs of these names once, and returns their checkpoints."""
    folder, trainer = tmp_path_factory.mktemp("checkpoints"), Trainer(colours, backbone, CPU)

    def checkpoints(*names: str) -> list[Path]:
        for name in names:
            recipe, changes = RUNS[name]
            path = folder / f"{name}.safetensors"
            if not path.exists():
                run = trainer.train(load_recipe(recipe, {**SMALL, **changes}))
                save(path, run.model, run.metadata)
        return [folder / f"{name}.safetensors" for name in names]

    return checkpoints


@torch.no_grad()
def logits(model: torch.nn.Module) -> np.ndarray:
    result: np.ndarray = model.eval()(PIXELS)[0].numpy()
    return result


def soup(**changes: Any) -> Recipe:
    """Return a soup of short full fine-tunings without a new head, and with changes."""
    plain = {"parents": ["full", "full-adamw"], "new_head": False}
    fields = {f"soup.{name}": value for name, value in (plain | changes).items()}
    return load_recipe("soup", {**SMALL, **fields})


def made(
    recipe: Recipe, dataset: Dataset, backbone: Backbone, folder: Path
) -> tuple[Run, list[str]]:
    """Return the soup of a recipe, and the lines that were logged."""
    lines: list[str] = []
    trainer = Trainer(dataset, backbone, CPU)
    return train_soup(trainer, recipe, backbone, folder, log=lines.append), lines


@pytest.fixture(scope="module")
def halves(
    colours: Dataset, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Path]:
    """The soup of a half of LIFT and a half of full fine-tuning, and the folder of its parents."""
    folder = tmp_path_factory.mktemp("runs")
    return made(soup(parents=["lift", "full"], share=0.5), colours, backbone, folder)[0], folder


@pytest.mark.parametrize("names", [("lift", "full"), ("lora", "lift"), ("head", "lora", "full")])
def test_with_a_whole_share_a_soup_is_that_checkpoint(
    paths: Paths, backbone: Backbone, names: tuple[str, ...]
) -> None:
    ingredients = read_ingredients(paths(*names))
    for chosen, ingredient in enumerate(ingredients):
        shares = [float(number == chosen) for number in range(len(names))]
        soup = averaged(ingredients, shares, backbone)
        assert np.abs(logits(soup.model) - logits(ingredient.load())).max() < 1e-5
        assert soup.metadata.recipe.tuners == ingredient.metadata.recipe.tuners


def test_a_soup_comes_back_from_its_file_and_names_all_parents(
    paths: Paths, backbone: Backbone, tmp_path: Path
) -> None:
    lift, full = paths("lift", "full")
    soup = averaged(read_ingredients([lift, full]), [0.25, 0.75], backbone)
    save(tmp_path / "soup.safetensors", soup.model, soup.metadata)
    model, metadata = restore(tmp_path / "soup.safetensors")
    assert np.array_equal(logits(model), logits(soup.model))
    assert [(one.file, one.share) for one in metadata.parents] == [
        ("lift.safetensors", 0.25),
        ("full.safetensors", 0.75),
    ]
    assert metadata.parents[1].recipe == read_metadata(full).recipe
    assert metadata.parents[1].record == read_metadata(full).record
    assert metadata.recipe.title == "soup of LIFT and full, SGD"
    assert [tuner.name for tuner in metadata.recipe.tuners] == ["full", "adaptformer"]
    twice = averaged(read_ingredients([tmp_path / "soup.safetensors", lift]), [0.5, 0.5], backbone)
    assert twice.metadata.parents[0].parents == metadata.parents


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("lift", "linear"), "a head of another kind (linear, not cosine)"),
        (("lift", "sharp"), "a head of another scale (30.0, not 16.0)"),
        (("lift", "plain"), "a loss that leaves another prior"),
        (("lift", "bilinear"), "another preprocessing"),
        (("lift", "adapter"), "has adapter, which has no average"),
        (("lift",), "name two checkpoints or more"),
    ],
)
def test_what_has_no_average_is_refused_in_a_line(
    paths: Paths, names: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_ingredients(paths(*names))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ("a", "b", "c")}, "other classes"),
        ({"counts": (30, 21, 6)}, "other numbers of training photos"),
    ],
)
def test_checkpoints_of_other_photos_are_refused(
    paths: Paths, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    (head,) = paths("head")
    model, metadata = restore(head)
    other = tmp_path / "other.safetensors"
    save(other, model, metadata.model_copy(update=changes))
    with pytest.raises(UserError, match=words):
        read_ingredients([head, other])


def spoiled(ingredient: Ingredient) -> Ingredient:
    """Return a checkpoint whose head says the opposite of what it has learned."""
    model = ingredient.load()
    with torch.no_grad():
        model.head.weight.neg_()
    return replace(ingredient, load=lambda: model)


def test_shares_are_even_unless_others_are_surely_better_on_val(
    paths: Paths, colours: Dataset, backbone: Backbone
) -> None:
    lift, full = read_ingredients(paths("lift", "full"))
    # Whoever looks at test/ fails.
    trainer, lines = Trainer(replace(colours, test=None), backbone, CPU), list[str]()
    assert chosen_shares([lift, full], trainer, backbone, lines.append) == [0.5, 0.5]
    assert len(lines) == len(GRID)
    three = chosen_shares([lift, full, full], trainer, backbone, lines.append)
    assert three == pytest.approx([1 / 3] * 3)
    assert lines[-1].startswith("shares 0,0,1: mean-class ")
    for parents in ([lift, spoiled(full)], [spoiled(full), lift]):
        shares = chosen_shares(parents, trainer, backbone, lines.append)
        good = parents.index(lift)
        assert shares[good] > 0.5
        mixed = on_val(averaged(parents, shares, backbone), trainer).scores.mean_class
        even = on_val(averaged(parents, [0.5, 0.5], backbone), trainer).scores.mean_class
        assert mixed > even


@pytest.mark.parametrize("changes", [{"effort": "full"}, {"steps": 3}, {"unlabelled.name": "loft"}])
def test_a_soups_recipe_can_be_read_again_however_its_parents_were_trained(
    changes: dict[str, Any],
) -> None:
    parents = [
        load_recipe(name, changes).resolved([30, 21, 5], 2, 64) for name in ("lift", "full", "lora")
    ]
    for chosen in (parents, parents[:1]):
        recipe = soup_recipe(chosen)
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
        assert recipe.resolved([30, 21, 5], 2, 64) == recipe


def test_without_val_no_share_is_chosen(paths: Paths, colours: Dataset, backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"has no val/ to choose the share on: .* --share 0\.5"):
        chosen_shares(
            read_ingredients(paths("lift", "full")),
            Trainer(replace(colours, val=None), backbone, CPU),
            backbone,
        )


def test_photos_that_the_checkpoints_do_not_come_from_are_refused(
    paths: Paths, colours: Dataset
) -> None:
    ingredients: list[Ingredient] = read_ingredients(paths("lift", "full"))
    path, metadata = ingredients[0].path, ingredients[0].metadata
    assert own_photos(path, metadata, colours) is colours
    with pytest.raises(UserError, match="was trained on other photos"):
        own_photos(path, metadata, replace(colours, classes=("a", "b", "c")))


def test_a_soup_is_exported_and_answers_as_torch_does(
    halves: tuple[Run, Path], colours: Dataset, tmp_path: Path
) -> None:
    made_by_recipe, _ = halves
    path = tmp_path / "soup.safetensors"
    save(path, made_by_recipe.model, made_by_recipe.metadata)
    exported = export(path, colours, tmp_path / "bundle", calibrated=False)
    assert exported.manifest.method.name == "soup"
    served = Classifier.open(tmp_path / "bundle").run(PIXELS.numpy()).logits
    assert np.abs(served - logits(made_by_recipe.model)).max() < 1e-4
    page = (tmp_path / "bundle" / "report" / "report.html").read_text("utf-8")
    assert "0.5 of lift-0.safetensors (LIFT, seed 0" in page
    for number in range(3):
        write_photo(tmp_path / f"new/yellow/{number}.png", (220, 220, 30), number)
    extend(tmp_path / "bundle", tmp_path / "new", tmp_path / "extended")
    extended = read_metadata(tmp_path / "extended" / DELTA)
    assert extended.parents == made_by_recipe.metadata.parents
    with pytest.raises(UserError, match="cannot be trained again to calibrate by cross-fitting"):
        export(path, replace(colours, val=None), tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "checkpoints", "shares"),
    [("0.25", 2, [0.75, 0.25]), ("1", 2, [0, 1]), ("0.2,0.3,0.5", 3, [0.2, 0.3, 0.5])],
)
def test_shares_are_read(text: str, checkpoints: int, shares: list[float]) -> None:
    assert given_shares(text, checkpoints) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("text", "checkpoints"),
    [("half", 2), ("1.5", 2), ("nan", 2), ("-0.1", 2), ("0.5", 3), ("0.5,0.6", 2), ("", 2)],
)
def test_other_shares_are_refused(text: str, checkpoints: int) -> None:
    with pytest.raises(UserError, match=rf"for {checkpoints} checkpoints: give auto"):
        given_shares(text, checkpoints)


def test_the_command_writes_a_soup_once(paths: Paths, tmp_path: Path) -> None:
    out = tmp_path / "soup.safetensors"
    command = ["merge", *map(str, paths("lift", "full")), "--out", str(out)]
    missing = CliRunner().invoke(app, command)
    assert "--share auto chooses on photos" in str(missing.exception)
    assert not out.exists()
    done = CliRunner().invoke(app, [*command, "--share", "0.5"])
    assert done.exit_code == 0, done.exception
    words = "soup of LIFT and full, SGD (0.5 of lift.safetensors, 0.5 of full.safetensors)"
    assert words in " ".join(done.output.split())
    again = CliRunner().invoke(app, [*command, "--share", "0.5"])
    assert "exists already" in str(again.exception)


def test_the_command_chooses_on_val_and_trains_the_head_alone(
    paths: Paths, colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    counts = dict(zip(colours.classes, colours.counts, strict=True))
    photos = write_photos(tmp_path / "colours", counts, ("train", "val", "test"))
    out = tmp_path / "soup.safetensors"
    both = paths("lift", "full")
    command = ["merge", *map(str, both), "--out", str(out), "--head", "--data", str(photos)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.exception
    assert done.output.count("mean-class") == len(GRID)
    model, metadata = restore(out)
    assert metadata.recipe.title.endswith(", new head")
    assert metadata.record.losses[-1] < metadata.record.losses[0]
    shares = {one.file: one.share for one in metadata.parents}
    soup = averaged(read_ingredients(both), [shares.get(path.name, 0) for path in both], backbone)
    assert metadata.parents == soup.metadata.parents
    before, after = soup.model.state_dict(), model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight"}


def test_a_new_head_has_the_prior_of_the_labelled_photos_it_was_trained_on(
    paths: Paths, colours: Dataset, backbone: Backbone
) -> None:
    soup = averaged(read_ingredients(paths("lift", "full")), [0.5, 0.5], backbone)
    counted = soup.metadata.model_copy(update={"pseudo_counts": (9.0, 5.0, 1.0)})
    renewed = with_new_head(replace(soup, metadata=counted), colours, backbone)
    assert renewed.metadata.prior_counts == tuple(colours.counts)


def test_checkpoints_of_several_sources_are_merged_on_all_of_them(
    paths: Paths, colours: Dataset, tmp_path: Path
) -> None:
    counts = dict(zip(colours.classes, colours.counts, strict=True))
    first = colours.classes[0]
    photos = write_photos(tmp_path / "set", {**counts, first: counts[first] - 1}, ("train", "val"))
    write_photo(tmp_path / f"more/train/{first}/new.png", (200, 30, 30), 987)
    out = tmp_path / "soup.safetensors"
    command = ["merge", *map(str, paths("lift", "full")), "--out", str(out), "--data", str(photos)]
    without = CliRunner().invoke(app, command)
    assert "name the photos it was trained on, with the same --add" in str(without.exception)
    done = CliRunner().invoke(app, [*command, "--add", str(tmp_path / "more")])
    assert done.exit_code == 0, done.exception
    assert done.output.count("mean-class") == len(GRID)


def test_a_soup_answers_with_the_mean_of_the_taus_that_its_parents_chose(
    paths: Paths, backbone: Backbone
) -> None:
    plain, other = read_ingredients(paths("lift", "full"))
    recipe = other.metadata.recipe.with_tau(1.8)
    metadata = other.metadata.model_copy(update={"recipe": recipe})
    parents = [plain, replace(other, metadata=metadata)]
    taus = [
        averaged(parents, [1 - share, share], backbone).metadata.recipe.chosen_tau
        for share in (0, 0.25, 1)
    ]
    assert taus == [None, pytest.approx(1.2), 1.8]


def test_a_soups_parents_are_trained_once_and_all_named(
    colours: Dataset, backbone: Backbone, tmp_path: Path, trained: list[str]
) -> None:
    run, _ = made(soup(), colours, backbone, tmp_path)
    assert trained == ["full-0", "full-adamw-0"]
    found = run.metadata.recipe
    assert (found.name, found.soup and found.soup.new_head) == ("soup", False)
    assert found.soup is not None
    assert isinstance(found.soup.share, tuple)
    shares = {parent.file: parent.share for parent in run.metadata.parents}
    files = ("full-0.safetensors", "full-adamw-0.safetensors")
    assert tuple(shares.get(file, 0) for file in files) == found.soup.share
    parents = [read_metadata(tmp_path / file) for file in files]
    both = sum(parent.trainable_parameters for parent in parents)
    assert run.metadata.trainable_parameters == both
    seconds = sum(parent.record.seconds for parent in parents)
    assert run.metadata.record.seconds == pytest.approx(seconds)
    save(tmp_path / "soup-0.safetensors", run.model, run.metadata)
    assert restore(tmp_path / "soup-0.safetensors")[1] == run.metadata
    _, lines = made(soup(share=0.5), colours, backbone, tmp_path)
    assert len(trained) == 2
    assert lines[:2] == [
        "full, SGD, seed 0: trained before",
        "full, AdamW, seed 0: trained before",
    ]
    others = {"soup.parents": ["full", "full-adamw"], "optimiser.tuner_rate": 0.1}
    changed = load_recipe("soup", {**SMALL, **others})
    with pytest.raises(UserError, match=r"full-0\.safetensors is of another recipe"):
        made(changed, colours, backbone, tmp_path)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_with_a_whole_share_a_trained_soup_is_that_parent(
    halves: tuple[Run, Path], colours: Dataset, backbone: Backbone, share: float
) -> None:
    _, folder = halves
    run, _ = made(soup(parents=["lift", "full"], share=share), colours, backbone, folder)
    parent, _ = restore(folder / f"{('lift', 'full')[int(share)]}-0.safetensors")
    assert np.abs(logits(run.model) - logits(parent)).max() < 1e-5


def test_a_soup_that_was_killed_continues_and_ends_with_the_same_weights(
    halves: tuple[Run, Path],
    colours: Dataset,
    backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, _ = halves
    recipe = soup(parents=["lift", "full"], share=0.5)
    names: list[str] = []
    plain = Trainer.train

    def killed(self: Trainer, recipe: Recipe, *rest: Any, **more: Any) -> Run:
        names.append(recipe.name)
        if names == ["lift", "full"]:
            raise KeyboardInterrupt
        return plain(self, recipe, *rest, **more)

    monkeypatch.setattr(Trainer, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        made(recipe, colours, backbone, tmp_path)
    again, _ = made(recipe, colours, backbone, tmp_path)
    assert names == ["lift", "full", "full"]
    assert np.array_equal(logits(again.model), logits(whole.model))
    assert again.metadata.key == whole.metadata.key


def test_a_soup_overwrites_other_parents_only_on_request(
    halves: tuple[Run, Path], colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    shutil.copy(halves[1] / "lift-0.safetensors", tmp_path / "full-0.safetensors")
    recipe = resolve_recipe(backbone, soup(share=0.5), colours.counts)
    trainer, parent = Trainer(colours, backbone, CPU), Parent(recipe)
    with pytest.raises(UserError, match=r"full-0\.safetensors is of another recipe"):
        checkpoint_of(trainer, parent, backbone, tmp_path, print)
    path = checkpoint_of(trainer, parent, backbone, tmp_path, print, replace=True)
    names = [one.recipe.name for one in read_metadata(path).parents]
    assert names == ["full", "full-adamw"]


@given(st.integers(1, 6), st.integers(0, 10_000))
def test_a_greedy_soup_is_never_worse_than_its_best_member(members: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    mixtures = np.eye(members)
    curvature = random.normal(size=(members, members))

    def score(shares: Any) -> float:
        return float(np.round(np.asarray(shares) @ curvature @ np.asarray(shares), 1))

    shares = greedy_mixture(mixtures.tolist(), score)
    assert sum(shares) == pytest.approx(1)
    assert score(shares) >= max(map(score, mixtures))


def test_seeds_are_added_unless_val_gets_worse(
    colours: Dataset, backbone: Backbone, tmp_path: Path, trained: list[str]
) -> None:
    recipe = soup(parents=["lora"], seeds=[3, 4])
    run, _ = made(recipe, colours, backbone, tmp_path)
    assert trained == ["lora-3", "lora-4"]
    trainer = Trainer(colours, backbone, CPU)
    members = [Run(*restore(tmp_path / f"lora-{seed}.safetensors")) for seed in (3, 4)]
    best = max(on_val(member, trainer).scores.mean_class for member in members)
    assert on_val(run, trainer).scores.mean_class >= best
    assert {parent.recipe.seed for parent in run.metadata.parents} <= {3, 4}


def test_without_val_parents_have_equal_shares_and_the_user_is_told(
    paths: Paths, colours: Dataset, backbone: Backbone
) -> None:
    lines: list[str] = []
    trainer = Trainer(replace(colours, val=None), backbone, CPU)
    ingredients = read_ingredients(paths("lift", "full"))
    equal, given_ones = (soup(**changes).soup for changes in ({}, {"share": 0.25}))
    assert equal is not None
    assert given_ones is not None
    assert seed_shares(equal, ingredients, trainer, backbone, lines.append) == [0.5, 0.5]
    assert "There is no val/ to choose the share on: each parent has the same (0.5)" in lines[0]
    assert seed_shares(given_ones, ingredients, trainer, backbone, lines.append) == [0.75, 0.25]
    assert len(lines) == 1


def test_without_val_one_parent_has_the_whole_share_of_its_seed(
    paths: Paths, colours: Dataset, backbone: Backbone
) -> None:
    lines: list[str] = []
    trainer = Trainer(replace(colours, val=None), backbone, CPU)
    over_seeds = soup(parents=["lift"], seeds=[0, 1]).soup
    assert over_seeds is not None
    ingredients = read_ingredients(paths("lift", "full"))[:1]
    assert seed_shares(over_seeds, ingredients, trainer, backbone, lines.append) == [1.0]
    assert lines == []


def test_ever_longer_tailed_subsets_are_trained_on_and_the_head_sees_all_photos(
    colours: Dataset,
    backbone: Backbone,
    tmp_path: Path,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = resolve_recipe(backbone, soup(parents=["full"], subsets=9), colours.counts)
    (parents,) = parents_of(recipe, colours)
    kept = [
        np.bincount(np.delete(colours.train.labels, list(parent.without)), minlength=3).tolist()
        for parent in parents
    ]
    assert kept == [[30, 21, 5], [5, 5, 5], [10, 10, 5], [20, 20, 5], [30, 21, 5]]
    # At least 100 steps of 16 on the smallest.
    assert parents[1].recipe.epochs == 100
    monkeypatch.setattr("taillift.training.comparison.soup.SUBSET_STEPS", 2)
    short = soup(parents=["full"], subsets=1, share=0.5, new_head="auto")
    run, _ = made(short, colours, backbone, tmp_path)
    assert trained == ["full-start-0", "full-at-most-5-0"]
    assert [parent.share for parent in run.metadata.parents] == [0.5, 0.5]
    assert run.metadata.recipe.title == "soup of full, SGD on 1 subsets, new head"
    assert run.metadata.counts == tuple(colours.counts)


def test_what_a_recipe_draws_of_a_subset_does_not_depend_on_the_other_parents(
    colours: Dataset, backbone: Backbone
) -> None:
    def drawn(*names: str) -> dict[str, frozenset[int]]:
        recipe = resolve_recipe(backbone, soup(parents=list(names), subsets=2), colours.counts)
        (parents,) = parents_of(recipe, colours)
        return {parent.recipe.name: parent.without for parent in parents[1:]}

    both = drawn("full", "full-adamw")
    assert drawn("full-adamw", "full") == both
    assert drawn("full") == {name: both[name] for name in both if "adamw" not in name}
    assert both["full-at-most-5"] != both["full-adamw-at-most-5"]


def test_parents_are_in_memory_one_at_a_time(paths: Paths, backbone: Backbone) -> None:
    alive: list[ref[Model]] = []

    def counted(ingredient: Ingredient) -> Ingredient:
        def load() -> Model:
            assert [one() for one in alive] == [None] * len(alive)
            model = ingredient.load()
            alive.append(ref(model))
            return model

        return replace(ingredient, load=load)

    ingredients = read_ingredients(paths("lift", "full", "lora"))
    made = averaged(list(map(counted, ingredients)), [0.2, 0.3, 0.5], backbone)
    assert len(alive) == 3
    assert np.array_equal(
        logits(made.model), logits(averaged(ingredients, [0.2, 0.3, 0.5], backbone).model)
    )


@pytest.mark.parametrize(("subsets", "branches", "share"), [(1, 1, 0.7), (3, 2, 0.7), (4, 1, 0.3)])
def test_the_shares_of_subsets_are_those_of_the_recursion(
    subsets: int, branches: int, share: float
) -> None:
    models = np.random.default_rng(0).normal(size=1 + subsets * branches)
    expected = models[0]
    for branch in models[1:].reshape(subsets, branches):
        expected = (1 - share) * expected + share * branch.mean()
    shares = subset_shares(subsets, branches, share)
    assert np.dot(shares, models) == pytest.approx(expected)
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parents": ["lift"]}, "has one parent with one seed"),
        ({"parents": ["lift", "lift"]}, "names lift twice"),
        ({"parents": ["lift", "adapter"]}, "adapter has adapter, which has no average"),
        ({"parents": ["lift", "lift-published"]}, "a head of another scale (25.0, not 16.0)"),
        ({"parents": ["lift", "zero-shot"]}, "a head in another space (projected, not features)"),
    ],
)
def test_parents_without_an_average_are_refused_before_any_is_trained(
    colours: Dataset,
    backbone: Backbone,
    tmp_path: Path,
    trained: list[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    recipe = load_recipe("soup", {f"soup.{name}": value for name, value in changes.items()})
    with pytest.raises(UserError) as caught:
        made(recipe, colours, backbone, tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert trained == []


def test_few_shot_accuracy_needs_few_shot_photos(colours: Dataset) -> None:
    assert colours.val is not None
    require_photos("few", colours, colours.val)
    frequent = [index for index, label in enumerate(colours.val.labels) if label < 2]
    without = colours.val.only(frequent)
    require_photos("mean-class", colours, without)
    # Of the three classes, green is few-shot, too, if it has at most 20 photos.
    with pytest.raises(UserError, match="--aim few: colours holds out no photo of a few-shot"):
        require_photos("few", colours, without)
