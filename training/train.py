"""The whole story of a training run, from top to bottom.

A run takes a dataset and a recipe. It cuts random crops out of the photos, sends them once through
the frozen part of the backbone, trains the rest step by step, and returns the model with its
metadata.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from taillift.models.bundle.arrays import Floats, chunks
from taillift.models.bundle.schema import Preprocessing
from taillift.models.lift.backbone import Backbone
from taillift.models.lift.model import Model
from taillift.training.console import steps_bar
from taillift.training.data.dataset import Dataset, Split
from taillift.training.evaluation import predictions, view_logits
from taillift.training.fit.build import (
    bare_model,
    build_model,
    initial_weight,
    preprocessing_for,
    prompts_for,
    resolve_recipe,
)
from taillift.training.fit.checkpoint import CheckpointMetadata
from taillift.training.fit.distributed import Processes, resolve_precision
from taillift.training.fit.estimate import training_seconds
from taillift.training.fit.frozen_features import (
    BATCH,
    FrozenFeatures,
    FrozenStages,
    copies_for,
    remaining_network,
)
from taillift.training.fit.inputs import (
    Inputs,
    Photos,
    Subset,
    epoch_order,
    evaluation_photos,
    first_copies,
    sharded,
    training_photos,
)
from taillift.training.fit.optimisation import (
    DivergedError,
    GradientAccumulator,
    OptimisationState,
    enough_memory,
    micro_batch,
    rate_factor,
)
from taillift.training.fit.progress import Clock, Curves, Progress
from taillift.training.fit.provenance import new_provenance
from taillift.training.fit.resume import Resume, run_key
from taillift.training.recipe.recipe import Augmentation, Recipe


@dataclass(frozen=True)
class Run:
    """A trained model with the metadata of its checkpoint."""

    model: Model
    metadata: CheckpointMetadata

    @property
    def losses(self) -> tuple[float, ...]:
        """The mean loss of each epoch."""
        return self.metadata.record.losses


class Trainer:
    """Trains and measures recipes on one dataset and one backbone.

    Its runs share frozen features, which are computed once. If `torchrun` has started several
    processes, all of them have to make the same calls; they share the work.
    """

    def __init__(
        self, dataset: Dataset, backbone: Backbone, device: torch.device | None = None
    ) -> None:
        """Train on `device`; None means a GPU if there is one."""
        self.dataset = dataset
        self._backbone = backbone
        self._processes = Processes(device)
        self._frozen = FrozenStages(self._processes.device)
        self._crops: dict[tuple[int, int, Augmentation, Preprocessing], FrozenFeatures] = {}
        self._views: dict[tuple[Split, Preprocessing], FrozenFeatures] = {}
        self._centres: dict[Preprocessing, Tensor] = {}

    def train(
        self,
        recipe: Recipe,
        resume_file: Path | None = None,
        curves_folder: Path | None = None,
        without: Collection[int] = (),
    ) -> Run:
        """Train one recipe.

        The run continues from `resume_file` if that exists, and keeps it up to date. TensorBoard's
        curves go to `curves_folder`. The training photos at the indices `without` are set aside,
        but the number of epochs stays; every class has to keep a photo. Raises `UserError` if the
        loss diverges, the memory is too small, or `resume_file` is from another run.
        """
        dataset, backbone, processes = self.dataset, self._backbone, self._processes
        recipe = resolve_recipe(backbone, recipe, dataset.counts)
        preprocessing = preprocessing_for(backbone.image, recipe.augmentation.interpolation)
        aside = set(without)
        kept = [photo for photo in range(len(dataset.train)) if photo not in aside]

        with enough_memory(recipe, processes):
            # An interrupted run with the same recipe, data and backbone is continued.
            key = run_key(recipe, dataset.fingerprint, backbone.sha256)
            resume = Resume(resume_file, key, processes)

            # The model: the backbone, its tuners, and a head that starts from texts or photos.
            weight = initial_weight(
                backbone, recipe, dataset.names, lambda: self.centre_features(preprocessing, kept)
            )
            model = build_model(backbone, recipe, weight)

            with Curves(curves_folder, resume.done) as curves:
                progress = None
                if recipe.epochs:
                    # The photos: random crops, as rows behind the tower's frozen stages.
                    crops = self.frozen_crops(recipe, preprocessing)
                    inputs = Subset(crops.inputs_for(model, preprocessing.size), kept)
                    counts = torch.bincount(inputs.labels, minlength=len(dataset.classes)).tolist()
                    try:
                        progress = fit(model, inputs, counts, recipe, processes, resume, curves)
                    except DivergedError:
                        resume.forget()
                        raise

                metadata = CheckpointMetadata(
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
                    record=new_provenance(processes, progress),
                )
                run = Run(model, metadata)

                if curves_folder and dataset.val:
                    labels = np.asarray(dataset.val.labels)
                    single, full = predictions(self.view_logits(run, dataset.val))
                    accuracies = {
                        "validation/single": 100 * float((single == labels).mean()),
                        "validation/full": 100 * float((full == labels).mean()),
                    }
                    curves.add(recipe.epochs, accuracies)
        return run

    def seconds(self, recipe: Recipe) -> float:
        """Return about how many seconds `train` takes. Raises `UserError` if it would at once."""
        return training_seconds(self._backbone, self.dataset, recipe, self._processes.device)

    def frozen_crops(self, recipe: Recipe, preprocessing: Preprocessing) -> FrozenFeatures:
        """Return the frozen features of the training photos' random crops.

        They are kept for the next run, if that has the same crops.
        """
        augmentation, epochs, seed = recipe.augmentation, recipe.epochs, recipe.seed
        key = seed, epochs, augmentation, preprocessing
        if key not in self._crops:
            # Only the latest are kept: they are the largest thing in memory.
            self._crops.clear()
            split = self.dataset.train
            photos = training_photos(split, preprocessing, augmentation, epochs, seed)
            copies = copies_for(split.labels, self.dataset.counts, augmentation, epochs)
            self._crops[key] = FrozenFeatures(photos, copies, epochs, self._frozen, self._processes)
        return self._crops[key]

    @torch.no_grad()
    def centre_features(
        self, preprocessing: Preprocessing, kept: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return the whole tower's features [N, D] and the labels [N] of the photos at `kept`.

        They come from the centre views of training photos and the tower as it is in the backbone.
        """
        views = evaluation_photos(self.dataset.train, preprocessing)
        if preprocessing not in self._centres:
            centres = Photos(lambda photo, epoch: views.crop(photo, epoch)[:1], 1, views.labels)
            copies = [1] * len(views.labels)
            frozen = FrozenFeatures(centres, copies, 1, self._frozen, self._processes)
            model = bare_model(self._backbone, len(self.dataset.classes))
            inputs = frozen.inputs_for(model, preprocessing.size)
            network = remaining_network(model, inputs.stage)
            batches = inputs.batches(first_copies(len(copies)), BATCH)
            self._centres[preprocessing] = torch.cat([network(rows) for rows, _ in batches])
        chosen = list(kept)
        return self._centres[preprocessing][chosen], views.labels[chosen]

    def view_logits(self, run: Run, split: Split, only: Sequence[int] | None = None) -> Floats:
        """Return the logits float32 [N, 5, C] of all views of a split's photos, from torch.

        `only` are the indices of N of the photos. The frozen features of the whole split are
        kept for other runs.
        """
        preprocessing = run.metadata.preprocessing
        key = split, preprocessing
        if key not in self._views:
            photos = evaluation_photos(split, preprocessing)
            self._views[key] = FrozenFeatures(
                photos, [1] * len(split), 1, self._frozen, self._processes
            )
        inputs = self._views[key].inputs_for(run.model, preprocessing.size)
        chosen = inputs if only is None else Subset(inputs, only)
        return view_logits(run.model, chosen, self._processes.device)


