"""The files that a merged model is run from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from models.bundle.images import Pixels
from models.bundle.precision import FILES, Precision
from models.lift.graph import write_graph
from models.lift.model import Model
from training.variants.half import halve
from training.variants.quantise import Candidate, quantise, quantise_like


@dataclass(frozen=True)
class Graphs:
    """Writes a bundle's graphs: fp32, and the `variants` of it.

    `pixels` uint8 [N, S, S, 3] are training views to make the variants by.
    """

    pixels: Pixels
    variants: Sequence[Precision] = ()

    @property
    def size(self) -> int:
        """S, in pixels."""
        return int(self.pixels.shape[1])

    def write(self, merged: Model, folder: Path) -> tuple[dict[Precision, Path], Candidate | None]:
        """Where each precision's graph is, fp32 first, and how int8 was made.

        Raises `UserError` where a variant cannot be made.
        """
        paths = self._write_fp32(merged, folder)
        kept = None
        for precision in self.variants:
            target = paths[precision] = folder / FILES[precision]
            if precision is Precision.INT8:
                kept = quantise(paths[Precision.FP32], target, self.pixels).kept
            else:
                halve(paths[Precision.FP32], target, self.pixels)
        return paths, kept

    def write_like(
        self, merged: Model, folder: Path, kept: Candidate | None
    ) -> dict[Precision, Path]:
        """The same of another model of the same kind, int8 as it was made before."""
        paths = self._write_fp32(merged, folder)
        for precision in self.variants:
            target = paths[precision] = folder / FILES[precision]
            if kept and precision is Precision.INT8:
                quantise_like(paths[Precision.FP32], target, self.pixels, kept)
            else:
                halve(paths[Precision.FP32], target, self.pixels)
        return paths

    def write_plain(self, model: Model, path: Path) -> int:
        """One fp32 graph of any model; returns the number of nodes."""
        example = torch.zeros(2, self.size, self.size, 3, dtype=torch.uint8)
        return write_graph(model, example, path, ["pixels"], ["logits", "features"])

    def _write_fp32(self, merged: Model, folder: Path) -> dict[Precision, Path]:
        path = folder / FILES[Precision.FP32]
        self.write_plain(merged, path)
        return {Precision.FP32: path}


def node_count(path: Path) -> int:
    return len(onnx.load(str(path)).graph.node)
