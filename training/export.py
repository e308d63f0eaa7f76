"""From a checkpoint to a bundle: merge, write the graph, prove it, measure it."""

import csv
import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from models import UserError
from models.bundle.ensemble import Floats
from models.bundle.folder import DELTA, MODEL, REPORT, new_bundle, write_golden
from models.bundle.images import Pixels
from models.bundle.manifest import (
    Accuracy,
    Backbone,
    Evaluation,
    FileRecord,
    Manifest,
    Method,
    Thresholds,
    classes_from,
)
from models.bundle.session import Session
from models.lift.graph import write_graph
from models.lift.model import Model, merge
from models.lift.tuners import Adapter, AdaptFormer, LoRA
from models.lift.tuners.merging import unmerged
from training.checkpoint import Facts, restore
from training.dataset import Dataset, Split
from training.evaluation import class_accuracies, confusion, evaluate
from training.figures import draw_class_accuracies
from training.inputs import evaluation_photos, first_copies
from training.recipe import Recipe

TOLERANCE: Final = 1e-4
PROOF_PHOTOS: Final = 32
GOLDEN_PHOTOS: Final = 4
BATCH: Final = 8


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


@dataclass(frozen=True)
class Measured:
    """A graph's accuracy on held-out photos, through the code that serves."""

    evaluation: Evaluation
    accuracies: list[Accuracy | None]
    confusion: npt.NDArray[np.int64]


def export(
    checkpoint: Path,
    dataset: Dataset,
    target: Path,
    backbone: str | None = None,
    replace: bool = False,
) -> Exported:
    """Make a bundle at `target`; on any failure nothing is left there.

    Raises `UserError` where checkpoint and dataset do not belong together, and where the logits of
    the merged model or of ONNX Runtime are off by more than `TOLERANCE` on real images.
    """
    model, facts = restore(checkpoint, backbone)
    _check_classes(checkpoint, facts, dataset)
    model.eval().requires_grad_(False)
    merged = merge(model)
    pixels = _centre_views(dataset.train, facts)
    thresholds = Thresholds()
    measured: Measured | None = None
    written: list[Manifest] = []

    def manifest(content_version: str, files: dict[str, FileRecord]) -> Manifest:
        written.append(_manifest(facts, thresholds, measured, content_version, files))
        return written[0]

    with new_bundle(target, manifest, replace) as folder:
        nodes = _write(merged, facts, folder / MODEL)
        session = Session(folder / MODEL)
        logits = session.run(pixels).logits
        proof = _prove(model, merged, pixels, logits, nodes, facts)
        shutil.copyfile(checkpoint, folder / DELTA)
        write_golden(folder, pixels[:GOLDEN_PHOTOS], logits[:GOLDEN_PHOTOS])
        if dataset.held_out is not None:
            measured = measure(session, facts, dataset, thresholds)
            write_report(folder / REPORT, facts, measured, thresholds)
    return Exported(written[0], proof, unmerged(merged))


def measure(session: Session, facts: Facts, dataset: Dataset, thresholds: Thresholds) -> Measured:
    """Run the five views of every held-out photo through the session."""
    assert dataset.held_out is not None
    name, split = dataset.held_out
    photos = evaluation_photos(split, facts.preprocessing)
    parts = [
        session.run(rows.numpy()).logits
        for rows, _ in photos.batches(first_copies(len(split)), BATCH)
    ]
    logits = np.concatenate(parts).reshape(len(split), photos.rows, -1)
    labels = np.asarray(split.labels)
    groups = thresholds.groups(facts.counts)
    return Measured(
        evaluate(f"{facts.data} {name}", logits, labels, groups),
        class_accuracies(logits, labels, len(groups)),
        confusion(logits, labels, len(groups)),
    )


def write_report(folder: Path, facts: Facts, measured: Measured, thresholds: Thresholds) -> None:
    """metrics.json, what was taken for what with five views, and a figure of the classes."""
    folder.mkdir()
    scores = {
        "single": measured.evaluation.single.model_dump(),
        "full": measured.evaluation.full.model_dump(),
    }
    (folder / "metrics.json").write_text(json.dumps(scores, indent=2) + "\n", "utf-8")
    with (folder / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true", "predicted", "photos"])
        for true, predicted in np.argwhere(measured.confusion).tolist():
            count = int(measured.confusion[true, predicted])
            writer.writerow([facts.classes[true], facts.classes[predicted], count])
    draw_class_accuracies(
        folder / "classes.png",
        facts.classes,
        facts.counts,
        thresholds.groups(facts.counts),
        measured.accuracies,
    )


def _check_classes(checkpoint: Path, facts: Facts, dataset: Dataset) -> None:
    if (facts.classes, facts.counts) != (dataset.classes, tuple(dataset.counts)):
        raise UserError(
            f"{checkpoint} was trained on other photos ({facts.data}, {len(facts.classes)} "
            f"classes, {sum(facts.counts)} photos) than {dataset.name} "
            "holds: name those it was trained on"
        )


def _centre_views(split: Split, facts: Facts) -> Pixels:
    """uint8 [n, S, S, 3], of photos spread over all classes."""
    spread = np.linspace(0, len(split) - 1, min(PROOF_PHOTOS, len(split)), dtype=int).tolist()
    photos = evaluation_photos(split, facts.preprocessing)
    ((rows, _),) = photos.batches([(photo, 0) for photo in spread], len(spread))
    pixels: Pixels = rows.numpy()[:: photos.rows]
    return pixels


def _write(model: Model, facts: Facts, path: Path) -> int:
    size = facts.preprocessing.size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    return write_graph(model, example, path, ["pixels"], ["logits", "features"])


@torch.no_grad()
def _prove(
    model: Model, merged: Model, pixels: Pixels, served: Floats, nodes: int, facts: Facts
) -> Proof:
    rows = torch.from_numpy(pixels)
    trained, plain = (one(rows)[0].numpy() for one in (model, merged))
    with tempfile.TemporaryDirectory() as folder:
        unmerged_nodes = _write(model, facts, Path(folder) / MODEL)
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


def _manifest(
    facts: Facts,
    thresholds: Thresholds,
    measured: Measured | None,
    content_version: str,
    files: dict[str, FileRecord],
) -> Manifest:
    recipe = facts.recipe
    accuracies = measured.accuracies if measured else [None] * len(facts.classes)
    return Manifest(
        name=facts.data,
        version=content_version,
        taillift_version=version("taillift"),
        backbone=Backbone(
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
        ),
        classes=classes_from(facts.classes, facts.prompts, facts.counts, thresholds, accuracies),
        thresholds=thresholds,
        preprocessing=facts.preprocessing,
        evaluation=measured.evaluation if measured else None,
        files=files,
    )


def _rank(recipe: Recipe) -> int | None:
    ranks = [one.rank for one in recipe.tuners if isinstance(one, AdaptFormer | Adapter | LoRA)]
    return ranks[0] if ranks and recipe.epochs else None
