"""The files that a merged model is run from."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import torch

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.lift.model import Model
from taillift.models.lift.onnx_export import write_graph
from taillift.training.export.fp16 import halve
from taillift.training.export.int8 import QuantisationCandidate, quantise, quantise_like


class Graphs:
    """Writes a bundle's graphs: fp32, and the `variants` of it."""

    def __init__(self, pixels: Pixels, variants: Sequence[Precision] = ()) -> None:
        """`pixels` uint8 [N, S, S, 3] are training views to make the variants by.

        `made` says of each variant of the first model how it was made and how near it is to fp32.
        """
        self._pixels = pixels
        self._variants = variants
        self._int8: QuantisationCandidate | None = None
        self.made: dict[Precision, str] = {}

    def write(self, merged: Model, folder: Path) -> dict[Precision, Path]:
        """Where each precision's graph is, fp32 first.

        The first model tells in which way int8 is made; others, of the same shape, are made alike.
        Raises `UserError` where a variant cannot be made.
        """
        fp32 = folder / FILES[Precision.FP32]
        self.write_plain(merged, fp32)
        paths = {Precision.FP32: fp32}
        for precision in self._variants:
            target = paths[precision] = folder / FILES[precision]
            if precision is Precision.FP16:
                near = halve(fp32, target, self._pixels)
                self.made.setdefault(precision, str(near))
            elif self._int8:
                quantise_like(fp32, target, self._pixels, self._int8)
            else:
                self._int8 = quantise(fp32, target, self._pixels).kept
                self.made[precision] = str(self._int8)
        return paths

    def write_plain(self, model: Model, path: Path) -> int:
        """One fp32 graph of any model; returns the number of nodes."""
        side = self._pixels.shape[1]
        example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
        return write_graph(model, example, path, ["pixels"], ["logits", "features"])


def node_count(path: Path) -> int:
    return len(onnx.load(str(path)).graph.node)
