"""The files that a merged model is run from."""

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from models.bundle.precision import FILES, Precision
from models.lift.graph import write_graph
from models.lift.model import Model


@dataclass(frozen=True)
class Graphs:
    """Writes a bundle's graph for images of `size` S pixels, and smaller variants of it."""

    size: int

    def write(self, merged: Model, folder: Path) -> dict[Precision, Path]:
        """Where each precision's graph is, fp32 first."""
        paths = {Precision.FP32: folder / FILES[Precision.FP32]}
        self.write_plain(merged, paths[Precision.FP32])
        return paths

    def write_plain(self, model: Model, path: Path) -> int:
        """One fp32 graph of any model; returns the number of nodes."""
        example = torch.zeros(2, self.size, self.size, 3, dtype=torch.uint8)
        return write_graph(model, example, path, ["pixels"], ["logits", "features"])


def node_count(path: Path) -> int:
    return len(onnx.load(str(path)).graph.node)
