"""Training runs, top to bottom: a dataset and a recipe in, a model and its facts out."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from taillift.models.bundle.arrays import Floats
from taillift.models.bundle.schema import Preprocessing
from taillift.models.lift.backbone import Backbone
from taillift.models.lift.model import Model
from taillift.training.data.dataset import Dataset, Split
from taillift.training.evaluation import predictions, view_logits
from taillift.training.fit.build import (
    build,
    initial_weight,
    preprocessing_for,
    prompts_for,
    resolve,
    weight_shape,
)
from taillift.training.fit.checkpoint import CheckpointMetadata
from taillift.training.fit.distributed import Processes
from taillift.training.fit.frozen_features import BATCH, FrozenStages, PrefixCache, copies_for
from taillift.training.fit.inputs import (
    Photos,
    Subset,
    evaluation_photos,
    first_copies,
    training_photos,
)
from taillift.training.fit.loop import DivergedError, enough_memory, fit, network_behind
from taillift.training.fit.provenance import new_provenance
from taillift.training.fit.resume import Progress, Resume, run_key
from taillift.training.fit.tensorboard import Curves
from taillift.training.recipe.recipe import Augmentation, Recipe


@dataclass(frozen=True)
class Run:
    """A trained model, and what its checkpoint says of it."""

    model: Model
    facts: CheckpointMetadata

    @property
    def losses(self) -> tuple[float, ...]:
        """Each epoch's mean loss."""
        return self.facts.record.losses


