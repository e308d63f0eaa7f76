"""ONNX graphs as they are read before they are changed."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto

from taillift.models.bundle.arrays import Floats, Pixels, chunks
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError, first_line

PRODUCTS: Final = ("Conv", "MatMul", "Gemm")


def folded(path: Path) -> ModelProto:
    """The graph with everything computed that depends on constants alone.

    The exporter leaves slices and transposes of weights in it, behind which no tool sees a
    constant. Raises `UserError` where the file is no ONNX graph that ONNX Runtime loads.
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
    imports = [one for one in model.opset_import if one.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    # Some shapes are still those from before the folding.
    del model.graph.value_info[:]
    return model


def products(model: ModelProto) -> list[NodeProto]:
    """Convolutions and matrix products with constant weights, but for the head, in order."""
    constants = {one.name for one in model.graph.initializer}
    outputs = {one.name for one in model.graph.output}
    return [
        node
        for node in model.graph.node
        if node.op_type in PRODUCTS and node.input[1] in constants and node.output[0] not in outputs
    ]


def behind(nodes: Iterable[NodeProto], tensors: Iterable[str]) -> set[str]:
    """The names of all nodes, of `nodes` in order, that read `tensors` or what comes of them."""
    reached, names = set(tensors), set()
    for node in nodes:
        if not reached.isdisjoint(node.input):
            reached.update(node.output)
            names.add(node.name)
    return names


BATCH: Final = 8


@dataclass(frozen=True)
class Fidelity:
    """`error` is the root mean square of the logits' differences, as a share of their spread.

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


def fidelity(found: Floats, expected: Floats) -> Fidelity:
    """Of logits [N, C], over all views; the spread is that of a view's logits over the classes."""
    spread = expected - expected.mean(axis=1, keepdims=True)
    same = found.argmax(1) == expected.argmax(1)
    classes = expected.argmax(1)
    shares = [same[classes == one].mean() for one in np.unique(classes)]
    return Fidelity(
        error=float(np.sqrt(np.square(found - expected).mean() / np.square(spread).mean())),
        agreement=float(np.mean(shares)),
    )


def logits_of(session: Session, pixels: Pixels) -> Floats:
    """float32 [N, C] of a graph."""
    return in_batches(lambda rows: session.run(rows).logits, pixels)


def in_batches(run: Callable[[Pixels], Floats], pixels: Pixels) -> Floats:
    """What `run` gives for each of the pixels, in batches that any machine has memory for."""
    rows = chunks(range(len(pixels)), BATCH)
    return np.concatenate([run(pixels[list(one)]) for one in rows])
