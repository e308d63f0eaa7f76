"""From a checkpoint to a bundle: merge, write the graph, prove it, measure it."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import torch

from taillift.models.bundle.arrays import Floats, Pixels
from taillift.models.bundle.folder import (
    DELTA,
    MODEL,
    REPORT,
    new_bundle,
    write_golden,
    write_scores,
)
from taillift.models.bundle.manifest import (
    Accuracy,
    BackboneInfo,
    FileRecord,
    Manifest,
    Method,
    PriorName,
    Thresholds,
    classes_from,
)
from taillift.models.bundle.posterior import log_shares
from taillift.models.bundle.schema import Group, Precision
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from taillift.models.lift.backbone import load_backbone
from taillift.models.lift.merge import merge, unmerged
from taillift.models.lift.model import Model
from taillift.models.lift.tuners import Adapter, AdaptFormer, LoRA
from taillift.models.names import canonical
from taillift.training.calibration.cross_fit import carried_prior, cross_fit
from taillift.training.calibration.variants import CalibratedVariant, HeldOuts, VariantCalibrator
from taillift.training.data.dataset import Dataset, Split
from taillift.training.evaluation import class_accuracies
from taillift.training.export.graphs import Graphs, node_count
from taillift.training.export.onnx_graph import in_batches, logits_of
from taillift.training.fit.checkpoint import CheckpointMetadata, restore
from taillift.training.fit.inputs import evaluation_photos
from taillift.training.fit.resume import run_key
from taillift.training.recipe.recipe import Recipe
from taillift.training.report.bundle import write_report
from taillift.training.train import Trainer

TOLERANCE: Final = 1e-4
THRESHOLDS: Final = Thresholds()
PROOF_PHOTOS: Final = 128
GOLDEN_PHOTOS: Final = 4


@dataclass(frozen=True)
class Proof:
    """Largest differences between logits on `photos` real images, and the graphs' sizes."""

    photos: int
    merged: float
    runtime: float
    nodes: int
    unmerged_nodes: int


@dataclass(frozen=True)
class Exported:
    """`unmerged` names the methods that stay beside the tower's weights."""

    manifest: Manifest
    proof: Proof
    unmerged: list[str]


def export(
    checkpoint: Path,
    dataset: Dataset,
    target: Path,
    backbone: str | None = None,
    replace: bool = False,
    calibrated: bool = True,
    variants: Sequence[Precision] = (),
) -> Exported:
    """Make a bundle at `target`; on any failure nothing is left there.

    `variants` are made of the fp32 graph. Without `calibrated` there is no exit rule, temperature
    or prediction set. Raises `UserError` where checkpoint and dataset do not belong together,
    where a variant cannot be made, and where the logits of the merged model or of ONNX Runtime are
    off by more than `TOLERANCE` on real images.
    """
    model, facts = restore(checkpoint, backbone)
    _check_classes(checkpoint, facts, dataset)
    model.eval().requires_grad_(False)
    merged = merge(model)
    pixels = _centre_views(dataset.train, facts)
    graphs = Graphs(pixels, variants)
    groups = dataset.groups
    priors = carried_prior(facts.recipe, facts.counts)
    judge = VariantCalibrator(dataset, facts.preprocessing, groups, log_shares(priors))

    def cross_fitted() -> HeldOuts:
        trainer = Trainer(dataset, load_backbone(backbone or facts.backbone))
        return cross_fit(trainer, _as_trained(checkpoint, facts), graphs.write, groups)

    written: list[Manifest] = []
    judged: dict[Precision, CalibratedVariant] = {}

    def manifest(content_version: str, files: dict[str, FileRecord]) -> Manifest:
        written.append(_manifest(facts, groups, priors, judged, content_version, files))
        return written[0]

    with new_bundle(target, manifest, replace) as folder:
        paths = graphs.write(merged, folder)
        side = facts.preprocessing.size
        sessions = {one: Session(path, side=side) for one, path in paths.items()}
        logits = logits_of(sessions[Precision.FP32], pixels)
        proof = _prove(model, merged, pixels, logits, node_count(paths[Precision.FP32]), graphs)
        shutil.copyfile(checkpoint, folder / DELTA)
        golden = pixels[:GOLDEN_PHOTOS]
        write_golden(folder, golden, {one: sessions[one].run(golden).logits for one in sessions})
        found = judge.calibrate(sessions, cross_fitted) if calibrated else judge.evaluate(sessions)
        judged |= {one: variant.as_made(graphs.made.get(one)) for one, variant in found.items()}
        write_judged(folder, facts, groups, judged)
    return Exported(written[0], proof, unmerged(merged))


def _check_classes(checkpoint: Path, facts: CheckpointMetadata, dataset: Dataset) -> None:
    classes = tuple(map(canonical, facts.classes))
    if (classes, facts.counts) != (dataset.classes, tuple(dataset.counts)):
        raise UserError(
            f"{checkpoint} was trained on other photos ({facts.data}, {len(facts.classes)} "
            f"classes, {sum(facts.counts)} photos) than {dataset.name} "
            "holds: name those it was trained on"
        )


