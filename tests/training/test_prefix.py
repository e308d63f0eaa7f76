import pytest
import torch

from models.lift.backbone import load_backbone
from training.build import build, preprocessing_for, prompts_for
from training.dataset import Dataset
from training.fit import network_behind
from training.inputs import Cached, Photos, evaluation_photos, first_copies, training_photos
from training.prefix import FrozenStages, PrefixCache, copies_for, worthwhile_stages
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
    cached = PrefixCache(photos, [1] * len(photos.labels), FrozenStages(CPU)).rows_for(
        model, preprocessing.size
    )
    assert isinstance(cached, Cached)
    assert cached.stage == stages
    ((rows, labels),) = cached.batches(first_copies(6), 6)
    ((pixels, expected_labels),) = photos.batches(first_copies(6), 6)
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
    cache = PrefixCache(photos, [1] * len(photos.labels), FrozenStages(CPU))
    shallow = cache.rows_for(build(backbone, prompts, recipe), 32)
    assert isinstance(shallow, Cached)
    shallow.tokens.zero_()
    head_only = build(load_backbone(tiny_backbone), prompts, Recipe(method="head"))
    deep = cache.rows_for(head_only, 32)
    assert isinstance(deep, Cached)
    assert deep.stage > shallow.stage
    assert torch.equal(deep.tokens[0], deep.tokens[1])


def test_rows_that_would_not_fit_in_memory_are_not_kept(
    tiny_backbone: str, colours: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.prefix.MEMORY", 1000)
    backbone = load_backbone(tiny_backbone)
    recipe = Recipe(method="head")
    model = build(backbone, prompts_for(colours.classes, recipe), recipe)
    photos = evaluation_photos(colours.train, preprocessing_for(backbone.image))
    assert isinstance(
        PrefixCache(photos, [1] * len(photos.labels), FrozenStages(CPU)).rows_for(model, 32), Photos
    )


def test_every_copy_of_every_photo_is_kept_in_its_place(
    tiny_backbone: str, colours: Dataset
) -> None:
    backbone = load_backbone(tiny_backbone)
    recipe = Recipe(method="head")
    model = build(backbone, prompts_for(colours.classes, recipe), recipe)
    photos = training_photos(colours.train, preprocessing_for(backbone.image), seed=0)
    copies = [1 + photo % 3 for photo in range(len(colours.train))]
    cached = PrefixCache(photos, copies, FrozenStages(CPU)).rows_for(model, 32)
    assert isinstance(cached, Cached)
    assert len(cached.tokens) == sum(copies)
    picks = [(40, 1), (2, 2), (0, 0), (2, 0)]
    ((rows, labels),) = cached.batches(picks, 4)
    ((pixels, expected_labels),) = photos.batches(picks, 4)
    with torch.no_grad():
        expected = model.tower(model.normalise(pixels))
    assert torch.allclose(rows, expected, atol=0.02)
    assert torch.equal(labels, expected_labels)


def test_rare_classes_photos_are_seen_in_more_crops() -> None:
    labels, counts = [0, 0, 1, 2], [300, 40, 5]
    assert copies_for(labels, counts, crops=200, most=10) == [2, 2, 5, 10]
