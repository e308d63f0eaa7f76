"""The graphs of a bundle: fp32 and the variants that are made from it."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import torch

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.lift.model import Model
from taillift.models.lift.onnx_export import write_graph
from taillift.training.export.fp16 import halve
from taillift.training.export.int8 import (
    FewShotPhotos,
    QuantisationCandidate,
    quantise,
    quantise_like,
)


class Graphs:
    """A writer of bundles' graphs, which makes the variants of every model in the same way.

    `made` says for each variant of the first model how it was made and how near it is to fp32.
    """

    def __init__(
        self,
        pixels: Pixels,
        variants: Sequence[Precision] = (),
        few: FewShotPhotos | None = None,
    ) -> None:
        """Take training views uint8 [N, S, S, 3] to calibrate the variants on.

        `few` are held-out photos by which int8's form is chosen.
        """
        self.few = few
        self.pixels = pixels
        self.variants = variants
        self.int8: QuantisationCandidate | None = None
        self.made: dict[Precision, str] = {}

    def write(self, merged: Model, folder: Path) -> dict[Precision, Path]:
        """Write a model's graphs and return their paths, fp32 first.

        How int8 is made is chosen for the first model; later ones must have the same shape. Raises
        `UserError` if a variant cannot be made.
        """
        fp32 = folder / FILES[Precision.FP32]
        self.write_plain(merged, fp32)
        paths = {Precision.FP32: fp32}
        for precision in self.variants:
            target = paths[precision] = folder / FILES[precision]
            if precision is Precision.FP16:
                near = halve(fp32, target, self.pixels)
                self.made.setdefault(precision, str(near))
            elif self.int8:
                quantise_like(fp32, target, self.pixels, self.int8)
            else:
                self.int8 = quantise(fp32, target, self.pixels, self.few).kept
                self.made[precision] = str(self.int8)
        return paths

    def write_plain(self, model: Model, path: Path) -> None:
        """Write any model's fp32 graph."""
        example = torch.zeros(2, *self.pixels.shape[1:], dtype=torch.uint8)
        write_graph(model, example, path, ["pixels"], ["logits", "features"])


def node_count(path: Path) -> int:
    """Return the number of nodes of a graph."""
    return len(onnx.load(str(path)).graph.node)