def _as_trained(checkpoint: Path, facts: CheckpointMetadata) -> Recipe:
    """The recipe in the numbers that it was trained in.

    Raises `UserError` where a file that it names says something else by now.
    """
    known = facts.key and facts.recipe.head.initial.contents()
    if known and facts.key != run_key(facts.recipe, facts.data_sha256, facts.backbone_sha256):
        raise UserError(
            f"{checkpoint}: the file that its head started from has changed since, and calibration "
            "trains from it again: put the old one back, train again, or add a val split"
        )
    return facts.recipe.model_copy(update={"precision": facts.record.precision or "auto"})


def _centre_views(split: Split, facts: CheckpointMetadata) -> Pixels:
    """uint8 [n, S, S, 3], of photos spread over all classes."""
    spread = np.linspace(0, len(split) - 1, min(PROOF_PHOTOS, len(split)), dtype=int).tolist()
    photos = evaluation_photos(split, facts.preprocessing)
    ((rows, _),) = photos.batches([(photo, 0) for photo in spread], len(spread))
    pixels: Pixels = rows.numpy()[:: photos.rows]
    return pixels


@torch.no_grad()
def _prove(
    model: Model, merged: Model, pixels: Pixels, served: Floats, nodes: int, graphs: Graphs
) -> Proof:
    trained, plain = (_logits_of(one, pixels) for one in (model, merged))
    with tempfile.TemporaryDirectory() as folder:
        unmerged_nodes = graphs.write_plain(model, Path(folder) / MODEL)
    proof = Proof(
        photos=len(pixels),
        merged=float(np.abs(trained - plain).max()),
        runtime=float(np.abs(served - plain).max()),
        nodes=nodes,
        unmerged_nodes=unmerged_nodes,
    )
    for name, error in (("merging", proof.merged), ("ONNX Runtime", proof.runtime)):
        if not error <= TOLERANCE:
            raise UserError(
                f"no bundle was written: {name} changes a logit by {error:.2g}, more than the "
                f"{TOLERANCE:g} allowed, on {len(pixels)} training photos"
            )
    return proof


def _logits_of(model: Model, pixels: Pixels) -> Floats:
    return in_batches(lambda rows: model(torch.from_numpy(rows))[0].numpy(), pixels)


def write_judged(
    folder: Path,
    facts: CheckpointMetadata,
    groups: Sequence[Group],
    judged: Mapping[Precision, CalibratedVariant],
) -> None:
    """The report, and the scores that prediction sets are made of."""
    write_report(folder / REPORT, facts, groups, judged)
    for precision, one in judged.items():
        if one.fitted:
            write_scores(folder, precision, one.fitted.scores)


def accuracies(
    judged: Mapping[Precision, CalibratedVariant], classes: int
) -> list[Accuracy | None]:
    """Each class's with fp32; None without a photo."""
    check = judged[Precision.FP32].check
    if check is None:
        return [None] * classes
    return class_accuracies(check.view_logits, check.labels, classes)


def _prior_name(priors: Sequence[float], counts: Sequence[int]) -> PriorName:
    if np.allclose(priors, 1 / len(priors)):
        return "uniform"
    return "train" if np.allclose(priors, np.divide(counts, sum(counts))) else "other"


def _manifest(
    facts: CheckpointMetadata,
    groups: Sequence[Group],
    priors: Sequence[float],
    judged: Mapping[Precision, CalibratedVariant],
    content_version: str,
    files: dict[str, FileRecord],
) -> Manifest:
    recipe = facts.recipe
    return Manifest(
        name=facts.data,
        version=content_version,
        taillift_version=version("taillift"),
        backbone=BackboneInfo(
            architecture=facts.architecture,
            pretrained=facts.pretrained,
            sha256=facts.backbone_sha256,
        ),
        method=Method(
            name=recipe.name,
            tuners=tuple(one.name for one in recipe.tuners) if recipe.epochs else (),
            rank=_rank(recipe),
            trainable_parameters=facts.trainable_parameters,
            loss=recipe.loss.name if recipe.epochs else "none",
            prior=_prior_name(priors, facts.counts),
        ),
        classes=classes_from(
            facts.classes,
            facts.prompts,
            facts.counts,
            THRESHOLDS,
            accuracies(judged, len(facts.classes)),
            priors,
            groups,
        ),
        thresholds=THRESHOLDS,
        preprocessing=facts.preprocessing,
        variants={precision: one.variant for precision, one in judged.items()},
        files=files,
    )


def _rank(recipe: Recipe) -> int | None:
    ranks = [one.rank for one in recipe.tuners if isinstance(one, AdaptFormer | Adapter | LoRA)]
    return ranks[0] if ranks and recipe.epochs else None
