"""Tests of recipes: valid ones load, and errors in others are reported in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from taillift.models.errors import UserError
from taillift.models.lift.tuners import AdaptFormer, LoRA, adaptive_rank
from taillift.training.recipe.head_init import ClassMeanInit, PrototypesInit, TextInit
from taillift.training.recipe.losses import Focal, LogitAdjusted
from taillift.training.recipe.recipe import (
    FEWEST_EPOCHS,
    LARGEST_SEED,
    MOST_EPOCHS,
    MOST_FULL_EPOCHS,
    NAMES,
    Recipe,
    load_recipe,
    parse_changes,
)
from taillift.training.recipe.semi_supervision import SemiSupervision
from taillift.training.yaml_file import parse_yaml


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return str(path)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_loads_and_has_a_title(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.title
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_shipped_recipes_differ_in_name_title_and_content() -> None:
    recipes = [load_recipe(name) for name in NAMES]
    assert len({recipe.title for recipe in recipes}) == len(NAMES)
    contents = {recipe.model_dump_json(exclude={"name", "title"}) for recipe in recipes}
    assert len(contents) == len(NAMES)


def test_the_methods_of_the_paper_are_shipped() -> None:
    lift, head, full = (load_recipe(name) for name in ("lift", "head", "full"))
    assert [tuner.name for tuner in lift.tuners] == ["adaptformer"]
    assert head.tuners == ()
    assert [tuner.name for tuner in full.tuners] == ["full"]
    assert (full.blocks, load_recipe("last-block").blocks) == (None, 1)
    assert load_recipe("zero-shot").epochs == 0
    for recipe in (lift, head, full):
        assert recipe.loss == LogitAdjusted(tau=1.0)
        assert recipe.head.kind == "cosine"
    assert load_recipe("zero-shot").head.initial == TextInit(template="a photo of {article} {}.")


@pytest.mark.parametrize("method", ["fixmatch", "freematch", "loft", "finessl", "ulfine"])
def test_a_recipe_with_a_plus_uses_unlabelled_photos(method: str) -> None:
    plain, taught = load_recipe("lift"), load_recipe(f"lift+{method}", {"unlabelled.ratio": 3})
    assert (taught.name, taught.title) == (f"lift+{method}", f"LIFT, {method}")
    assert isinstance(taught.teaching, SemiSupervision)
    assert taught.teaching.ratio == 3
    assert taught.teaching.model_dump()["name"] == method
    same = {"name": plain.name, "title": plain.title, "unlabelled": None}
    assert taught.model_copy(update=same) == plain
    assert Recipe.model_validate_json(taught.model_dump_json()) == taught


def test_a_plus_in_the_name_of_a_file_is_just_that(tmp_path: Path) -> None:
    path = tmp_path / "lift+mine.yaml"
    path.write_text("epochs: 3\n")
    assert load_recipe(str(path)).unlabelled is None
    with pytest.raises(UserError, match=r'unlabelled\.name = lofd \(did you mean "loft"\?\)'):
        load_recipe("lift+lofd")
    with pytest.raises(UserError, match=r"there is no recipe 'lit\+loft'"):
        load_recipe("lit+loft")


def test_a_users_recipe_has_the_name_of_its_file_unless_it_gives_another(
    tmp_path: Path,
) -> None:
    source = written(tmp_path, "tuners: [{name: lora, rank: 4}]")
    assert (load_recipe(source).name, load_recipe(source).title) == ("mine", "mine")
    source = written(tmp_path, "name: other\ntitle: Another one")
    assert (load_recipe(source).name, load_recipe(source).title) == ("other", "Another one")


def test_the_name_selects_the_kind_of_a_part(tmp_path: Path) -> None:
    source = written(
        tmp_path,
        "tuners: [{name: lora, rank: 4}, {name: adaptformer}]\n"
        "head: {initial: {name: class-mean}}\n"
        "loss: {name: focal, gamma: 1.5}\n",
    )
    recipe = load_recipe(source)
    assert recipe.tuners == (LoRA(rank=4), AdaptFormer())
    assert isinstance(recipe.head.initial, ClassMeanInit)
    assert recipe.loss == Focal(gamma=1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", 'there is no field epoch (did you mean "epochs"?)'),
        ("wombats: 3", "there is no field wombats: the fields are name, title, tuners"),
        ("head: {scael: 3}", 'there is no field head.scael (did you mean "scale"?)'),
        ("optimiser: {tuner_rte: 1}", 'no field optimiser.tuner_rte (did you mean "tuner_rate"?)'),
        ("augmentation: {flipp: no}", 'no field augmentation.flipp (did you mean "flip"?)'),
        ("loss: {name: focal, gama: 2}", 'there is no field loss.gama (did you mean "gamma"?)'),
        ("loss: {gama: 2}", "there is no field loss.gama: the fields are name, tau"),
        ("tuners: [{rank: 4}]", "tuners.0 needs a name"),
        (
            "head: {initial: {name: text, templat: x}}",
            'there is no field head.initial.templat (did you mean "template"?)',
        ),
        (
            "tuners: [{name: lora}, {name: adaptformer, rnak: 2}]",
            'there is no field tuners.1.rnak (did you mean "rank"?)',
        ),
    ],
)
def test_the_error_for_an_unknown_field_suggests_the_most_similar_one(
    tmp_path: Path, text: str, message: str
) -> None:
    source = written(tmp_path, text)
    with pytest.raises(UserError) as raised:
        load_recipe(source)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{source}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss: {name: focl}", 'loss.name = focl (did you mean "focal"?)'),
        ("loss: {name: wombat}", "loss.name = wombat: give one of cross-entropy, logit-adjusted"),
        (
            "tuners: [{name: adapformer}]",
            'tuners.0.name = adapformer (did you mean "adaptformer"?)',
        ),
        ("head: {initial: {name: txt}}", 'head.initial.name = txt (did you mean "text"?)'),
        ("optimiser: {name: adam}", "optimiser.name = adam: "),
        ("precision: fp8", "precision = fp8: "),
        ("epochs: -1", "epochs = -1: Input should be greater than or equal to 0"),
        ("batch: 0", "batch = 0: Input should be greater than or equal to 1"),
        ("epochs: many", "epochs = many: Input should be a valid integer"),
        ("head: {scale: 0}", "head.scale = 0: Input should be greater than 0"),
        ("optimiser: {momentum: 1}", "optimiser.momentum = 1: Input should be less than 1"),
        ("tuners: [{name: lora, rank: 0}]", "tuners.0.rank = 0: Input should be greater"),
        ("tuners: {name: lora}", "tuners = "),
        ("head: 3", "head = 3: "),
        ("loss: {tau: car}", "loss.tau = car: give a number that is not below 0, or auto"),
        ("loss: {tau: -1}", "loss.tau = -1: give a number that is not below 0, or auto"),
        ("loss: {tau: .inf}", "loss.tau = inf: give a number that is not below 0, or auto"),
        (
            "loss: {aim: few}",
            "aim is for tau = auto, and tau is 1: set tau to auto, or leave aim out",
        ),
        ("loss: {tau: auto, give: 1}", "give is for aim = few: set that, or leave it out"),
        ("loss: {tau: auto, aim: fwe}", "loss.aim = fwe: Input should be 'mean-class' or 'few'"),
        ("loss: {cues: {gate: 2}}", "loss.cues.gate = 2: Input should be less than or equal to 1"),
        ("loss: {cues: {gat: 1}}", 'there is no field loss.cues.gat (did you mean "gate"?)'),
        (
            "{loss: {cues: {}}, unlabelled: {name: loft}}",
            "loss.cues are of labelled photos, and unlabelled adds others: leave out one",
        ),
        ("name: a/b", "name = a/b: "),
        ("epochs: yes", "epochs = True: give a number"),
        ("optimiser: {warmup: off}", "optimiser.warmup = False: give a number"),
        ("loss: {tau: yes}", "loss.tau = True: give a number"),
        ("loss: {cues: {weight: on}}", "loss.cues.weight = True: give a number"),
        ("tuners: [{name: lora, rank: yes}]", "tuners.0.rank = True: give a number"),
        ("unlabelled: {name: loft, ratio: yes}", "unlabelled.ratio = True: give a number"),
        ("unlabelled: {name: loft, strong: {cutout: no}}", "strong.cutout = False: give a number"),
        ("soup: {parents: [lift, full], share: [yes, no]}", "soup.share.0 = True: give a"),
        ("optimiser: {head_rate: .inf}", "optimiser.head_rate = inf: Input should be a finite"),
        ("head: {scale: .inf}", "head.scale = inf: Input should be a finite number"),
        (f"seed: {LARGEST_SEED + 1}", "seed = 18446744073709551616: Input should be less than"),
    ],
)
def test_the_error_for_a_wrong_value_names_its_field(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UserError) as raised:
        load_recipe(written(tmp_path, text))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("title: 2024-13-45", "not valid YAML: month must be in"),
        ("flip: !!bool x", "not valid YAML"),
        ("epochs: 010", "010 in line 1 is another number to YAML"),
        ("epochs: 2\nbatch: 1:30", "1:30 in line 2 is another number to YAML"),
        ("epochs: 3\nbatch: 8\nepochs: 5", "begin in line 1 have epochs twice"),
        ("head:\n  scale: 3\n  'scale': 5", "begin in line 2 have scale twice"),
        ("a: &a {epochs: 3, epochs: 3}\n<<: *a", "begin in line 1 have epochs twice"),
        ("- 1\n- 2", "is not a mapping of fields to values"),
        ("", "is not a mapping of fields to values"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_the_error_for_a_file_without_a_recipe_is_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_recipe(written(tmp_path, text))
    assert "\n" not in str(raised.value)
    assert "mine.yaml" in str(raised.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("lit", "there is no recipe 'lit' (did you mean \"lift\"?)"),
        ("wombat", "there is no recipe 'wombat': give one of adapter, "),
        ("absent.yaml", "recipe absent.yaml cannot be read"),
        ("recipe.txt", "there is no recipe 'recipe.txt'"),
    ],
)
def test_the_error_for_an_unknown_recipe_lists_the_known_ones(source: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        load_recipe(source)
    assert message in str(raised.value)


def test_changes_reach_nested_fields_and_items_and_leave_the_rest() -> None:
    plain = load_recipe("lift")
    changed = load_recipe(
        "lift",
        {"optimiser.tuner_rate": 0.5, "tuners.0.rank": 8, "epochs": 3, "loss.name": "focal"},
    )
    assert changed.optimiser == plain.optimiser.model_copy(update={"tuner_rate": 0.5})
    assert changed.tuners == (AdaptFormer(rank=8, least_rank=32),)
    assert (changed.epochs, changed.loss) == (3, Focal())
    assert changed.head == plain.head
    assert load_recipe("lift") == plain, "changes do not affect later loads"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optimiser.tuner_rte", 'no field optimiser.tuner_rte (did you mean "tuner_rate"?)'),
        ("tuners.1.rank", "tuners.1.rank: '1' is not one of the 1 items"),
        ("tuners.².rank", "tuners.².rank: '²' is not one of the 1 items"),
        ("tuners.²", "tuners.²: '²' is not one of the 1 items"),
        ("tuners.lora.rank", "tuners.lora.rank: 'lora' is not one of the 1 items"),
        ("title.big", "title.big: title has no fields"),
        ("head.scale.x", "head.scale"),
    ],
)
def test_the_error_for_a_change_of_an_unknown_field_names_it(key: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        load_recipe("lift", {key: 1})
    assert message in str(raised.value)


def test_a_field_of_a_part_without_a_name_belongs_to_the_default_kind() -> None:
    assert load_recipe("lift", {"loss.tau": 0.5}).loss == LogitAdjusted(tau=0.5)
    zero_shot = load_recipe("zero-shot", {"head.initial.template": "a {}"})
    assert zero_shot.head.initial == TextInit(template="a {}")
    assert zero_shot.head.space == "projected"
    lift = load_recipe("lift", {"head.initial.text_share": 0.2})
    assert lift.head.initial == PrototypesInit(text_share=0.2), (
        "the kind that the recipe names stays"
    )


def test_the_largest_seed_is_the_largest_that_generators_accept() -> None:
    seed = load_recipe("lift", {"seed": LARGEST_SEED}).seed
    assert torch.Generator().manual_seed(seed).initial_seed() == seed
    with pytest.raises((ValueError, RuntimeError)):
        torch.Generator().manual_seed(seed + 1)


def test_epochs_and_steps_cannot_both_be_set() -> None:
    with pytest.raises(UserError, match="epochs and steps each say how long to train"):
        load_recipe("lift", {"epochs": 5, "steps": 10})
    recipe = load_recipe("lift", {"epochs": 5, "steps": None})
    assert (recipe.epochs, recipe.steps) == (5, None)


def test_values_in_assignments_are_yaml() -> None:
    assert parse_changes(["a.b=0.5", "c=null", "d=[1, 2]", "e=x=y", "f=true", "g="]) == {
        **{"a.b": 0.5, "c": None, "d": [1, 2], "e": "x=y", "f": True, "g": None}
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "KEY=VALUE"),
        ("=1", "KEY=VALUE"),
        ("a=[", "a=["),
        ("a=2024-13-45", "a=2024-13-45: not valid YAML: month"),
    ],
)
def test_a_text_that_is_not_an_assignment_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_changes([text])
    assert message in str(raised.value)


@given(
    st.text("abcdefghijklmnopqrstuvwxyz_.", min_size=1).filter(lambda key: key.strip(".")),
    st.one_of(st.integers(), st.floats(), st.booleans(), st.text("abc"), st.lists(st.integers())),
)
def test_every_change_gives_a_recipe_or_an_error_of_one_line(key: str, value: Any) -> None:
    message = ""
    try:
        load_recipe("lift", {key: value})
    except UserError as error:
        message = str(error)
    assert "\n" not in message


@given(st.dictionaries(st.sampled_from(["epochs", "batch", "seed"]), st.integers(1, 10**6)))
def test_a_recipe_survives_yaml(changes: dict[str, int]) -> None:
    recipe = load_recipe("lora", changes)
    again = Recipe.model_validate(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))))
    assert again == recipe


def test_sizes_are_settled_for_the_classes_and_the_tuned_blocks() -> None:
    counts = [10] * 100
    recipe = load_recipe("lift-published").resolved(counts, blocks=12, width=768)
    (tuner,) = recipe.tuners
    assert isinstance(tuner, AdaptFormer)
    assert tuner.rank == adaptive_rank(100, 12) == 4
    published = load_recipe("lift-published", {"blocks": 3})
    (fewer,) = published.resolved(counts, blocks=12, width=768).tuners
    assert isinstance(fewer, AdaptFormer)
    assert fewer.rank == adaptive_rank(100, 3) == 16
    assert recipe.resolved(counts, blocks=12, width=768) == recipe, (
        "a settled recipe does not change"
    )


@pytest.mark.parametrize(("classes", "rank"), [(17, 32), (1_000, 32), (8_142, 256)])
def test_few_classes_get_the_least_rank_and_many_the_papers_rank(classes: int, rank: int) -> None:
    (tuner,) = load_recipe("lift").resolved([10] * classes, blocks=12, width=768).tuners
    assert isinstance(tuner, AdaptFormer)
    assert tuner.rank == rank


def test_a_files_steps_do_not_replace_requested_epochs(tmp_path: Path) -> None:
    source = written(tmp_path, "steps: 250")
    assert load_recipe(source, {"epochs": 5}).resolved([10], 12, 768).epochs == 5
    assert load_recipe(source, {"batch": 2}).resolved([100], 12, 768).epochs == 5


def test_steps_become_whole_epochs() -> None:
    recipe = load_recipe("lift", {"steps": 100, "batch": 10, "bounded": True})
    assert recipe.resolved([100, 100], 12, 768).epochs == 5
    assert recipe.resolved([100, 101], 12, 768).epochs == 5, "rounded up to whole epochs"
    assert recipe.resolved([10**6], 12, 768).epochs == FEWEST_EPOCHS, "but never fewer than this"
    assert recipe.resolved([99], 12, 768).epochs == MOST_EPOCHS, "and never more than this"
    assert recipe.resolved([1], 12, 768).epochs == MOST_EPOCHS
    nothing = load_recipe("zero-shot", {"steps": 100})
    assert nothing.resolved([100], 12, 768).epochs == 0


@pytest.mark.parametrize(("photos", "epochs"), [(10**6, 1), (33, 50), (32, 100), (1, 100)])
def test_requested_steps_are_taken_exactly(photos: int, epochs: int) -> None:
    recipe = load_recipe("lift", {"steps": 100, "batch": 32}).resolved([photos], 6, 256)
    assert recipe.epochs == epochs
    assert recipe.total_steps(photos, photos) == 100


def test_steps_of_a_part_of_the_photos_make_as_many_passes() -> None:
    exact = load_recipe("lift", {"steps": 100, "batch": 10}).resolved([1000], 6, 256)
    assert exact.total_steps(800, 1000) == 80
    assert exact.total_steps(1, 1000) == 1
    whole = load_recipe("lift", {"epochs": 3, "batch": 10}).resolved([1000], 6, 256)
    assert whole.total_steps(800, 1000) == 3 * 80


@pytest.mark.parametrize(("photos", "epochs"), [(1_303, 7), (3_300, 3), (141, MOST_EPOCHS)])
def test_only_sets_of_few_photos_are_trained_on_for_fewer_steps(photos: int, epochs: int) -> None:
    assert load_recipe("lift").resolved([photos], 6, 256).epochs == epochs
    few = load_recipe("lift", {"epochs": 57})
    assert few.resolved([photos], 6, 256).epochs == 57, "epochs that are asked for are kept"


@pytest.mark.parametrize(
    ("classes", "photos", "quick", "full"),
    [
        (17, 1_303, 7, 7),  # As many photos of a class are shown in 250 steps.
        (75, 1_841, 5, 9),  # 15,000 photos are shown, in 522 steps.
        (50, 3_300, 3, 4),
        (8, 141, MOST_EPOCHS, MOST_FULL_EPOCHS),
        (1_000, 200_000, 2, 2),
    ],
)
def test_full_effort_shows_as_many_photos_of_each_class_however_many_there_are(
    classes: int, photos: int, quick: int, full: int
) -> None:
    counts = [photos - classes + 1] + [1] * (classes - 1)
    assert load_recipe("lift").resolved(counts, 6, 256).epochs == quick
    recipe = load_recipe("lift", {"effort": "full"}).resolved(counts, 6, 256)
    assert recipe.epochs == full
    assert recipe.resolved(counts, 6, 256) == recipe


@pytest.mark.parametrize(
    ("recipe", "changes", "given"),
    [
        ("lift", {"steps": 100}, "steps"),
        ("lift", {"epochs": 3}, "epochs"),
        ("lift-published", {}, "epochs"),
    ],
)
def test_effort_does_not_replace_a_number_that_is_given(
    recipe: str, changes: dict[str, int], given: str
) -> None:
    with pytest.raises(UserError, match=f"effort = full chooses the number of steps, and {given}"):
        load_recipe(recipe, {"effort": "full", **changes})
    assert load_recipe(recipe, {"effort": "quick", **changes}).effort == "quick"


def test_ldams_scale_must_be_that_of_the_head() -> None:
    with pytest.raises(UserError, match=r"loss\.scale = 25 and head\.scale = 16"):
        load_recipe("lift", {"loss": {"name": "ldam"}})
    assert load_recipe("lift", {"loss": {"name": "ldam", "scale": 16}}).loss.name == "ldam"


def test_lift_plus_as_published_has_the_settings_of_its_code() -> None:
    recipe = load_recipe("lift-plus-published")
    assert (recipe.epochs, recipe.steps, recipe.batch) == (5, None, 128)
    optimiser = recipe.optimiser
    assert (optimiser.name, optimiser.head_rate, optimiser.tuner_rate) == ("sgd", 0.02, 0.02)
    assert (optimiser.momentum, optimiser.head_decay, optimiser.tuner_decay) == (0.9, 5e-4, 5e-4)
    assert (optimiser.step, optimiser.warmup, optimiser.average) == ("epoch", 0, 0)
    assert (recipe.head.kind, recipe.head.scale) == ("cosine", 25)
    assert recipe.head.initial.name == "text"
    augmentation = recipe.augmentation
    assert (augmentation.name, augmentation.schedule) == ("minimalist", "convex")
    assert (augmentation.flip, augmentation.interpolation) == (False, "bicubic")
    assert recipe.loss.name == "logit-adjusted"


def test_a_soup_names_recipes_and_changes_are_those_of_its_parents() -> None:
    changes = {"soup.aim": "few", "seed": 3, "effort": "full", "optimiser.tuner_rate": 0.5}
    recipe = load_recipe("soup", changes)
    assert recipe.soup is not None
    assert recipe.soup.aim == "few"
    assert [parent.name for parent in recipe.soup.parents] == ["lift", "full", "full-adamw"]
    for parent in recipe.soup.parents:
        assert (parent.seed, parent.effort, parent.optimiser.tuner_rate) == (3, "full", 0.5)
    assert recipe.head == load_recipe("lift").head
    resolved = recipe.resolved([900] * 75, 6, 256)
    assert resolved.soup is not None
    assert {parent.epochs for parent in resolved.soup.parents} == {2}
    assert Recipe.model_validate_json(resolved.model_dump_json()) == resolved


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("soup: {parents: lift}", "give a list of recipes, such as [lift, full]"),
        ("soup: {parents: []}", "soup.parents = []: Tuple should have at least 1 item"),
        ("soup: {parents: [soup]}", "soup is a soup itself: name its parents instead"),
        ("soup: {parents: [mine.yaml]}", "mine is a soup itself: name its parents instead"),
        ("soup: {parents: [lift]}\n1: 2\nx: 3", "a soup has 1 from its parents"),
        ("soup: {parents: [lif]}", "there is no recipe 'lif'"),
        ("soup: {parents: [lift, full], share: half}", "soup.share = half: give auto, a number"),
        ("soup: {parents: [lift, full], share: [0.5, 0.6]}", "soup.share = (0.5, 0.6): give auto"),
        (
            "soup: {parents: [lift, full], shares: 1}",
            'no field soup.shares (did you mean "share"?)',
        ),
        ("soup: {parents: [lift, full], share: .nan}", "soup.share = nan: give auto"),
        ("soup: {parents: [lift, full], seeds: [-1]}", "soup.seeds.0 = -1: Input should be"),
        ("soup: {parents: [lift, full]}\nepochs: 3", "a soup has epochs from its parents"),
    ],
)
def test_a_soup_that_makes_no_sense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_recipe(written(tmp_path, text))
    assert words in str(caught.value)


def test_a_recipe_that_is_not_a_soup_does_not_become_one() -> None:
    with pytest.raises(UserError, match=r"soup\.parents: give a list"):
        load_recipe("lift", {"soup.aim": "few"})
    with pytest.raises(UserError, match="lift: a soup has batch from its parents"):
        load_recipe("lift", {"soup.parents": ["lift", "full"]})


def test_a_merged_field_may_be_given_again() -> None:
    text = "x: &x {scale: 3, kind: linear}\ny: &y {<<: *x, scale: 4}\nz: {<<: *y, scale: 5}"
    assert parse_yaml(text) == {
        "x": {"scale": 3, "kind": "linear"},
        "y": {"scale": 4, "kind": "linear"},
        "z": {"scale": 5, "kind": "linear"},
    }


@pytest.mark.parametrize("part", [{"epochs": True}, {"optimiser": {"warmup": False}}])
def test_true_and_false_are_not_numbers_in_python_either(part: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="give a number"):
        Recipe.model_validate({"name": "truth", **part})
