"""The whole story of a training run, from top to bottom.

A run takes a dataset and a recipe. It cuts random crops out of the photos, sends them once through
the frozen part of the backbone, trains the rest step by step, and returns the model with its
metadata.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taillift.models.bundle.arrays import Floats, chunks
from taillift.models.bundle.ensemble import mean_over_views
from taillift.models.bundle.feature_statistics import FeatureStatistics
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.posterior import log_shares
from taillift.models.bundle.schema import Preprocessing
from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone
from taillift.models.lift.model import Model
from taillift.training.console import note, steps_bar
from taillift.training.data.cache import ArrayCache
from taillift.training.data.dataset import Dataset, Split
from taillift.training.data.pool import with_right_labels
from taillift.training.evaluation import (
    best_point,
    check_choosable,
    predictions,
    tau_curve,
    view_logits,
)
from taillift.training.fit.build import (
    bare_model,
    build_model,
    class_texts,
    initial_weight,
    preprocessing_for,
    prompts_for,
    resolve_recipe,
    zero_shot_logits,
)
from taillift.training.fit.checkpoint import (
    STATISTICS_TITLE,
    CheckpointMetadata,
    photos_of_classes,
    statistics_of,
    tower_features,
)
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
    CuedInputs,
    Inputs,
    Subset,
    centre_photos,
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
from taillift.training.fit.progress import Clock, Curves, Log, Progress
from taillift.training.fit.provenance import CueEvidence, new_provenance
from taillift.training.fit.resume import Resume, run_key
from taillift.training.recipe.losses import Cues, LogitAdjusted
from taillift.training.recipe.recipe import Augmentation, Recipe
from taillift.training.recipe.semi_supervision import Loft, RightLabels, StrongView, SureGuesses
from taillift.training.unlabelled.acceptance import known_to_zero_shot, zero_shot_confidence
from taillift.training.unlabelled.teacher import (
    Teacher,
    UlFineTeacher,
    check_pool,
    new_teacher,
)
from taillift.training.unlabelled.weak_strong import passes_needed, weak_strong_photos


@dataclass(frozen=True)
class Run:
    """A trained model with the metadata of its checkpoint."""

    model: Model
    metadata: CheckpointMetadata

    @property
    def losses(self) -> tuple[float, ...]:
        """The mean loss of each epoch."""
        return self.metadata.record.losses

    def answers(self, logits: Floats) -> Floats:
        """Return the model's logits [..., C] as it answers with them: of the tau that was chosen.

        Without such a choice they stay as they are.
        """
        tail = self.metadata.recipe.loss.tail
        if not tail:
            return logits
        shift = (tail * log_shares(self.metadata.prior_counts)).astype(np.float32)
        answered: Floats = logits - shift
        return answered


class Trainer:
    """Trains and measures recipes on one dataset and one backbone.

    Its runs share frozen features, which are computed once; other trainers find them in the cache.
    If `torchrun` has started several processes, all of them have to make the same calls; they share
    the work.
    """

    def __init__(
        self, dataset: Dataset, backbone: Backbone, device: torch.device | None = None
    ) -> None:
        """Train on `device`; None means a GPU if there is one."""
        self.dataset = dataset
        self._backbone = backbone
        self._processes = Processes(device)
        self._frozen = FrozenStages(self._processes.device, backbone.architecture, ArrayCache())
        self._crops: dict[tuple[int, int, Augmentation, Preprocessing], FrozenFeatures] = {}
        self._views: dict[tuple[Split, Preprocessing], FrozenFeatures] = {}
        self._centres: dict[tuple[Split, Preprocessing], Tensor] = {}
        self._pools: dict[
            tuple[Split, int, int, int, StrongView, Preprocessing], FrozenFeatures
        ] = {}

    def train(
        self,
        recipe: Recipe,
        resume_file: Path | None = None,
        curves_folder: Path | None = None,
        without: Collection[int] = (),
        logs: Sequence[Log] = (),
    ) -> Run:
        """Train one recipe.

        The run continues from `resume_file` if that exists, and keeps it up to date. TensorBoard's
        curves go to `curves_folder`, and then to the `logs`, too. The training photos at the
        indices `without` are set aside, but the passes over the others stay as many; every class
        has to keep a photo. Raises `UserError` if the loss diverges, the memory is too small,
        `resume_file` is from another run, one of the `logs` refuses, or tau is to be chosen and
        val/ does not allow it.
        """
        dataset, backbone, processes = self.dataset, self._backbone, self._processes
        if isinstance(recipe.unlabelled, RightLabels) and dataset.unlabelled is not None:
            more = with_right_labels(dataset, recipe.unlabelled.photos, recipe.seed)
            labelled = Trainer(more, backbone, processes.device)
            run = labelled.train(recipe, resume_file, curves_folder, without, logs)
            key = run_key(recipe, dataset.fingerprint_for(True), backbone.sha256)
            return Run(run.model, run.metadata.model_copy(update={"key": key}))
        recipe = resolve_recipe(backbone, recipe, dataset.counts)
        if recipe.soup is not None:
            raise UserError(f"{recipe.name} is a soup: only `taillift train` and `compare` make it")
        preprocessing = preprocessing_for(backbone.image, recipe.augmentation.interpolation)
        if recipe.undecided:
            on_val = dataset.val.labels if dataset.val else None
            check_choosable(recipe.undecided, on_val, dataset.groups)
        aside = set(without)
        kept = [photo for photo in range(len(dataset.train)) if photo not in aside]

        with enough_memory(recipe, processes):
            # An interrupted run with the same recipe, data and backbone is continued.
            key = run_key(
                recipe, dataset.fingerprint_for(recipe.unlabelled is not None), backbone.sha256
            )
            resume = Resume(resume_file, key, processes)

            # The model: the backbone, its tuners, and a head that starts from texts or photos.
            weight = initial_weight(
                backbone, recipe, dataset.names, lambda: self.centre_features(preprocessing, kept)
            )
            model = build_model(backbone, recipe, weight)

            settings = recipe.model_dump(mode="json")
            with Curves(curves_folder, resume.done, logs, settings) as curves:
                progress, teacher, evidence, look_alikes = None, None, None, None
                if recipe.cues:
                    evidence, look_alikes = self.cues(recipe, recipe.cues, preprocessing)
                if recipe.epochs:
                    # The photos: random crops, as rows behind the tower's frozen stages.
                    crops = self.frozen_crops(recipe, preprocessing)
                    inputs: Inputs = Subset(crops.inputs_for(model, preprocessing.size), kept)
                    counts = torch.bincount(inputs.labels, minlength=len(dataset.classes)).tolist()
                    steps = recipe.total_steps(len(kept), len(dataset.train))
                    if look_alikes is not None:
                        inputs = CuedInputs(inputs, look_alikes[kept])
                    teacher = self.teacher(recipe, model, preprocessing, counts, steps)
                    try:
                        progress = fit(
                            model,
                            inputs,
                            counts,
                            recipe,
                            steps,
                            processes,
                            resume,
                            curves,
                            teacher,
                        )
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
                    added=dataset.added,
                    classes=dataset.classes,
                    names=dataset.names,
                    counts=tuple(dataset.counts),
                    prompts=prompts_for(dataset.names, recipe.head.initial),
                    preprocessing=preprocessing,
                    recipe=recipe,
                    key=key,
                    pool_sha256=dataset.pool_fingerprint if recipe.unlabelled else "",
                    pseudo_counts=tuple(teacher.pseudo_counts.tolist()) if teacher else (),
                    trainable_parameters=model.trainable_parameters,
                    record=new_provenance(
                        processes, progress, tuple(teacher.history) if teacher else (), evidence
                    ),
                )
                run = Run(model, metadata)
                if recipe.undecided:
                    run = self.with_tau(run, recipe.undecided)

                if curves_folder and dataset.val:
                    labels = np.asarray(dataset.val.labels)
                    single, full = predictions(run.answers(self.view_logits(run, dataset.val)))
                    accuracies = {
                        "validation/single": 100 * float((single == labels).mean()),
                        "validation/full": 100 * float((full == labels).mean()),
                    }
                    curves.add(recipe.epochs, accuracies)
        return run

    def cues(
        self, recipe: Recipe, cues: Cues, preprocessing: Preprocessing
    ) -> tuple[CueEvidence, Tensor | None]:
        """Return whether cues are on, and if so the look-alikes int64 [N, K] of training photos.

        Photos that are set aside count as well, so that every fold of a cross-fitting decides as
        the whole set does. Raises `UserError` if the backbone has no text tower. Collective.
        """
        backbone, dataset = self._backbone, self.dataset
        if not backbone.has_text:
            raise UserError(
                f"loss.cues ask zero-shot CLIP, and backbone {backbone.name} has no text tower: "
                "leave them out"
            )
        features = self.backbone_features(dataset.train, preprocessing)
        labels = torch.tensor(dataset.train.labels)
        logits = zero_shot_logits(backbone, recipe, dataset.names, features)
        evidence = CueEvidence.of(cues, logits, labels, dataset.groups)
        note(str(evidence))
        look_alikes = cues.look_alikes(logits, labels) if evidence.on else None
        return self._processes.broadcast((evidence, look_alikes))

    def with_tau(self, run: Run, loss: LogitAdjusted) -> Run:
        """Return the run with the tau that its loss aims at on val/, with five views. Collective.

        There has to be val/.
        """
        dataset, metadata = self.dataset, run.metadata
        assert dataset.val is not None
        logits = self.view_logits(run, dataset.val).reshape(-1, len(dataset.classes))
        labels, full = np.asarray(dataset.val.labels), mean_over_views(logits, VIEWS)
        curve = tau_curve(full, labels, dataset.groups, metadata.prior_counts)
        point = self._processes.broadcast(best_point(curve, loss))
        plain = next(other for other in curve if other.tau == 1)
        against = "" if point.tau == 1 else f"; with tau = 1: {plain}"
        note(f"tau = {point.tau:g} by val/: {point}{against}")
        recipe = metadata.recipe.with_tau(point.tau)
        return Run(run.model, metadata.model_copy(update={"recipe": recipe}))

    def seconds(self, recipe: Recipe) -> float:
        """Return about how many seconds `train` takes. Raises `UserError` if it would at once."""
        with enough_memory(recipe, self._processes):
            device, soup = self._processes.device, recipe.soup
            if soup is None:
                return training_seconds(self._backbone, self.dataset, recipe, device)
        return sum(map(self.seconds, soup.parents)) * max(1, len(soup.seeds)) * max(1, soup.subsets)

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
            title = "Running the frozen stages on crops"
            self._crops[key] = FrozenFeatures(
                photos, copies, epochs, self._frozen, self._processes, title, augmentation.grows
            )
        return self._crops[key]

    def centre_features(
        self, preprocessing: Preprocessing, kept: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return the whole tower's features [N, D] and the labels [N] of the photos at `kept`.

        They come from the centre views of training photos and the tower as it is in the backbone.
        """
        chosen, train = list(kept), self.dataset.train
        features = self.backbone_features(train, preprocessing)
        return features[chosen], torch.tensor(train.labels)[chosen]

    @torch.no_grad()
    def backbone_features(self, split: Split, preprocessing: Preprocessing) -> Tensor:
        """Return the features [N, D] of all centre views of a split, from the untrained tower."""
        key = split, preprocessing
        if key not in self._centres:
            note(f"Reading the centre view of each of {len(split):,} photos once")
            model = bare_model(self._backbone, len(self.dataset.classes))
            inputs = self.centre_views(split, model, preprocessing)
            network = remaining_network(model, inputs.stage)
            batches = inputs.batches(first_copies(len(split)), BATCH)
            self._centres[key] = torch.cat([network(rows) for rows, _ in batches])
        return self._centres[key]

    def centre_views(
        self,
        split: Split,
        model: Model,
        preprocessing: Preprocessing,
        title: str = "Reading photos for the head",
    ) -> Inputs:
        """Return the centre views of a split, as rows to feed to `model`. Collective."""
        centres = centre_photos(split, preprocessing)
        frozen = FrozenFeatures(centres, [1] * len(split), 1, self._frozen, self._processes, title)
        return frozen.inputs_for(model, preprocessing.size)

    def statistics(self, model: Model, metadata: CheckpointMetadata) -> FeatureStatistics:
        """Return the statistics of the training photos' features, of a model that is on the CPU.

        They are those of `measured_statistics`, of frozen features that other runs share.
        """
        split = self.dataset.train.only(photos_of_classes(self.dataset.train))
        inputs = self.centre_views(split, model, metadata.preprocessing, STATISTICS_TITLE)
        batches = (rows for rows, _ in inputs.batches(first_copies(len(split)), BATCH))
        features = tower_features(model, batches, inputs.stage)
        return statistics_of(features, split.labels, metadata)

    def teacher(
        self,
        recipe: Recipe,
        model: Model,
        preprocessing: Preprocessing,
        counts: Sequence[int],
        steps: int,
    ) -> Teacher | None:
        """Return what teaches unlabelled photos to `model`; None if the recipe uses none.

        `counts` are the labelled photos of each class, in a run of so many `steps`. Raises
        `UserError` if the dataset has no unlabelled photos, or too few. Collective.
        """
        method, pool = recipe.teaching, self.dataset.unlabelled
        if method is None:
            return None
        if pool is None:
            raise UserError(
                f"{recipe.title} uses unlabelled photos and there are none: put them into a folder "
                "unlabelled/ next to train/, or pass --unlabelled"
            )
        if isinstance(method, Loft) and method.foreign is not None and method.zero_shot:
            features = self.backbone_features(pool, preprocessing)
            confidence = zero_shot_confidence(self._backbone, recipe, self.dataset.names, features)
            pool = known_to_zero_shot(pool, confidence, method.zero_shot)
        val = None
        if isinstance(method, SureGuesses) and method.evidence:
            val = self.dataset.val
            if val is None:
                raise UserError(
                    "unlabelled.evidence comes from val/ and there is none: add val/, or use "
                    "unlabelled.threshold"
                )
        size = method.ratio * recipe.batch
        check_pool(len(pool), recipe.batch, method.ratio)

        # Weak and strong views, as rows behind the tower's frozen stages.
        passes = passes_needed(len(pool), size, steps)
        copies = min(recipe.augmentation.copies, passes)
        key = pool, recipe.seed, passes, copies, method.strong, preprocessing
        if key not in self._pools:
            self._pools.clear()
            photos = weak_strong_photos(pool, preprocessing, method.strong, recipe.seed)
            self._pools[key] = FrozenFeatures(
                photos, [copies] * len(pool), passes, self._frozen, self._processes
            )
        inputs = self._pools[key].inputs_for(model, preprocessing.size)
        teacher = new_teacher(
            method,
            model,
            inputs,
            recipe,
            counts,
            self.dataset.groups,
            self._processes,
            self.centre_views(val, model, preprocessing) if val else None,
        )
        if isinstance(teacher, UlFineTeacher):
            teacher.start(class_texts(self._backbone, recipe.head, self.dataset.names))
        return teacher

    def view_logits(self, run: Run, split: Split, only: Sequence[int] | None = None) -> Floats:
        """Return the logits float32 [N, 5, C] of all views of a split's photos, from torch.

        `only` are the indices of N of the photos. The frozen features of the whole split are
        kept for other runs.
        """
        preprocessing = run.metadata.preprocessing
        key = split, preprocessing
        if key not in self._views:
            photos = evaluation_photos(split, preprocessing)
            title, copies = "Running the frozen stages on views", [1] * len(split)
            self._views[key] = FrozenFeatures(
                photos, copies, 1, self._frozen, self._processes, title
            )
        inputs = self._views[key].inputs_for(run.model, preprocessing.size)
        chosen = inputs if only is None else Subset(inputs, only)
        return view_logits(run.model, chosen, self._processes.device)


