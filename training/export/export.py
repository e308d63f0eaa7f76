"""From a checkpoint to a bundle: merge the tuners, write and check the graphs, calibrate them."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import torch

from taillift.models.bundle.arrays import Doubles, Floats, Pixels
from taillift.models.bundle.ensemble import run_stages
from taillift.models.bundle.feature_statistics import STATISTICS
from taillift.models.bundle.folder import (
    DELTA,
    REPORT,
    new_bundle,
    read_golden,
    write_golden,
    write_scores,
)
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.manifest import (
    Accuracy,
    BackboneInfo,
    Manifest,
    Method,
    PriorName,
    Thresholds,
    classes_from,
)
from taillift.models.bundle.posterior import log_shares
from taillift.models.bundle.predictor import Predictor
from taillift.models.bundle.schema import FILES, Group, Precision
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from taillift.models.lift.backbone import load_backbone
from taillift.models.lift.model import Model, merge, unmerged
from taillift.models.lift.tuners import Adapter, AdaptFormer, LoRA
from taillift.models.names import canonical
from taillift.models.release.bundle_comparison import (
    BundleComparison,
    MeasuredModel,
    compare,
    view_milliseconds,
)
from taillift.models.release.labelled_photos import LabelledPhotos
from taillift.training.calibration.cross_fit import (
    FOLDS,
    MAX_PER_CLASS,
    answered_prior,
    cross_fit,
)
from taillift.training.calibration.variants import CalibratedVariant, HeldOuts, VariantCalibrator
from taillift.training.console import duration, note
from taillift.training.data.dataset import Dataset, Split, in_order_of
from taillift.training.evaluation import class_accuracies
from taillift.training.export.graphs import Graphs, node_count
from taillift.training.export.int8 import FewShotPhotos
from taillift.training.export.onnx_graph import in_batches, logits_of
from taillift.training.fit.checkpoint import (
    CheckpointMetadata,
    measured_statistics,
    own_photos,
    photos_of_classes,
    read_statistics,
    restore,
    without_forgotten,
)
from taillift.training.fit.estimate import evaluation_seconds
from taillift.training.fit.inputs import evaluation_photos
from taillift.training.fit.resume import run_key
from taillift.training.recipe.recipe import Recipe
from taillift.training.report.bundle import write_report
from taillift.training.train import Trainer

TOLERANCE: Final = 1e-4
THRESHOLDS: Final = Thresholds()
PROOF_PHOTOS: Final = 128
GOLDEN_PHOTOS: Final = 4
JUDGED_PHOTOS: Final = 400


@dataclass(frozen=True)
class Proof:
    """Largest differences between logits on `photos` training photos, and the graph's size.

    `merged` compares the merged model with the trained one, `runtime` ONNX Runtime with the merged
    model. `nodes` is the number of nodes of the fp32 graph.
    """

    photos: int
    merged: float
    runtime: float
    nodes: int


@dataclass(frozen=True)
class Exported:
    """A bundle's manifest, and the names of the tuners that could not be merged.

    `comparisons` sets each variant against fp32, on the photos that they were measured on.
    """

    manifest: Manifest
    proof: Proof
    unmerged: list[str]
    comparisons: dict[Precision, BundleComparison]


def export(
    checkpoint: Path,
    dataset: Dataset,
    target: Path,
    backbone: str | None = None,
    replace: bool = False,
    calibrated: bool = True,
    variants: Sequence[Precision] = (),
    photos_shown: bool = True,
) -> Exported:
    """Make a bundle at `target`; leave nothing there on any failure.

    `variants` are made from the fp32 graph. Unless `calibrated`, the bundle has no exit rule,
    temperatures, prediction sets or review thresholds. The report shows held-out photos if
    `photos_shown`.

    A checkpoint to which classes were added, or from which some were taken, is exported with photos
    of some of its classes, such as those that were added. It is calibrated only if val/ has all
    classes.

    Raises `UserError` if the checkpoint was trained on other photos than `dataset`, if a variant
    cannot be made, or if the merged model or ONNX Runtime changes a logit by more than `TOLERANCE`
    on training photos.
    """
    model, metadata = restore(checkpoint, backbone)
    statistics, groups = read_statistics(checkpoint), dataset.groups
    if metadata.extended:
        dataset, groups = with_all_classes(checkpoint, metadata, dataset, variants)
        calibrated = calibrated and calibrates(dataset)
    else:
        dataset = own_photos(checkpoint, metadata, dataset)
    if calibrated and dataset.val is None and metadata.parents:
        raise UserError(
            f"{checkpoint} is an average, which cannot be trained again to calibrate by "
            "cross-fitting: add val/, or pass --no-calibration"
        )
    held_out = [split for split in (dataset.val, dataset.test) if split is not None]
    photos = sum(map(len, held_out))
    if calibrated and dataset.val is None:
        photos += sum(min(count, MAX_PER_CLASS) for count in metadata.counts)
    # Of photos of some classes, the statistics would say that the others' features are zero.
    measurable = statistics is None and tuple(dataset.counts) == metadata.counts
    if measurable:
        # The statistics of the features take one view of each of these.
        photos += len(photos_of_classes(dataset.train)) // VIEWS
    seconds = evaluation_seconds(model.tower, metadata.preprocessing.size, photos)
    if calibrated and dataset.val is None:
        # Each fold trains on four fifths of the photos again, and measures the others.
        seconds += (FOLDS - 1) * metadata.record.seconds
    note(f"Exporting {metadata.recipe.title} for {dataset.name}: {duration(seconds)}")
    merged = merge(model)
    pixels = centre_views(dataset.train, metadata)
    priors = answered_prior(metadata.recipe, metadata.prior_counts)
    log_prior = log_shares(priors)
    few = None
    if Precision.INT8 in variants:
        few = few_shot_photos(dataset, groups, metadata, log_prior)
    graphs = Graphs(pixels, variants, few)
    calibrator = VariantCalibrator(dataset, metadata.preprocessing, groups, log_prior)

    def cross_fitted() -> HeldOuts:
        trainer = Trainer(dataset, load_backbone(backbone or metadata.backbone))
        write = graphs.write if variants else None
        return cross_fit(trainer, recipe_as_trained(checkpoint, metadata), write, groups)

    with new_bundle(target, replace) as bundle:
        paths = graphs.write(merged, bundle.path)
        side = metadata.preprocessing.size
        sessions = {precision: Session(path, side=side) for precision, path in paths.items()}
        served = logits_of(sessions[Precision.FP32], pixels)
        proof = prove(model, merged, pixels, served, node_count(paths[Precision.FP32]))
        shutil.copyfile(checkpoint, bundle.path / DELTA)
        golden = pixels[:GOLDEN_PHOTOS]
        golden_logits = {
            precision: session.run(golden).logits for precision, session in sessions.items()
        }
        write_golden(bundle.path, golden, golden_logits)
        measured = (
            calibrator.calibrate(sessions, cross_fitted)
            if calibrated
            else calibrator.evaluate(sessions)
        )
        if measurable:
            statistics = measured_statistics(model, metadata, dataset)
        if statistics is None:
            note(
                f"left out: {STATISTICS}, which `taillift extend` needs: {checkpoint} has none, "
                f"and {dataset.folder} lacks some of its training photos"
            )
        else:
            statistics.save(bundle.path)
        finished = {
            precision: variant.as_made(graphs.made.get(precision))
            for precision, variant in measured.items()
        }
        draft = make_manifest(metadata, groups, priors, finished)
        comparisons = write_measurements(
            bundle.path, draft, metadata, dataset, finished, photos_shown
        )
        manifest = bundle.finish(lambda files: draft.model_copy(update={"files": files}))
    return Exported(manifest, proof, unmerged(merged), comparisons)


def with_all_classes(
    checkpoint: Path,
    metadata: CheckpointMetadata,
    dataset: Dataset,
    variants: Sequence[Precision],
) -> tuple[Dataset, list[Group]]:
    """Return photos of some classes of a checkpoint with all of these, and the classes' groups.

    Photos of classes that it knows no more are left out. Raises `UserError` if `dataset` has
    another class, or if a variant is to be made and it lacks one.
    """
    classes = tuple(map(canonical, metadata.classes))
    known = without_forgotten(checkpoint, metadata, dataset)
    whole = in_order_of(known, classes, str(checkpoint))
    if variants and (lacking := whole.counts.count(0)):
        raise UserError(
            f"{dataset.folder} lacks photos of {lacking} of the {len(whole.classes)} classes, and "
            f"{variants[0]} is made from photos of all: leave --variant out"
        )
    return whole, THRESHOLDS.groups(metadata.counts)


def calibrates(dataset: Dataset) -> bool:
    """Return whether val/ has photos of all classes; a note says so if it has not."""
    lacking = len(dataset.classes) - len(set(dataset.val.labels) if dataset.val else ())
    if lacking:
        note(
            f"left out: calibration: {dataset.folder} has no val/ photos of {lacking} of the "
            f"{len(dataset.classes)} classes; `taillift calibrate` makes it, with those of all"
        )
    return not lacking


def recipe_as_trained(checkpoint: Path, metadata: CheckpointMetadata) -> Recipe:
    """Return the recipe with the epochs and the numerical precision of the checkpoint's training.

    Raises `UserError` if a file that the recipe names has changed since.
    """
    recipe = metadata.recipe
    reads_file = metadata.key and recipe.head.initial.contents()
    data = metadata.data_sha256 + metadata.pool_sha256
    # The key of a run does not know what tau it will choose.
    asked = (recipe, recipe.with_tau(None))
    keys = [run_key(each, data, metadata.backbone_sha256) for each in asked]
    if reads_file and metadata.key not in keys:
        raise UserError(
            f"{checkpoint}: the file that its head started from has changed since, and calibration "
            "trains from it again: restore the old file, train again, or add a val split"
        )
    # Without `steps`, the epochs stay as they are, also those of a checkpoint from before their
    # number was bounded.
    precision = metadata.record.precision or "auto"
    steps = None if recipe.bounded else recipe.steps
    return recipe.model_copy(update={"steps": steps, "precision": precision})


def few_shot_photos(
    dataset: Dataset, groups: Sequence[Group], metadata: CheckpointMetadata, log_prior: Doubles
) -> FewShotPhotos | None:
    """Return at most `JUDGED_PHOTOS` val photos of few-shot classes; None if there are none."""
    if dataset.val is None:
        return None
    rows = [row for row, label in enumerate(dataset.val.labels) if groups[label] == "few"]
    if not rows:
        return None
    spread = np.linspace(0, len(rows) - 1, min(JUDGED_PHOTOS, len(rows)), dtype=int)
    few = dataset.val.only([rows[index] for index in spread])
    pixels = centre_views(few, metadata, len(few))
    return FewShotPhotos(pixels, np.asarray(few.labels), log_prior)


def compared_with_fp32(
    bundle: Path, manifest: Manifest, variants: Mapping[Precision, CalibratedVariant]
) -> dict[Precision, BundleComparison]:
    """Compare each variant with fp32 on the photos that they were measured on, if there are any.

    The graphs, golden views and scores are in the folder `bundle` already.
    """
    check = variants[Precision.FP32].check
    if check is None or len(variants) == 1:
        return {}
    distinct = check.distinct
    views, _ = read_golden(bundle)
    timed = [(bundle / FILES[precision], views) for precision in variants]
    measured: dict[Precision, MeasuredModel] = {}
    for (precision, variant), (path, _), milliseconds in zip(
        variants.items(), timed, view_milliseconds(timed), strict=True
    ):
        assert variant.check is not None
        predictor = Predictor.open(bundle, manifest, precision)
        ensemble = predictor.usual_ensemble
        logits, taken = run_stages(
            predictor.stages(ensemble), variant.check.view_logits[distinct, : ensemble.views]
        )
        megabytes = path.stat().st_size / 1e6
        measured[precision] = MeasuredModel(
            predictor, ensemble, logits, taken, megabytes, milliseconds
        )
    photos = LabelledPhotos(check.data, [], check.labels[distinct], len(check) - len(distinct))
    fp32 = measured.pop(Precision.FP32)
    return {precision: compare(fp32, model, photos) for precision, model in measured.items()}


def centre_views(split: Split, metadata: CheckpointMetadata, most: int = PROOF_PHOTOS) -> Pixels:
    """Return the centre views uint8 [N, S, S, 3] of `most` photos, spread over all classes."""
    spread = np.linspace(0, len(split) - 1, min(most, len(split)), dtype=int).tolist()
    photos = evaluation_photos(split, metadata.preprocessing)
    ((rows, _),) = photos.batches([(photo, 0) for photo in spread], len(spread))
    pixels: Pixels = rows.numpy()[:: photos.rows]
    return pixels


@torch.no_grad()
def prove(model: Model, merged: Model, pixels: Pixels, served: Floats, nodes: int) -> Proof:
    """Compare the trained model, the merged one, and the logits that the merged graph gives.

    `served` are those logits, float32 [N, C], on `pixels`. The stages that training left as they
    were run once for both models. Raises `UserError` if a step changes a logit by more than
    `TOLERANCE`.
    """
    frozen = model.tower.frozen_stages
    stem = model.eval().tower[:frozen]
    rows = in_batches(lambda views: stem(model.normalise(torch.from_numpy(views))).numpy(), pixels)

    def logits(of: Model) -> Floats:
        network = of.tower[frozen:]
        return in_batches(lambda part: of.head(network(torch.from_numpy(part)))[0].numpy(), rows)

    merged_logits = logits(merged)
    proof = Proof(
        photos=len(pixels),
        merged=float(np.abs(logits(model) - merged_logits).max()),
        runtime=float(np.abs(served - merged_logits).max()),
        nodes=nodes,
    )
    for name, error in (("merging", proof.merged), ("ONNX Runtime", proof.runtime)):
        # NaN is refused, too.
        if not error <= TOLERANCE:
            raise UserError(
                f"no bundle was written: {name} changes a logit by {error:.2g}, more than the "
                f"{TOLERANCE:g} allowed, on {len(pixels)} training photos"
            )
    return proof


def write_measurements(
    folder: Path,
    draft: Manifest,
    metadata: CheckpointMetadata,
    dataset: Dataset,
    variants: Mapping[Precision, CalibratedVariant],
    photos_shown: bool,
) -> dict[Precision, BundleComparison]:
    """Write the scores that prediction sets are made from, and the report.

    The variants were measured on the held-out photos of `dataset`, of which the report shows some
    if `photos_shown`. Returns how they compare with fp32. `draft` is the manifest as far as it is
    known.
    """
    for precision, variant in variants.items():
        if variant.fitted:
            write_scores(folder, precision, variant.fitted.scores)
    comparisons = compared_with_fp32(folder, draft, variants)
    photos = dataset.held_out[1].photos if dataset.held_out and photos_shown else ()
    groups = [info.group for info in draft.classes]
    write_report(folder / REPORT, metadata, groups, variants, photos, comparisons)
    return comparisons


def accuracies(
    variants: Mapping[Precision, CalibratedVariant], classes: int
) -> list[Accuracy | None]:
    """Return each class's accuracy with fp32; None for a class without held-out photos."""
    check = variants[Precision.FP32].check
    if check is None:
        return [None] * classes
    return class_accuracies(check.view_logits, check.labels, classes)


