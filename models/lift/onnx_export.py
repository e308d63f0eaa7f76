"""Exporting torch modules as ONNX files."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import onnx
import torch
from torch import Tensor, nn

from taillift.models.lift.model import check_graph_size

# Without the operators Attention and Gelu of opset 23, which OpenVINO and older versions of ONNX
# Runtime and Triton do not know; ONNX Runtime is as fast without them. The format of the file
# (`ir_version`) is one that ONNX Runtime 1.18 reads.
OPSET: Final = 18


def write_graph(
    module: nn.Module, example: Tensor, path: Path, inputs: Sequence[str], outputs: Sequence[str]
) -> int:
    """Export `module` to one file with a dynamic batch size, and return the number of its nodes.

    `example` is a batch of at least two, because the exporter treats a size of one as a constant.
    Raises `UserError` if the weights do not fit in one file.
    """
    check_graph_size(module)
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=False)
    return len(onnx.load(str(path)).graph.node)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which warns of its own deprecations and prints its progress."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