def fit(
    model: Model,
    inputs: Inputs,
    counts: Sequence[int],
    recipe: Recipe,
    steps: int,
    processes: Processes,
    resume: Resume,
    curves: Curves,
    teacher: Teacher | None = None,
) -> Progress:
    """Train the unfrozen tensors of `model` and leave it on the CPU; return the finished progress.

    `counts` are the photos of each class in `inputs`; the last of the `steps` may be within an
    epoch. Every process takes its part of every batch,
    and all end with the same weights: those that a single process would get, up to the rounding of
    sums. A `teacher` adds unlabelled photos to every step, and adjusts the loss to their prior. The
    run continues from where `resume` is. Raises `DivergedError` if the loss is not a
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
        if teacher:
            teacher.load_state_dict(resume.optimisation["unlabelled"])
    criterion = recipe.loss.build(counts).to(processes.device)

    def supervised_loss(features: Tensor, labels: Tensor) -> Tensor:
        losses: Tensor = criterion(model.head(features)[0], labels)
        return losses

    def state_dict() -> dict[str, Any]:
        taught = {"unlabelled": teacher.state_dict()} if teacher else {}
        return optimisation.state_dict() | taught

    gradients = GradientAccumulator(model, inputs.stage, fabric, micro_batch(recipe, processes))
    if teacher:
        teacher.prepare(model, fabric, micro_batch(recipe, processes))

    photos, options = len(inputs.labels), recipe.optimiser
    steps_per_epoch = -(-photos // recipe.batch)
    clock = Clock(progress)
    title = f"Training {recipe.title}, seed {recipe.seed}"
    with steps_bar(title, steps, progress.done) as show:
        while progress.done < steps or progress.step:
            # Every photo once, in a new order. A run that continues skips what it has done.
            order = epoch_order(photos, recipe.seed, progress.epoch)
            batches = list(chunks(order, recipe.batch))[progress.step :][: steps - progress.done]
            if teacher and not progress.step:
                teacher.begin_epoch()
            pool_batches = (
                teacher.batches(progress.done, len(batches)) if teacher else repeat((0, None))
            )
            both = zip(sharded(inputs, batches, processes), pool_batches, strict=False)
            for (size, shard), pool_batch in clock.waiting(both):
                optimisation.zero_grad()
                if teacher:
                    # Pseudo-labels of weak views; the loss is then built for the joint counts.
                    teacher.guess(pool_batch, progress.done)
                    total = gradients.add(shard, size, teacher.labelled_loss)
                    total += teacher.teach(pool_batch)
                else:
                    total = gradients.add(shard, size, supervised_loss)
                loss = processes.all_reduce(total).item()
                if not math.isfinite(loss):
                    position = f"epoch {progress.epoch + 1}, step {progress.step + 1}"
                    raise DivergedError(f"the loss is {loss} in {position}", options)
                factor = rate_factor(options, progress.done, steps_per_epoch, steps)
                rates = optimisation.update(progress.done, factor)
                if teacher:
                    teacher.finish_step()
                curves.add(progress.done, {"loss/step": loss} | rates)
                progress.finish_step(loss, size)
                show(progress.done, f"loss {loss:.3f}")
                if resume.due:
                    clock.read()
                    resume.write(progress, state_dict())
            mean_loss = progress.finish_epoch(min(photos, progress.step * recipe.batch))
            if teacher:
                teacher.finish_epoch()
            curves.add(progress.epoch, {"loss/epoch": mean_loss})
            clock.read()
            resume.write(progress, state_dict())

    optimisation.load_ema()
    if teacher:
        teacher.finish()
    model.cpu()
    # No loss has checked the weights after the last step.
    if not all(tensor.isfinite().all() for tensor in optimisation.parameters):
        raise DivergedError("the weights are not finite after the last step", options)
    return progress
