"""ONNX graphs as they are read before they are changed."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto

from models import UserError
from models.bundle.session import first_line

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
