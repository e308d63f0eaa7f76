"""A bundle, opened: image bytes in, probabilities out."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from models import UserError
from models.bundle import folder as layout
from models.bundle.chunks import chunks
from models.bundle.device import Device
from models.bundle.ensemble import Ensemble, Floats, combine
from models.bundle.images import Pixels, load, views
from models.bundle.manifest import Manifest
from models.bundle.posterior import Doubles, Prior, log_prior, posterior
from models.bundle.session import CPU, Session, first_line

BATCH_VIEWS: Final = 40


class Classifier:
    """What `taillift classify`, the evaluation and the service share.

    `logits` is the costly part and `probabilities` the cheap one; between them a caller may do
    its own batching over `session`.
    """

    def __init__(self, manifest: Manifest, session: Session) -> None:
        self.manifest = manifest
        self.session = session

    @classmethod
    def open(cls, bundle: Path, device: Device = CPU) -> "Classifier":
        """Raises `UserError` where hashes, provider, graph or logits are not what they must be."""
        manifest = layout.read_manifest(bundle)
        layout.verify_files(bundle, manifest)
        session = Session(bundle / layout.MODEL, device, manifest.preprocessing.size)
        _check_golden(bundle, manifest, session)
        return cls(manifest, session)

    def canvas(self, data: bytes) -> Pixels:
        """uint8 [height, width, 3]; raises `models.bundle.images.ImageError`."""
        return load(data, self.manifest.preprocessing)

    def logits(self, canvases: Iterable[Pixels], ensemble: Ensemble = Ensemble.FULL) -> Floats:
        """float32 [N, C], over batches of at most `BATCH_VIEWS` views (at least one image)."""
        size, count = self.manifest.preprocessing.size, ensemble.views
        parts = [
            combine(self.session.run(np.concatenate(rows)).logits, count)
            for rows in chunks(
                (views(canvas, size, count) for canvas in canvases), max(1, BATCH_VIEWS // count)
            )
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.manifest.classes)), "f4")

    def temperature(self, ensemble: Ensemble) -> float:
        """1 where the bundle is not calibrated."""
        calibration = self.manifest.calibration
        if calibration is None:
            return 1.0
        return calibration.full if ensemble is Ensemble.FULL else calibration.single

    def probabilities(
        self, logits: Floats, ensemble: Ensemble, prior: Prior = Prior.UNIFORM
    ) -> Doubles:
        """[N, C] of combined logits [N, C]."""
        return posterior(logits, log_prior(prior, self.manifest.counts), self.temperature(ensemble))


def _check_golden(bundle: Path, manifest: Manifest, session: Session) -> None:
    """The graph, the manifest and the golden views must be of one model, computed alike."""
    pixels, expected = layout.read_golden(bundle)
    side = manifest.preprocessing.size
    if pixels.shape[1:] != (side, side, 3):
        raise UserError(
            f"{bundle / layout.MANIFEST} says views of {side} x {side} x 3 and {layout.GOLDEN} has "
            f"{' x '.join(map(str, pixels.shape[1:]))}: export the bundle again"
        )
    try:
        logits = session.run(pixels).logits
    except Exception as error:  # ONNX Runtime's errors have no common base.
        raise UserError(
            f"{bundle / layout.MODEL} fails on the views of {layout.GOLDEN} "
            f"({first_line(error)}): try another provider, or export the bundle again"
        ) from error
    if logits.shape != expected.shape:
        raise UserError(
            f"{bundle / layout.MODEL} gives logits {logits.shape} and {layout.GOLDEN} has "
            f"{expected.shape}: export the bundle again"
        )
    if logits.shape[1] != len(manifest.classes):
        raise UserError(
            f"{bundle / layout.MANIFEST} lists {len(manifest.classes)} classes and "
            f"{layout.MODEL} gives {logits.shape[1]} logits: export the bundle again"
        )
    difference = float(np.abs(logits - expected).max())
    if not difference <= session.device.golden_tolerance:
        raise UserError(
            f"{bundle} gives other logits here than where it was made (they differ by "
            f"{difference:.3g}): the device or its libraries compute wrongly; try another provider"
        )


def top(probabilities: Doubles, k: int) -> Sequence[int]:
    """Indices of the `k` most probable classes of [C], the surest first; ties in class order."""
    order = np.argsort(-probabilities, kind="stable")[:k]
    return [int(index) for index in order]
