"""A bundle made again with the same graphs, calibrated on other photos."""

import shutil
from dataclasses import replace as changed
from importlib.metadata import version
from pathlib import Path

from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.folder import DELTA, GOLDEN, new_bundle, read_manifest, verify_files
from taillift.models.bundle.manifest import FileRecord, Manifest
from taillift.models.bundle.posterior import log_shares
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.errors import UserError
from taillift.models.names import canonical
from taillift.training.calibration.variants import CalibratedVariant, VariantCalibrator
from taillift.training.data.dataset import Dataset
from taillift.training.data.split import Split
from taillift.training.export.export import accuracies, write_judged
from taillift.training.fit.checkpoint import read_metadata


def recalibrate(bundle: Path, dataset: Dataset, target: Path, replace: bool = False) -> Manifest:
    """Make a bundle at `target` of what `bundle` computes, fitted on the val photos of `dataset`.

    It is evaluated on the test photos, where there are any. Classes are matched by label; some of
    the bundle's may be missing. Raises `UserError` where `bundle` is not sound, where there are no
    val photos, or a class that the bundle does not know.
    """
    old = read_manifest(bundle)
    verify_files(bundle, old)
    known = _as_in(old, bundle, dataset)
    if known.val is None:
        raise UserError(
            f"{dataset.name} has no val/ photos to calibrate on: add some, or run `taillift "
            "export`, which calibrates without them by cross-fitting"
        )
    facts = read_metadata(bundle / DELTA)
    groups = [one.group for one in old.classes]
    log_prior = log_shares([one.prior for one in old.classes])
    judge = VariantCalibrator(known, old.preprocessing, groups, log_prior)
    judged: dict[Precision, CalibratedVariant] = {}

    def manifest(content_version: str, files: dict[str, FileRecord]) -> Manifest:
        found = zip(old.classes, accuracies(judged, len(groups)), strict=True)
        return old.model_copy(
            update={
                "version": content_version,
                "taillift_version": version("taillift"),
                "classes": tuple(
                    one.model_copy(update={"accuracy": accuracy}) for one, accuracy in found
                ),
                "variants": {precision: one.variant for precision, one in judged.items()},
                "files": files,
            }
        )

    with new_bundle(target, manifest, replace) as folder:
        for name in (*(FILES[one] for one in old.variants), DELTA, GOLDEN):
            shutil.copyfile(bundle / name, folder / name)
        sessions = {one: Classifier.open(bundle, precision=one).session for one in old.variants}
        found = judge.calibrate(sessions)
        judged |= {one: variant.as_made(old.variants[one].made) for one, variant in found.items()}
        write_judged(folder, facts, groups, judged)
    return read_manifest(target)


def _as_in(manifest: Manifest, bundle: Path, dataset: Dataset) -> Dataset:
    """The same photos with the bundle's classes, in its order."""
    places = {canonical(label): place for place, label in enumerate(manifest.labels)}
    if unknown := [label for label in dataset.classes if label not in places]:
        others = f" (nor {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"{bundle} has no class {unknown[0]!r}{others}, and {dataset.name} has: rename or "
            "remove it, or train with it"
        )
    order = [places[label] for label in dataset.classes]

    def relabelled(split: Split | None) -> Split | None:
        return split and split.relabelled(order)

    return changed(
        dataset,
        classes=tuple(manifest.labels),
        names=tuple(manifest.labels),
        train=dataset.train.relabelled(order),
        val=relabelled(dataset.val),
        test=relabelled(dataset.test),
    )
