"""Making a bundle with the graphs of another one, calibrated on other photos."""

import shutil
from importlib.metadata import version
from pathlib import Path

from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.feature_statistics import STATISTICS
from taillift.models.bundle.folder import DELTA, GOLDEN, new_bundle, read_manifest, verify_files
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.posterior import log_shares
from taillift.models.bundle.schema import FILES
from taillift.models.errors import UserError
from taillift.training.calibration.variants import VariantCalibrator
from taillift.training.data.dataset import Dataset, in_order_of
from taillift.training.export.export import accuracies, write_measurements
from taillift.training.fit.checkpoint import read_metadata, without_forgotten


def recalibrate(
    bundle: Path,
    dataset: Dataset,
    target: Path,
    replace: bool = False,
    photos_shown: bool = True,
) -> Manifest:
    """Make a bundle at `target` with the graphs of `bundle`, calibrated on `dataset`'s val photos.

    It is evaluated on the test photos if there are any. Classes are matched by label; `dataset` may
    lack some of the bundle's, and have some that were taken from it. The report shows held-out
    photos if `photos_shown`. Raises `UserError` if `bundle` is damaged, if there are no val photos,
    or if `dataset` has a class that the bundle never knew.
    """
    old = read_manifest(bundle)
    if DELTA not in old.files:
        raise UserError(f"{bundle} has no {DELTA} in its list of files: export it again")
    verify_files(bundle, old)
    metadata = read_metadata(bundle / DELTA)
    known = without_forgotten(bundle, metadata, dataset)
    dataset = in_order_of(known, old.labels, str(bundle))
    if dataset.val is None:
        raise UserError(
            f"{dataset.name} has no val/ photos to calibrate on: add some, or run `taillift "
            "export`, which calibrates without them by cross-fitting"
        )
    groups = [info.group for info in old.classes]
    log_prior = log_shares([info.prior for info in old.classes])
    calibrator = VariantCalibrator(dataset, old.preprocessing, groups, log_prior)
    with new_bundle(target, replace) as new:
        kept = [*(FILES[precision] for precision in old.variants), DELTA, GOLDEN]
        for name in [*kept, *([STATISTICS] if STATISTICS in old.files else [])]:
            shutil.copyfile(bundle / name, new.path / name)
        sessions = {
            precision: Classifier.open(bundle, precision=precision).session
            for precision in old.variants
        }
        variants = {
            precision: variant.as_made(old.variants[precision].made)
            for precision, variant in calibrator.calibrate(sessions).items()
        }
        measured = zip(old.classes, accuracies(variants, len(groups)), strict=True)
        changes = {
            "version": "",
            "taillift_version": version("taillift"),
            "classes": tuple(
                info.model_copy(update={"accuracy": accuracy}) for info, accuracy in measured
            ),
            "variants": {precision: variant.variant for precision, variant in variants.items()},
        }
        draft = old.model_copy(update=changes)
        write_measurements(new.path, draft, metadata, dataset, variants, photos_shown)
        return new.finish(lambda files: draft.model_copy(update={"files": files}))
