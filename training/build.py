"""A model to train: backbone, tuner and head as the recipe says."""

import copy
from collections.abc import Sequence

import torch

from models.bundle.manifest import Preprocessing
from models.lift.backbone import Backbone, ImageSpec
from models.lift.head import CosineHead, text_weight
from models.lift.model import Model, Normalise
from models.lift.tuners import AdaptFormer, adaptive_rank
from training.dataset import class_name
from training.recipe import Recipe


def build(backbone: Backbone, prompts: Sequence[str], recipe: Recipe) -> Model:
    """The untrained model, its head initialised from the prompts, its trained part unfrozen.

    `recipe` is what `resolve` returned. The backbone stays as it is.
    """
    torch.manual_seed(recipe.seed)
    text = backbone.encode_text(prompts)
    tower = copy.deepcopy(backbone.tower)
    if recipe.method == "zero-shot":
        head = CosineHead(text, backbone.logit_scale, backbone.projection)
        head.requires_grad_(False)
    else:
        head = CosineHead(text_weight(text, backbone.projection), recipe.scale)
    tuned = tower.blocks[-recipe.blocks :] if recipe.blocks else tower.blocks
    if recipe.method == "lift":
        assert recipe.rank is not None
        AdaptFormer(rank=recipe.rank).attach(tuned)
    if recipe.method == "full":
        for block in tuned:
            block.requires_grad_(True)
    return Model(Normalise(backbone.image.mean, backbone.image.std), tower, head)


def resolve(recipe: Recipe, classes: int, blocks: int) -> Recipe:
    """The recipe with its rank settled, where the method has one."""
    if recipe.method != "lift" or recipe.rank is not None:
        return recipe
    return recipe.model_copy(update={"rank": adaptive_rank(classes, blocks)})


def prompts_for(classes: Sequence[str], recipe: Recipe) -> list[str]:
    return [recipe.prompt.format(class_name(name)) for name in classes]


def preprocessing_for(image: ImageSpec) -> Preprocessing:
    """Canvases 1.5 patches larger than the views (LIFT, section 3.4)."""
    return Preprocessing.model_validate(
        {
            "size": image.size,
            "expand": image.patch * 3 // 2,
            "interpolation": image.interpolation,
            "resize_mode": image.resize_mode,
            "mean": image.mean,
            "std": image.std,
        }
    )
