"""A bundle, opened: image bytes in, probabilities out."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle import folder as layout
from taillift.models.bundle.arrays import Counts, Doubles, Pixels, chunks
from taillift.models.bundle.device import Device
from taillift.models.bundle.ensemble import Ensemble, MeanLogits, Stages, run_stages
from taillift.models.bundle.images import load, views
from taillift.models.bundle.predictor import Predictor
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.bundle.session import CPU, Session
from taillift.models.bundle.text import first_line
from taillift.models.errors import UserError

BATCH_VIEWS: Final = 40


class Classifier:
    """What `taillift classify`, the evaluation and the service share.

    `mean_logits` is the costly part; `predictor` makes answers of it. Between them a caller may do
    its own batching over `session`.
    """

    def __init__(self, session: Session, predictor: Predictor) -> None:
        self.session = session
        self.predictor = predictor
        self.manifest = predictor.manifest

    @classmethod
    def open(
        cls, bundle: Path, device: Device = CPU, precision: Precision = Precision.FP32
    ) -> "Classifier":
        """Raises `UserError` where hashes, provider, graph or logits are not what they must be."""
        manifest = layout.read_manifest(bundle)
        layout.verify_files(bundle, manifest)
        predictor = Predictor.open(bundle, manifest, precision)
        session = Session(bundle / FILES[precision], device, manifest.preprocessing.size)
        _check_golden(bundle, predictor, session)
        return cls(session, predictor)

    def canvas(self, data: bytes) -> Pixels:
        """uint8 [height, width, 3]; raises `models.bundle.images.ImageError`."""
        return load(data, self.manifest.preprocessing)

    def mean_logits(
        self, canvases: Iterable[Pixels], ensemble: Ensemble = Ensemble.FULL
    ) -> MeanLogits:
        """In batches of at most `BATCH_VIEWS` views.

        Raises `UserError` where `ensemble` is adaptive and the bundle has no exit rule.
        """
        rule = self.predictor.exit_rule(ensemble)
        size, count = self.manifest.preprocessing.size, ensemble.views
        every = (views(canvas, size, count) for canvas in canvases)
        parts = [
            self._combine(np.stack(rows), rule) for rows in chunks(every, BATCH_VIEWS // count)
        ]
        if not parts:
            return MeanLogits(np.empty((0, len(self.manifest.classes)), "f4"), np.empty(0, "i8"))
        logits, taken = zip(*parts, strict=True)
        return MeanLogits(np.concatenate(logits), np.concatenate(taken))

    def _combine(self, pixels: Pixels, rule: Stages | None) -> MeanLogits:
        """Of views [N, V, S, S, 3], stage by stage."""
        count, most = pixels.shape[:2]
        seen = np.empty((count, most, len(self.manifest.classes)), np.float32)

        def fill(rows: Counts, first: int, last: int) -> None:
            logits = self.session.run(np.concatenate(pixels[rows, first:last])).logits
            plain = self.predictor.without_prior(logits)
            seen[rows, first:last] = plain.reshape(len(rows), last - first, -1)

        return run_stages(rule or Stages(stages=(most,), leads=()), seen, fill)


def _check_golden(bundle: Path, predictor: Predictor, session: Session) -> None:
    """The graph, the manifest and the golden views must be of one model, computed alike."""
    manifest, file = predictor.manifest, FILES[predictor.precision]
    pixels, expected = layout.read_golden(bundle, predictor.precision)
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
            f"{bundle / file} fails on the views of {layout.GOLDEN} "
            f"({first_line(error)}): try another provider, or export the bundle again"
        ) from error
    if logits.shape != expected.shape:
        raise UserError(
            f"{bundle / file} gives logits {logits.shape} and {layout.GOLDEN} has "
            f"{expected.shape}: export the bundle again"
        )
    if logits.shape[1] != len(manifest.classes):
        raise UserError(
            f"{bundle / layout.MANIFEST} lists {len(manifest.classes)} classes and "
            f"{file} gives {logits.shape[1]} logits: export the bundle again"
        )
    difference = float(np.abs(logits - expected).max())
    if not difference <= session.device.golden_tolerance(predictor.precision):
        raise UserError(
            f"{bundle} gives other logits here than where it was made (they differ by "
            f"{difference:.3g}): the device or its libraries compute wrongly; try another provider"
        )


def top(probabilities: Doubles, k: int) -> Sequence[int]:
    """Indices of the `k` most probable classes of [C], the surest first; ties in class order."""
    order = np.argsort(-probabilities, kind="stable")[:k]
    return [int(index) for index in order]
