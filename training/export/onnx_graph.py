"""ONNX graphs that variants are made from, and how near a variant is to its original."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto

from taillift.models.bundle.arrays import Floats, Pixels, chunks
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError, first_line

# Pixels, or what stages of a tower have made of them.
Rows = TypeVar("Rows", Pixels, Floats)
PRODUCTS: Final = ("Conv", "MatMul", "Gemm")
# Views that are run at once: any machine has the memory for them.
BATCH: Final = 8


def folded(path: Path) -> ModelProto:
    """Return the graph with everything computed that depends on constants alone.

    The exporter leaves slices and transposes of weights in the graph, and tools see no constant
    behind them. Raises `UserError` if ONNX Runtime cannot load the file as a graph.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / path.name
        options.optimized_model_filepath = str(written)
        try:
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            model = onnx.load(str(written))
        except Exception as error:  # ONNX Runtime's errors have no common base.
            raise UserError(
                f"no variant can be made of {path}: {first_line(error)}; export the bundle again"
            ) from error
    used = {node.domain for node in model.graph.node}
    imports = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    # Some shapes are still those from before the folding.
    del model.graph.value_info[:]
    return model


def products(model: ModelProto) -> list[NodeProto]:
    """Return the convolutions and matrix products with constant weights, without the head's."""
    constants = {constant.name for constant in model.graph.initializer}
    outputs = {output.name for output in model.graph.output}
    return [
        node
        for node in model.graph.node
        if node.op_type in PRODUCTS and node.input[1] in constants and node.output[0] not in outputs
    ]


def downstream(nodes: Iterable[NodeProto], tensors: Iterable[str]) -> set[str]:
    """Return the names of all nodes that read `tensors` or anything computed from them.

    `nodes` are in the graph's order.
    """
    reached, names = set(tensors), set()
    for node in nodes:
        if not reached.isdisjoint(node.input):
            reached.update(node.output)
            names.add(node.name)
    return names


@dataclass(frozen=True)
class Fidelity:
    """Nearness of a variant's logits to fp32's.

    `error` is the root mean square of the logits' differences, as a share of their spread.
    `agreement` is the share of views whose first class stays, averaged over the classes that fp32
    gives them, so that a rare class counts as much as a common one.
    """

    error: float
    agreement: float

    def __str__(self) -> str:
        return (
            f"logits are off by {100 * self.error:.2g} % of their spread, and "
            f"{100 * self.agreement:.1f} % of training views keep their first class"
        )


def fidelity(logits: Floats, expected: Floats) -> Fidelity:
    """Compare logits [N, C] with those of fp32; a view's spread is over its classes."""
    spread = expected - expected.mean(axis=1, keepdims=True)
    classes = expected.argmax(1)
    same = logits.argmax(1) == classes
    shares = [same[classes == index].mean() for index in np.unique(classes)]
    return Fidelity(
        error=float(np.sqrt(np.square(logits - expected).mean() / np.square(spread).mean())),
        agreement=float(np.mean(shares)),
    )


def logits_of(session: Session, pixels: Pixels) -> Floats:
    """Return a graph's logits float32 [N, C] of views uint8 [N, S, S, 3]."""
    return in_batches(lambda rows: session.run(rows).logits, pixels)


def in_batches(run: Callable[[Rows], Floats], rows: Rows) -> Floats:
    """Return what `run` gives for all rows [N, ...], computed `BATCH` rows at a time."""
    batches = chunks(range(len(rows)), BATCH)
    return np.concatenate([run(rows[list(indices)]) for indices in batches])
