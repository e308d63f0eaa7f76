"""Soups of real checkpoints of a tiny backbone: made, refused, chosen, exported and served."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from taillift.cli import app
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.extension import extend
from taillift.models.bundle.folder import DELTA
from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone, load_backbone
from taillift.training.comparison.soup import (
    GRID,
    Ingredient,
    averaged,
    chosen_shares,
    given_shares,
    read_ingredients,
    require_own_photos,
    soup_recipe,
    with_new_head,
)
from taillift.training.data.dataset import Dataset
from taillift.training.evaluation import evaluate
from taillift.training.export.export import export
from taillift.training.fit.checkpoint import read_metadata, restore, save
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


@pytest.mark.parametrize("names", [("lift", "full"), ("lora", "lift"), ("head", "lora", "full")])
def test_with_a_whole_share_a_soup_is_that_checkpoint(
    paths: Paths, backbone: Backbone, names: tuple[str, ...]
) -> None:
    ingredients = read_ingredients(paths(*names))
    for chosen, ingredient in enumerate(ingredients):
        shares = [float(number == chosen) for number in range(len(names))]
        soup = averaged(ingredients, shares, backbone)
        assert np.abs(logits(soup.model) - logits(ingredient.run.model)).max() < 1e-5
        assert soup.metadata.recipe.tuners == ingredient.run.metadata.recipe.tuners


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


def test_shares_are_chosen_on_val_and_never_on_test(
    paths: Paths, colours: Dataset, backbone: Backbone
) -> None:
    ingredients = read_ingredients(paths("lift", "full"))
    lines: list[str] = []
    # Whoever looks at test/ fails.
    trainer = Trainer(replace(colours, test=None), backbone, CPU)
    shares = chosen_shares(ingredients, trainer, backbone, lines.append)
    assert len(lines) == len(GRID)
    assert colours.val is not None
    labels = np.asarray(colours.val.labels)
    found = {}
    for share in GRID:
        soup = averaged(ingredients, [1 - share, share], backbone)
        view_logits = trainer.view_logits(soup, colours.val)
        found[share] = evaluate("val", view_logits, labels, colours.groups).full.mean_class
    best = [share for share in GRID if found[share] == max(found.values())]
    assert shares[1] == min(best, key=lambda share: abs(share - 0.5))


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
    require_own_photos(ingredients, colours)
    with pytest.raises(UserError, match="was trained on other photos"):
        require_own_photos(ingredients, replace(colours, classes=("a", "b", "c")))


def test_a_soup_is_exported_and_answers_as_torch_does(
    paths: Paths, colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    soup = averaged(read_ingredients(paths("lift", "full")), [0.5, 0.5], backbone)
    path = tmp_path / "soup.safetensors"
    save(path, soup.model, soup.metadata)
    exported = export(path, colours, tmp_path / "bundle", calibrated=False)
    assert exported.manifest.method.name == "soup"
    served = Classifier.open(tmp_path / "bundle").run(PIXELS.numpy()).logits
    assert np.abs(served - logits(soup.model)).max() < 1e-4
    page = (tmp_path / "bundle" / "report" / "report.html").read_text("utf-8")
    assert "0.5 of lift.safetensors (LIFT, seed 0" in page
    for number in range(3):
        write_photo(tmp_path / f"new/yellow/{number}.png", (220, 220, 30), number)
    extend(tmp_path / "bundle", tmp_path / "new", tmp_path / "extended")
    extended = read_metadata(tmp_path / "extended" / DELTA)
    assert extended.parents == soup.metadata.parents
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
    recipe = other.run.metadata.recipe.with_tau(1.8)
    metadata = other.run.metadata.model_copy(update={"recipe": recipe})
    parents = [plain, replace(other, run=Run(other.run.model, metadata))]
    taus = [
        averaged(parents, [1 - share, share], backbone).metadata.recipe.chosen_tau
        for share in (0, 0.25, 1)
    ]
    assert taus == [None, pytest.approx(1.2), 1.8]