class Trainer:
    """Trains and measures recipes on one dataset and one backbone.

    What runs share, the photos behind the frozen stages, is computed once. Where `torchrun` has
    started several processes, all of them do the same, and share the work.
    """

    def __init__(
        self, dataset: Dataset, backbone: Backbone, device: torch.device | None = None
    ) -> None:
        """On the best device where None."""
        self.dataset = dataset
        self._backbone = backbone
        self._launcher = Processes(device)
        self._frozen = FrozenStages(self._launcher.device)
        self._training: dict[tuple[int, int, Augmentation, Preprocessing], PrefixCache] = {}
        self._views: dict[tuple[Split, Preprocessing], PrefixCache] = {}
        self._features: dict[Preprocessing, Tensor] = {}

    def train(self, recipe: Recipe, state: Path | None = None, curves: Path | None = None) -> Run:
        """Go on from the file `state`, if it is there, and keep it up to date meanwhile.

        `curves` is the folder for TensorBoard. Raises `UserError` where the loss diverges, the
        memory is too small, or `state` was left by another run.
        """
        recipe = resolve(self._backbone, recipe, self.dataset.counts)
        with enough_memory(recipe, self._launcher):
            return self._train(recipe, state, curves)

    def train_without(self, recipe: Recipe, aside: Collection[int]) -> Run:
        """Train on all training photos but those at `aside`, as long as `train` would.

        Every class has to keep a photo. Raises what `train` raises.
        """
        recipe = resolve(self._backbone, recipe, self.dataset.counts)
        kept = [photo for photo in range(len(self.dataset.train)) if photo not in aside]
        with enough_memory(recipe, self._launcher):
            return self._train(recipe, None, None, kept)

    def view_logits(self, run: Run, split: Split) -> Floats:
        """Logits float32 [N, 5, C] of every view of a split's photos, in torch."""
        preprocessing = run.facts.preprocessing
        key = split, preprocessing
        if key not in self._views:
            photos = evaluation_photos(split, preprocessing)
            self._views[key] = PrefixCache(
                photos, [1] * len(split), 1, self._frozen, self._launcher
            )
        inputs = self._views[key].rows_for(run.model, preprocessing.size)
        return view_logits(run.model, inputs, self._launcher.device)

    def _train(
        self,
        recipe: Recipe,
        state: Path | None,
        curves: Path | None,
        only: Sequence[int] | None = None,
    ) -> Run:
        dataset, backbone, processes = self.dataset, self._backbone, self._launcher
        preprocessing = preprocessing_for(backbone.image, recipe.augmentation.interpolation)
        key = run_key(recipe, dataset.fingerprint, backbone.sha256)
        resume = Resume(state, key, processes)
        kept = range(len(dataset.train)) if only is None else only
        weight = initial_weight(
            backbone, recipe, dataset.names, lambda: self._centre_features(preprocessing, kept)
        )
        model = build(backbone, recipe, weight)
        progress = None
        with Curves(curves, resume.done) as drawn:
            if recipe.epochs:
                every = self._crops(recipe, preprocessing).rows_for(model, preprocessing.size)
                inputs = every if only is None else Subset(every, only)
                counts = torch.bincount(inputs.labels, minlength=len(dataset.classes)).tolist()
                try:
                    progress = fit(model, inputs, counts, recipe, processes, resume, drawn)
                except DivergedError:
                    resume.forget()
                    raise
            run = Run(model, self._facts(recipe, key, model, preprocessing, progress))
            if curves and dataset.val:
                drawn.add(recipe.epochs, self._validation(run, dataset.val))
        return run

    def _facts(
        self,
        recipe: Recipe,
        key: str,
        model: Model,
        preprocessing: Preprocessing,
        progress: Progress | None,
    ) -> CheckpointMetadata:
        dataset, backbone = self.dataset, self._backbone
        return CheckpointMetadata(
            backbone=backbone.name,
            architecture=backbone.architecture,
            pretrained=backbone.pretrained,
            backbone_sha256=backbone.sha256,
            data=dataset.name,
            data_sha256=dataset.fingerprint,
            classes=dataset.classes,
            names=dataset.names,
            counts=tuple(dataset.counts),
            prompts=prompts_for(dataset.names, recipe.head.initial),
            preprocessing=preprocessing,
            recipe=recipe,
            key=key,
            trainable_parameters=model.trainable_parameters,
            record=new_provenance(self._launcher, progress),
        )

    def _validation(self, run: Run, split: Split) -> dict[str, float]:
        """Accuracy in per cent, with a single view and with the full five."""
        labels = np.asarray(split.labels)
        single, full = predictions(self.view_logits(run, split))
        return {
            "validation/single": 100 * float((single == labels).mean()),
            "validation/full": 100 * float((full == labels).mean()),
        }

    def _crops(self, recipe: Recipe, preprocessing: Preprocessing) -> PrefixCache:
        augmentation, epochs, seed = recipe.augmentation, recipe.epochs, recipe.seed
        key = seed, epochs, augmentation, preprocessing
        if key not in self._training:
            # One kind of rows at a time: they are the largest thing in memory.
            self._training.clear()
            split = self.dataset.train
            photos = training_photos(split, preprocessing, augmentation, epochs, seed)
            copies = copies_for(split.labels, self.dataset.counts, augmentation, epochs)
            self._training[key] = PrefixCache(photos, copies, epochs, self._frozen, self._launcher)
        return self._training[key]

    @torch.no_grad()
    def _centre_features(
        self, preprocessing: Preprocessing, only: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The frozen tower's features [N, D] of these training photos' centre views, and labels."""
        photos = _centre(evaluation_photos(self.dataset.train, preprocessing))
        if preprocessing not in self._features:
            model = _bare(self._backbone, len(self.dataset.classes))
            cache = PrefixCache(photos, [1] * len(photos.labels), 1, self._frozen, self._launcher)
            inputs = cache.rows_for(model, preprocessing.size)
            network = network_behind(model, inputs.stage)
            order = first_copies(len(photos.labels))
            parts = [network(rows) for rows, _ in inputs.batches(order, BATCH)]
            self._features[preprocessing] = torch.cat(parts)
        chosen = list(only)
        return self._features[preprocessing][chosen], photos.labels[chosen]


def _centre(photos: Photos) -> Photos:
    """The first of each photo's views alone."""
    return Photos(lambda photo, epoch: photos.crop(photo, epoch)[:1], 1, photos.labels)


def _bare(backbone: Backbone, classes: int) -> Model:
    """The backbone with nothing to train."""
    recipe = Recipe(name="bare", epochs=0)
    return build(backbone, recipe, torch.zeros(weight_shape(backbone, recipe.head, classes)))
