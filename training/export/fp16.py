"""An fp16 graph for GPUs.

Normalisation of the pixels stays in float, and so does everything from the features' unit length
on: the smallest divisor that a unit length is given is no fp16 number. ONNX's LayerNormalization
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
    behind,
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
    the two, on the CPU. Inputs and outputs are those of `graph`. Raises `UserError` where a weight
    or a value on the way does not fit in fp16.
    """
    try:
        onnx.save(_halved(folded(graph)), target)
        found = logits_of(Session(target, ONE_THREAD), pixels[:VIEWS])
    except UserError:
        raise
    except Exception as error:  # ONNX's errors have no common base.
        raise UserError(
            f"{graph} cannot be brought to fp16 ({first_line(error)}): leave fp16 out"
        ) from error
    if not np.isfinite(found).all():
        target.unlink()
        raise UserError(
            f"{graph} cannot be brought to fp16 (a value on its way is beyond {LARGEST:.0f}): "
            "leave fp16 out"
        )
    return fidelity(found, logits_of(Session(graph, ONE_THREAD), pixels[:VIEWS]))


def _halved(model: ModelProto) -> ModelProto:
    half = _in_half(model)
    floats = _float_tensors(model)
    casts: dict[tuple[str, int], str] = {}
    nodes: list[NodeProto] = []
    sides = dict.fromkeys(floats, TensorProto.FLOAT)
    for node in model.graph.node:
        kind = TensorProto.FLOAT16 if node.name in half else TensorProto.FLOAT
        for place, name in enumerate(node.input):
            if sides.get(name, kind) != kind:
                if (name, kind) not in casts:
                    casts[name, kind] = f"{name}_{TensorProto.DataType.Name(kind).lower()}"
                    nodes.append(helper.make_node("Cast", [name], [casts[name, kind]], to=kind))
                node.input[place] = casts[name, kind]
        sides |= {name: kind for name in node.output if name in floats}
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _halve_constants(model, {name for name, kind in casts if kind == TensorProto.FLOAT16})
    onnx.checker.check_model(model)
    return model


def _in_half(model: ModelProto) -> set[str]:
    """The nodes from the first products on, up to where the features get their unit length."""
    nodes = model.graph.node
    named = products(model)
    if not named:
        raise UserError("the graph has no product with constant weights: leave fp16 out")
    inside = {node.name for node in named} | behind(nodes, [one.output[0] for one in named])
    (last,) = (node for node in nodes if "features" in node.output)
    return inside - behind(nodes, [last.input[0]]) - {last.name}


def _float_tensors(model: ModelProto) -> set[str]:
    """Every tensor that is float32 in the graph as it came."""
    graph = shape_inference.infer_shapes(model).graph
    tensors = [*graph.value_info, *graph.input, *graph.output]
    constants = {one.name for one in graph.initializer if one.data_type == TensorProto.FLOAT}
    return constants | {
        one.name for one in tensors if one.type.tensor_type.elem_type == TensorProto.FLOAT
    }


def _halve_constants(model: ModelProto, wanted: set[str]) -> None:
    """Put constants in the place of casts of constants."""
    graph = model.graph
    constants = {one.name: one for one in graph.initializer if one.name in wanted}
    made = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in constants]
    for node in made:
        graph.initializer.append(_half_constant(constants[node.input[0]], node.output[0]))
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for name in constants.keys() - read:
        graph.initializer.remove(constants[name])


def _half_constant(constant: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(constant)
    if values.size and np.abs(values).max() > LARGEST:
        raise UserError(
            f"{constant.name} has a value beyond {LARGEST:.0f}, the largest of fp16: leave fp16 out"
        )
    return numpy_helper.from_array(values.astype(np.float16), name)
