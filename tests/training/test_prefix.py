import pytest
import torch

from models.lift.backbone import load_backbone
from training.build import build, preprocessing_for, prompts_for
from training.dataset import Dataset
from training.fit import network_behind
from training.inputs import Cached, Photos, evaluation_photos
from training.prefix import PrefixCache, worthwhile_stages
from training.recipe import Recipe

CPU = torch.device("cpu")


def test_a_frozen_stem_is_worth_running_once_and_a_patch_layer_is_not(tiny_backbone: str) -> None:
    prompts = ["a photo of a hat.", "a photo of a shoe."]
    lift = Recipe(method="lift", rank=1)
    hybrid, plain = (build(load_backbone(one), prompts, lift) for one in ("default", tiny_backbone))
    assert worthwhile_stages(hybrid, 224) == 1
    assert worthwhile_stages(plain, 32) == 0


@pytest.mark.parametrize(
    ("recipe", "stages"),
    [
        (Recipe(method="head"), 4),
        (Recipe(method="zero-shot", epochs=0), 4),
        (Recipe(method="full", blocks=1), 2),
    ],
)
def test_rows_behind_the_prefix_lead_to_the_same_features(
    tiny_backbone: str, colours: Dataset, recipe: Recipe, stages: int
) -> None:
    backbone = load_backbone(tiny_backbone)
    model = build(backbone, prompts_for(colours.classes, recipe), recipe)
    preprocessing = preprocessing_for(backbone.image)
    assert colours.test is not None
    photos = evaluation_photos(colours.test, preprocessing)
    cached = PrefixCache(photos, 1, CPU).rows_for(model, preprocessing.size)
    assert isinstance(cached, Cached)
    assert cached.stage == stages
    ((rows, labels),) = cached.batches(range(6), 6)
    ((pixels, expected_labels),) = photos.batches(range(6), 6)
    with torch.no_grad():
        found = network_behind(model, stages)(rows)
        expected = network_behind(model, 0)(pixels)
    assert (found - expected).norm() / expected.norm() < 2e-3, "float16 in between"
    assert torch.equal(labels, expected_labels)


def test_a_deeper_prefix_starts_from_a_shallower_one(tiny_backbone: str, colours: Dataset) -> None:
    """Corrupting the shallow rows shows in the deep ones: they were not computed from pixels."""
    backbone = load_backbone(tiny_backbone)
    recipe = Recipe(method="full", blocks=1)
    prompts = prompts_for(colours.classes, recipe)
    photos = evaluation_photos(colours.train, preprocessing_for(backbone.image))
    cache = PrefixCache(photos, 1, CPU)
    shallow = cache.rows_for(build(backbone, prompts, recipe), 32)
    assert isinstance(shallow, Cached)
    shallow.tokens.zero_()
    head_only = build(load_backbone(tiny_backbone), prompts, Recipe(method="head"))
    deep = cache.rows_for(head_only, 32)
    assert isinstance(deep, Cached)
    assert deep.stage > shallow.stage
    assert torch.equal(deep.tokens[0, 0], deep.tokens[0, 1])


def test_rows_that_would_not_fit_in_memory_are_not_kept(
    tiny_backbone: str, colours: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.prefix.MEMORY", 1000)
    backbone = load_backbone(tiny_backbone)
    recipe = Recipe(method="head")
    model = build(backbone, prompts_for(colours.classes, recipe), recipe)
    photos = evaluation_photos(colours.train, preprocessing_for(backbone.image))
    assert isinstance(PrefixCache(photos, 1, CPU).rows_for(model, 32), Photos)
