"""The model to train: backbone, tuners and head as the recipe says."""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from taillift.models.bundle.schema import Preprocessing
from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone, ImageSpec
from taillift.models.lift.head import FusedHead, Head, new_head, project_features
from taillift.models.lift.model import Model, Normalise
from taillift.training.recipe.head_init import (
    ClassMeanInit,
    HeadInit,
    LinearProbeInit,
    PromptsInit,
    PrototypesInit,
    RandomInit,
    TextInit,
    class_means,
    linear_probe,
    prototypes,
    random_weights,
    require_text,
    text_weights,
)
from taillift.training.recipe.recipe import HeadConfig, Recipe
from taillift.training.recipe.semi_supervision import UlFine

Features = Callable[[], tuple[Tensor, Tensor]]


def resolve_recipe(backbone: Backbone, recipe: Recipe, counts: Sequence[int]) -> Recipe:
    """Return the recipe with all values filled in that depend on the data and the backbone.

    `counts` are the training photos of each class. Raises `UserError` if the recipe tunes more
    blocks than the backbone has.
    """
    stages = backbone.tower.tunable
    if recipe.blocks is not None and recipe.blocks > len(stages):
        raise UserError(
            f"blocks = {recipe.blocks}: the tower of {backbone.name} has only {len(stages)}"
        )
    return recipe.resolved(counts, len(stages), backbone.tower.width)


def initial_weight(
    backbone: Backbone, recipe: Recipe, names: Sequence[str], features: Features
) -> Tensor:
    """Return the head's initial weight [C, D] or, in projected space, [C, E].

    `features` returns the tower's features [N, D] of the training photos and their labels [N]. It
    is called only if the recipe starts the head from photos. Raises `UserError` if the recipe needs
    text and the backbone has no text tower.
    """
    initial = recipe.head.initial
    require_text(initial, backbone.name, backbone.has_text)

    def photos() -> tuple[Tensor, Tensor]:
        vectors, labels = features()
        if recipe.head.space == "projected":
            vectors = project_features(vectors, backbone.projection, backbone.projection_bias)
        return vectors, labels

    match initial:
        case PrototypesInit():
            text = class_texts(backbone, recipe.head, names)
            return prototypes(text, *photos(), names, initial.text_share)
        case PromptsInit():
            return class_texts(backbone, recipe.head, names)
        case ClassMeanInit():
            return class_means(*photos(), names, initial.images)
        case LinearProbeInit():
            return linear_probe(*photos(), names)
        case RandomInit():
            generator = torch.Generator().manual_seed(recipe.seed)
            return random_weights(*weight_shape(backbone, recipe.head, len(names)), generator)


def class_texts(backbone: Backbone, head: HeadConfig, names: Sequence[str]) -> Tensor:
    """Return the unit weights [C, D] or, in projected space, [C, E] of the head's class texts.

    The head's initial weights must be of a kind that has prompts.
    """
    assert isinstance(head.initial, PromptsInit)
    projection = None if head.space == "projected" else backbone.projection
    return text_weights(backbone.encode_text, head.initial.prompts(names), projection)


@torch.no_grad()
def zero_shot_logits(
    backbone: Backbone, recipe: Recipe, names: Sequence[str], features: Tensor
) -> Tensor:
    """Return zero-shot CLIP's logits float32 [N, C] of photos with the tower's features [N, D].

    The prompts are those of the recipe's head, or LIFT's if it has none. Raises `UserError` if the
    backbone has no text tower.
    """
    initial = recipe.head.initial
    require_text(TextInit(), backbone.name, backbone.has_text)
    head = HeadConfig(
        space="projected", initial=initial if isinstance(initial, PromptsInit) else TextInit()
    )
    projected = project_features(features, backbone.projection, backbone.projection_bias)
    cosines = F.normalize(projected, dim=-1) @ class_texts(backbone, head, names).t()
    return backbone.logit_scale * cosines


def build_model(backbone: Backbone, recipe: Recipe, weight: Tensor) -> Model:
    """Return the untrained model; only what the recipe trains has gradients.

    `recipe` comes from `resolve_recipe`, `weight` from `initial_weight`. The backbone does not
    change. Raises `UserError` if one of the tuners does not fit the backbone.
    """
    torch.manual_seed(recipe.seed)
    tower = copy.deepcopy(backbone.tower)
    if recipe.epochs:
        stages = tower.tunable[-recipe.blocks :] if recipe.blocks else tower.tunable
        for tuner in recipe.tuners:
            tuner.attach(stages)
    projection, bias = None, None
    if recipe.head.space == "projected":
        projection, bias = backbone.projection, backbone.projection_bias
    scale = recipe.head.scale or backbone.logit_scale
    if isinstance(recipe.teaching, UlFine):
        head: Head = FusedHead(weight, scale, recipe.teaching.share, projection, bias)
    else:
        head = new_head(recipe.head.kind, weight, scale, projection, bias)
    if not recipe.epochs:
        head.requires_grad_(False)
    return Model(Normalise(backbone.image.mean, backbone.image.std), tower, head)


def bare_model(backbone: Backbone, classes: int) -> Model:
    """Return the backbone with a head of zeros and nothing to train."""
    recipe = Recipe(name="bare", epochs=0)
    return build_model(backbone, recipe, torch.zeros(weight_shape(backbone, recipe.head, classes)))


def weight_shape(backbone: Backbone, head: HeadConfig, classes: int) -> tuple[int, int]:
    """Return the shape of the head's weight: [C, D], or [C, E] behind a projection."""
    if head.space == "projected" and backbone.projection is not None:
        return classes, backbone.projection.shape[1]
    return classes, backbone.tower.width


def prompts_for(names: Sequence[str], initial: HeadInit) -> tuple[str, ...]:
    """Return the text tower's prompt of each class, the first if there are several.

    They are the names themselves if the head does not start from text.
    """
    if isinstance(initial, PromptsInit):
        return tuple(prompts[0] for prompts in initial.prompts(names))
    return tuple(names)


def preprocessing_for(image: ImageSpec, interpolation: str | None = None) -> Preprocessing:
    """Return the backbone's preprocessing, with canvases 1.5 patches larger than the views.

    That is the expansion of LIFT, section 3.4. `interpolation` None means the backbone's.
    """
    return Preprocessing.model_validate(
        {
            "size": image.size,
            "expand": image.patch * 3 // 2,
            "interpolation": interpolation or image.interpolation,
            "resize_mode": image.resize_mode,
            "long_side": "cut",
            "mean": image.mean,
            "std": image.std,
        }
    )