def fit(
    model: Model,
    inputs: Inputs,
    counts: Sequence[int],
    recipe: Recipe,
    processes: Processes,
    resume: Resume,
    curves: Curves,
) -> Progress:
    """Train the unfrozen tensors of `model` and leave it on the CPU; return the finished progress.

    `counts` are the photos of each class in `inputs`. Every process takes its part of every batch,
    and all end with the same weights: those that a single process would get, up to the rounding of
    sums. The run continues from where `resume` is. Raises `DivergedError` if the loss is not a
    finite number.
    """
    progress = resume.progress or Progress(
        processes.broadcast(resolve_precision(recipe.precision, processes.device))
    )
    fabric = processes.fabric(progress.precision)
    model.to(processes.device).eval()
    optimisation = OptimisationState(model, recipe, processes, fabric)
    if resume.optimisation:
        optimisation.load_state_dict(resume.optimisation)
    criterion = recipe.loss.build(counts).to(processes.device)
    gradients = GradientAccumulator(
        model, inputs.stage, criterion, fabric, micro_batch(recipe, processes)
    )

    photos, options = len(inputs.labels), recipe.optimiser
    steps_per_epoch = -(-photos // recipe.batch)
    clock = Clock(progress)
    title, steps = f"Training {recipe.title}, seed {recipe.seed}", steps_per_epoch * recipe.epochs
    with steps_bar(title, steps, progress.done) as show:
        while progress.epoch < recipe.epochs:
            # Every photo once, in a new order. A run that continues skips what it has done.
            order = epoch_order(photos, recipe.seed, progress.epoch)
            batches = list(chunks(order, recipe.batch))[progress.step :]
            for size, shard in clock.waiting(sharded(inputs, batches, processes)):
                optimisation.zero_grad()
                loss = processes.all_reduce(gradients.add(shard, size)).item()
                if not math.isfinite(loss):
                    position = f"epoch {progress.epoch + 1}, step {progress.step + 1}"
                    raise DivergedError(f"the loss is {loss} in {position}", options)
                factor = rate_factor(options, progress.done, steps_per_epoch, recipe.epochs)
                rates = optimisation.update(progress.done, factor)
                curves.add(progress.done, {"loss/step": loss} | rates)
                progress.finish_step(loss, size)
                show(progress.done, f"loss {loss:.3f}")
                if resume.due:
                    clock.read()
                    resume.write(progress, optimisation.state_dict())
            mean_loss = progress.finish_epoch(photos)
            curves.add(progress.epoch, {"loss/epoch": mean_loss})
            clock.read()
            resume.write(progress, optimisation.state_dict())

    optimisation.load_ema()
    model.cpu()
    # No loss has checked the weights after the last step.
    if not all(tensor.isfinite().all() for tensor in optimisation.parameters):
        raise DivergedError("the weights are not finite after the last step", options)
    return progress
