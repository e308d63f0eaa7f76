"""Frozen features equal what the tower computes, fit the memory, and do not depend on order."""

import pytest
import torch
from torch import Tensor, nn

from taillift.models.lift.backbone import Backbone, load_backbone
from taillift.models.lift.model import Model
from taillift.training.data.dataset import Dataset, Split
from taillift.training.fit.build import build_model, preprocessing_for
from taillift.training.fit.distributed import Processes
from taillift.training.fit.frozen_features import (
    FEW_ROWS,
    Forward,
    FrozenFeatures,
    FrozenStages,
    compiled,
    copies_for,
    remaining_network,
    worthwhile_stages,
)
from taillift.training.fit.inputs import (
    CachedFeatures,
    Photos,
    copy_epochs,
    evaluation_photos,
    first_copies,
    smallest_area,
    training_photos,
)
from taillift.training.recipe.recipe import Augmentation, Recipe
from tests.support.sources import register, write

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
HEAD = Recipe(name="head")
ADAPTFORMER = Recipe.model_validate(
    {"name": "lift", "tuners": [{"name": "adaptformer", "rank": 1}]}
)
LAST_BLOCK = Recipe.model_validate({"name": "last", "tuners": [{"name": "full"}], "blocks": 1})


@pytest.fixture(scope="module")
def small_hybrid(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A tower with a stem of convolutions like the embedded one's, and two blocks."""
    folder = tmp_path_factory.mktemp("hybrid")
    register(folder)
    return load_backbone(write("Tiny-Hybrid", folder)[0])


def model_of(backbone: Backbone, recipe: Recipe) -> Model:
    return build_model(backbone, recipe, torch.randn(3, backbone.tower.width))


def features_of(photos: Photos, copies: list[int], epochs: int = 1) -> FrozenFeatures:
    return FrozenFeatures(photos, copies, epochs, FrozenStages(CPU), Processes(CPU))


def views_of(split: Split | None, backbone: Backbone) -> Photos:
    assert split is not None
    return evaluation_photos(split, preprocessing_for(backbone.image))


def test_a_frozen_stem_is_worth_running_once_and_a_patch_layer_is_not(tiny_backbone: str) -> None:
    hybrid, plain = (
        model_of(load_backbone(name), ADAPTFORMER) for name in ("default", tiny_backbone)
    )
    assert list(worthwhile_stages(hybrid, 224)) == [1]
    assert worthwhile_stages(plain, 32) == {}


@pytest.mark.parametrize(
    ("recipe", "stages"),
    [(HEAD, 4), (Recipe(name="zero-shot", epochs=0), 4), (LAST_BLOCK, 2)],
    ids=lambda value: value.name if isinstance(value, Recipe) else None,
)
def test_frozen_features_lead_to_the_same_result_as_pixels(
    tiny_backbone: str, colours: Dataset, recipe: Recipe, stages: int
) -> None:
    backbone = load_backbone(tiny_backbone)
    model = model_of(backbone, recipe)
    photos = views_of(colours.test, backbone)
    cached = features_of(photos, [1] * len(photos.labels)).inputs_for(model, 32)
    assert isinstance(cached, CachedFeatures)
    assert cached.stage == stages
    ((rows, labels),) = cached.batches(first_copies(6), 6)
    ((pixels, expected_labels),) = photos.batches(first_copies(6), 6)
    with torch.no_grad():
        found = remaining_network(model, stages)(rows)
        expected = remaining_network(model, 0)(pixels)
    assert (found - expected).norm() / expected.norm() < 2e-3, "features are kept in float16"
    assert torch.equal(labels, expected_labels)


def test_frozen_features_do_not_depend_on_what_was_computed_before(
    tiny_backbone: str, colours: Dataset
) -> None:
    backbone = load_backbone(tiny_backbone)
    photos = views_of(colours.train, backbone)
    fresh, used = (features_of(photos, [1] * len(photos.labels)) for _ in range(2))
    shallow = used.inputs_for(model_of(backbone, LAST_BLOCK), 32)
    alone, after = (features.inputs_for(model_of(backbone, HEAD), 32) for features in (fresh, used))
    assert isinstance(alone, CachedFeatures)
    assert isinstance(after, CachedFeatures)
    assert alone.stage == after.stage > shallow.stage
    assert torch.equal(alone.tokens, after.tokens)


def test_frozen_features_fit_the_memory(
    tiny_backbone: str, colours: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bytes a number. The last block gives one token of 64 numbers, the first block 17."""
    backbone = load_backbone(tiny_backbone)
    photos, views = views_of(colours.test, backbone), 6 * 5
    assert worthwhile_stages(model_of(backbone, HEAD), 32) == {4: 64, 3: 64, 2: 17 * 64}
    for memory, stage in ((2 * 64 * views, 4), (2 * 64 * views - 1, 0)):
        monkeypatch.setattr("taillift.training.fit.frozen_features.MEMORY", memory)
        rows = features_of(photos, [1] * 6).inputs_for(model_of(backbone, HEAD), 32)
        assert rows.stage == stage


def test_if_the_deepest_stage_does_not_fit_a_smaller_one_is_used(
    tiny_backbone: str, colours: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(tiny_backbone)
    photos = views_of(colours.test, backbone)
    sizes = {4: 2**40, 3: 2**39, 2: 17 * 64}
    monkeypatch.setattr("taillift.training.fit.frozen_features.worthwhile_stages", lambda *_: sizes)
    rows = features_of(photos, [1] * 6).inputs_for(model_of(backbone, HEAD), 32)
    assert rows.stage == 2


def test_every_copy_of_every_photo_is_at_its_index(tiny_backbone: str, colours: Dataset) -> None:
    """The copies of a photo are its crops of the first epochs, however many epochs there are."""
    backbone = load_backbone(tiny_backbone)
    model = model_of(backbone, HEAD)
    preprocessing = preprocessing_for(backbone.image)
    photos = training_photos(colours.train, preprocessing, Augmentation(), 6, seed=0)
    copies = [1 + photo % 3 for photo in range(len(colours.train))]
    cached = features_of(photos, copies, epochs=6).inputs_for(model, 32)
    assert isinstance(cached, CachedFeatures)
    assert len(cached.tokens) == sum(copies)
    picks = [(40, 5), (2, 2), (0, 3), (2, 0), (1, 4)]
    crops = [(photo, epoch * copies[photo] // 6) for photo, epoch in picks]
    ((rows, labels),) = cached.batches(picks, 5)
    ((pixels, expected_labels),) = photos.batches(crops, 5)
    with torch.no_grad():
        expected = model.tower(model.normalise(pixels))
    assert torch.allclose(rows, expected, atol=0.02)
    assert torch.equal(labels, expected_labels)


def test_photos_of_rare_classes_have_more_crops() -> None:
    labels, counts = [0, 0, 1, 2], [300, 40, 5]
    augmentation = Augmentation(crops=200, copies=10)
    assert copies_for(labels, counts, augmentation, epochs=20) == [2, 2, 5, 10]
    assert copies_for(labels, counts, augmentation, epochs=4) == [2, 2, 4, 4]
    assert copies_for(labels, counts, augmentation, epochs=1) == [1, 1, 1, 1]


@pytest.mark.parametrize("rows", [FEW_ROWS - 1, FEW_ROWS])
def test_blocks_that_torch_runs_for_few_rows_give_what_a_graph_of_them_gives(
    rows: int, small_hybrid: Backbone
) -> None:
    model = model_of(small_hybrid, HEAD)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    found = FrozenStages(CPU).forward(model, 0, len(model.tower), pixels, rows)(pixels)
    with torch.no_grad():
        expected = model.tower(model.normalise(pixels))
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_few_rows_share_the_compiled_embedding(
    monkeypatch: pytest.MonkeyPatch, small_hybrid: Backbone
) -> None:
    made: list[nn.Module] = []

    def count(module: nn.Module, example: Tensor, device: torch.device) -> Forward:
        made.append(module)
        return compiled(module, example, device)

    monkeypatch.setattr("taillift.training.fit.frozen_features.compiled", count)
    model, frozen = model_of(small_hybrid, HEAD), FrozenStages(CPU)
    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    for stage in (len(model.tower), 1, 3):
        frozen.forward(model, 0, stage, pixels, FEW_ROWS - 1)
    assert len(made) == 1


@pytest.mark.parametrize("schedule", ["convex", "linear", "concave"])
@pytest.mark.parametrize("epochs", [2, 4, 5, 10, 15])
def test_crops_that_grow_have_every_size_of_their_schedule(schedule: str, epochs: int) -> None:
    """LIFT+ over four epochs takes at least 0.08, 0.133, 0.314 and 1 of the area."""
    augmentation = Augmentation.model_validate({"name": "minimalist", "schedule": schedule})
    kept = copies_for([0, 0, 2], [300, 40, 5], augmentation, epochs)
    assert kept == [min(epochs, augmentation.copies)] * 3
    progress = [epoch / (epochs - 1) for epoch in copy_epochs(kept[0], epochs)]
    areas = [smallest_area(schedule, done) for done in progress]
    assert areas == sorted(set(areas))
    assert (areas[0], areas[-1]) == (0.08, 1)
    if (schedule, epochs) == ("convex", 4):
        assert areas == pytest.approx([0.08, 0.133, 0.314, 1], abs=1e-3)


@pytest.mark.parametrize("schedule", ["min", "max"])
def test_crops_of_one_size_are_as_many_as_others(schedule: str) -> None:
    augmentation = Augmentation.model_validate({"name": "minimalist", "schedule": schedule})
    assert copies_for([0, 2], [300, 40, 5], augmentation, epochs=20) == [2, 10]
