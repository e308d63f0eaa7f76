"""Training runs, top to bottom: a dataset and a recipe in, a model and its facts out."""

from dataclasses import dataclass

import torch

from models.bundle.ensemble import Floats
from models.bundle.manifest import Preprocessing
from models.lift.backbone import Backbone
from models.lift.model import Model
from training.build import build, preprocessing_for, prompts_for, resolve
from training.checkpoint import Facts
from training.dataset import Dataset, Split
from training.evaluation import view_logits
from training.fit import fit
from training.inputs import evaluation_photos, training_photos
from training.prefix import FrozenStages, PrefixCache, copies_for
from training.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """A trained model, what its checkpoint says of it, and each epoch's mean loss."""

    model: Model
    facts: Facts
    losses: list[float]


class Trainer:
    """Trains and measures recipes on one dataset and one backbone.

    What runs share, the photos behind the frozen stages, is computed once. Train recipes with few
    frozen stages first: the others start from their rows.
    """

    def __init__(self, dataset: Dataset, backbone: Backbone, device: torch.device) -> None:
        self.dataset = dataset
        self._backbone = backbone
        self._device = device
        self._frozen = FrozenStages(device)
        self._training: dict[tuple[int, int, int], PrefixCache] = {}
        self._views: dict[Split, PrefixCache] = {}

    def train(self, recipe: Recipe) -> Run:
        """Raises `UserError` where the loss diverges."""
        backbone = self._backbone
        preprocessing = preprocessing_for(backbone.image)
        classes, counts = self.dataset.classes, self.dataset.counts
        prompts = prompts_for(classes, recipe)
        recipe = resolve(recipe, len(classes), len(backbone.tower.blocks))
        model = build(backbone, prompts, recipe)
        losses: list[float] = []
        if recipe.epochs:
            inputs = self._crops(recipe, preprocessing).rows_for(model, preprocessing.size)
            losses = fit(model, inputs, counts, recipe, self._device)
        facts = Facts(
            backbone=backbone.name,
            architecture=backbone.architecture,
            pretrained=backbone.pretrained,
            backbone_sha256=backbone.sha256,
            data=self.dataset.name,
            classes=classes,
            counts=tuple(counts),
            prompts=tuple(prompts),
            preprocessing=preprocessing,
            recipe=recipe,
            trainable_parameters=model.trainable_parameters,
        )
        return Run(model, facts, losses)

    def view_logits(self, run: Run, split: Split) -> Floats:
        """Logits float32 [N, 5, C] of every view of a split's photos, in torch."""
        if split not in self._views:
            photos = evaluation_photos(split, run.facts.preprocessing)
            self._views[split] = PrefixCache(photos, [1] * len(split), self._frozen)
        inputs = self._views[split].rows_for(run.model, run.facts.preprocessing.size)
        return view_logits(run.model, inputs, self._device)

    def _crops(self, recipe: Recipe, preprocessing: Preprocessing) -> PrefixCache:
        key = recipe.seed, recipe.crops, recipe.copies
        if key not in self._training:
            # One seed's rows at a time: they are the largest thing in memory.
            self._training.clear()
            split = self.dataset.train
            photos = training_photos(split, preprocessing, recipe.seed)
            copies = copies_for(split.labels, self.dataset.counts, recipe.crops, recipe.copies)
            self._training[key] = PrefixCache(photos, copies, self._frozen)
        return self._training[key]


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
