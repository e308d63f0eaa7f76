"""An fp16 graph for GPUs.

Normalisation of the pixels stays in float, and so does everything from the scaling of the features
to unit length on: fp16 cannot hold the floor of that scaling's divisor. ONNX's LayerNormalization
computes its statistics in float whatever its inputs are.
"""

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.device import Device
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError, first_line
from taillift.training.export.onnx_graph import (
    Fidelity,
    downstream,
    fidelity,
    folded,
    logits_of,
    products,
)

VIEWS: Final = 32
LARGEST: Final = float(np.finfo(np.float16).max)
ONE_THREAD: Final = Device(threads=1)


def halve(graph: Path, target: Path, pixels: Pixels) -> Fidelity:
    """Write the fp16 variant of the fp32 `graph` to `target`: weights and computation in half.

    `pixels` uint8 [N, S, S, 3] are training views, of which at most `VIEWS` are used to compare
    the two, on the CPU. Inputs and outputs are those of `graph`. Raises `UserError` if a weight or
    an intermediate value does not fit in fp16.
    """
    try:
        onnx.save(halved(folded(graph)), target)
        logits = logits_of(Session(target, ONE_THREAD), pixels[:VIEWS])
    except UserError:
        raise
    except Exception as error:  # ONNX's errors have no common base.
        raise UserError(
            f"{graph} cannot be converted to fp16 ({first_line(error)}): leave fp16 out"
        ) from error
    if not np.isfinite(logits).all():
        target.unlink()
        raise UserError(
            f"{graph} cannot be converted to fp16 (an intermediate value is beyond {LARGEST:.0f}): "
            "leave fp16 out"
        )
    return fidelity(logits, logits_of(Session(graph, ONE_THREAD), pixels[:VIEWS]))


def halved(model: ModelProto) -> ModelProto:
    """Change a graph to fp16 between the first products and the features' unit length."""
    half = nodes_in_half(model)
    graph = shape_inference.infer_shapes(model).graph
    floats = {
        constant.name for constant in graph.initializer if constant.data_type == TensorProto.FLOAT
    } | {
        tensor.name
        for tensor in (*graph.value_info, *graph.input, *graph.output)
        if tensor.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    # The type that each float tensor now has, and the casts of it to another.
    types = dict.fromkeys(floats, TensorProto.FLOAT)
    casts: dict[tuple[str, int], str] = {}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        kind = TensorProto.FLOAT16 if node.name in half else TensorProto.FLOAT
        for index, name in enumerate(node.input):
            if types.get(name, kind) != kind:
                if (name, kind) not in casts:
                    casts[name, kind] = f"{name}_{TensorProto.DataType.Name(kind).lower()}"
                    nodes.append(helper.make_node("Cast", [name], [casts[name, kind]], to=kind))
                node.input[index] = casts[name, kind]
        types |= {name: kind for name in node.output if name in floats}
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    halve_constants(model, {name for name, kind in casts if kind == TensorProto.FLOAT16})
    onnx.checker.check_model(model)
    return model


def nodes_in_half(model: ModelProto) -> set[str]:
    """Return the names of the nodes from the first products up to the features' unit length.

    Raises `UserError` if there are none.
    """
    nodes = model.graph.node
    first = products(model)
    if not first:
        raise UserError("the graph has no product with constant weights: leave fp16 out")
    inside = {node.name for node in first}
    inside |= downstream(nodes, [node.output[0] for node in first])
    (last,) = (node for node in nodes if "features" in node.output)
    return inside - downstream(nodes, [last.input[0]]) - {last.name}


def halve_constants(model: ModelProto, names: set[str]) -> None:
    """Replace the casts of these constants by constants, and drop constants that nothing reads.

    Raises `UserError` if a value does not fit in fp16.
    """
    graph = model.graph
    constants = {
        constant.name: constant for constant in graph.initializer if constant.name in names
    }
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in constants]
    for cast in casts:
        name = cast.input[0]
        values = numpy_helper.to_array(constants[name])
        if values.size and np.abs(values).max() > LARGEST:
            raise UserError(
                f"{name} has a value beyond {LARGEST:.0f}, the largest of fp16: leave fp16 out"
            )
        half = numpy_helper.from_array(values.astype(np.float16), cast.output[0])
        graph.initializer.append(half)
        graph.node.remove(cast)
    still_read = {name for node in graph.node for name in node.input}
    for name in constants.keys() - still_read:
        graph.initializer.remove(constants[name])