def make_manifest(
    metadata: CheckpointMetadata,
    groups: Sequence[Group],
    priors: Sequence[float],
    variants: Mapping[Precision, CalibratedVariant],
) -> Manifest:
    """Return the manifest of an exported bundle, without files.

    `priors` are those that its logits carry.
    """
    recipe = metadata.recipe
    ranks = [
        tuner.rank for tuner in recipe.tuners if isinstance(tuner, AdaptFormer | Adapter | LoRA)
    ]
    frequencies = np.divide(metadata.counts, sum(metadata.counts))
    if np.allclose(priors, 1 / len(priors)):
        prior: PriorName = "uniform"
    else:
        prior = "train" if np.allclose(priors, frequencies) else "other"
    return Manifest(
        name=metadata.data,
        taillift_version=version("taillift"),
        backbone=BackboneInfo(
            architecture=metadata.architecture,
            pretrained=metadata.pretrained,
            sha256=metadata.backbone_sha256,
        ),
        method=Method(
            name=recipe.name,
            tuners=tuple(tuner.name for tuner in recipe.tuners) if recipe.epochs else (),
            rank=ranks[0] if ranks and recipe.epochs else None,
            trainable_parameters=metadata.trainable_parameters,
            loss=recipe.loss.name if recipe.epochs else "none",
            prior=prior,
            tau=recipe.chosen_tau,
        ),
        classes=classes_from(
            metadata.classes,
            metadata.prompts,
            metadata.counts,
            THRESHOLDS,
            accuracies(variants, len(metadata.classes)),
            priors,
            groups,
        ),
        thresholds=THRESHOLDS,
        preprocessing=metadata.preprocessing,
        variants={precision: variant.variant for precision, variant in variants.items()},
        files={},
    )
