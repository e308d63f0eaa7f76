"""A model to train: backbone, tuners and head as the recipe says."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from taillift.models.bundle.schema import Preprocessing
from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone, ImageSpec
from taillift.models.lift.head import new_head, project_features
from taillift.models.lift.model import Model, Normalise
from taillift.training.recipe.head_init import (
    ClassMeanInit,
    HeadInit,
    LinearProbeInit,
    PromptsInit,
    PrototypesInit,
    RandomInit,
    class_means,
    linear_probe,
    prototypes,
    random_weights,
    require_text,
    text_weights,
)
from taillift.training.recipe.recipe import HeadConfig, Recipe

Features = Callable[[], tuple[Tensor, Tensor]]


def resolve(backbone: Backbone, recipe: Recipe, counts: Sequence[int]) -> Recipe:
    """The recipe with everything settled that depends on data and backbone."""
    stages = backbone.tower.tunable
    if recipe.blocks is not None and recipe.blocks > len(stages):
        raise UserError(
            f"blocks = {recipe.blocks}: the tower of {backbone.name} has only {len(stages)}"
        )
    return recipe.resolved(counts, len(stages), backbone.tower.width)


def initial_weight(
    backbone: Backbone, recipe: Recipe, names: Sequence[str], features: Features
) -> Tensor:
    """The head's initial weight [C, D] or, in projected space, [C, E].

    `features` gives the tower's features [N, D] of the training photos and their labels [N]; it
    is called only where the recipe starts the head from photos. Raises `UserError` where the recipe
    asks for text and the backbone has none.
    """
    initial = recipe.head.initial
    require_text(initial, backbone.name, backbone.has_text)
    projected = recipe.head.space == "projected"

    def text() -> Tensor:
        assert isinstance(initial, PromptsInit)
        projection = None if projected else backbone.projection
        return text_weights(backbone.encode_text, initial.prompts(names), projection)

    def photos() -> tuple[Tensor, Tensor]:
        found, labels = features()
        if projected:
            found = project_features(found, backbone.projection, backbone.projection_bias)
        return found, labels

    match initial:
        case PrototypesInit():
            return prototypes(text(), *photos(), names, initial.text_share)
        case PromptsInit():
            return text()
        case ClassMeanInit():
            return class_means(*photos(), names, initial.images)
        case LinearProbeInit():
            return linear_probe(*photos(), names)
        case RandomInit():
            generator = torch.Generator().manual_seed(recipe.seed)
            return random_weights(*weight_shape(backbone, recipe.head, len(names)), generator)


def build(backbone: Backbone, recipe: Recipe, weight: Tensor) -> Model:
    """The untrained model, the part that the recipe trains unfrozen.

    `recipe` is what `resolve` returned, `weight` what `initial_weight` did. The backbone stays as
    it is. Raises `UserError` where the backbone cannot take one of the tuners.
    """
    torch.manual_seed(recipe.seed)
    tower = copy.deepcopy(backbone.tower)
    if recipe.epochs:
        stages = tower.tunable[-recipe.blocks :] if recipe.blocks else tower.tunable
        for tuner in recipe.tuners:
            tuner.attach(stages)
    projected = recipe.head.space == "projected"
    head = new_head(
        recipe.head.kind,
        weight,
        recipe.head.scale or backbone.logit_scale,
        backbone.projection if projected else None,
        backbone.projection_bias if projected else None,
    )
    head.requires_grad_(bool(recipe.epochs))
    return Model(Normalise(backbone.image.mean, backbone.image.std), tower, head)


def weight_shape(backbone: Backbone, head: HeadConfig, classes: int) -> tuple[int, int]:
    """[C, D], or [C, E] behind a projection."""
    if head.space == "projected" and backbone.projection is not None:
        return classes, backbone.projection.shape[1]
    return classes, backbone.tower.width


def prompts_for(names: Sequence[str], initial: HeadInit) -> tuple[str, ...]:
    """What the text tower was told of each class, the first prompt of several."""
    if isinstance(initial, PromptsInit):
        return tuple(prompts[0] for prompts in initial.prompts(names))
    return tuple(names)


def preprocessing_for(image: ImageSpec, interpolation: str | None = None) -> Preprocessing:
    """Canvases 1.5 patches larger than the views (LIFT, section 3.4)."""
    return Preprocessing.model_validate(
        {
            "size": image.size,
            "expand": image.patch * 3 // 2,
            "interpolation": interpolation or image.interpolation,
            "resize_mode": image.resize_mode,
            "mean": image.mean,
            "std": image.std,
        }
    )
