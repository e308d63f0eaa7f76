"""Ways to compute a graph's products in 8-bit integers.

Weights are signed and have a scale a channel, activations are unsigned. Where a processor has no
VNNI, ONNX Runtime adds two such products in 16 bits, which full 8-bit weights make overflow; with
one bit less they cannot, and every processor gives the same logits. Depthwise convolutions are
computed otherwise, and keep all eight bits.
"""

import copy
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import onnx
from onnx import ModelProto, TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from models.bundle.images import Pixels
from training.variants.graph import products

# Activations' scales: `dynamic` from each batch, for matrix products alone; `static` from
# calibration, for convolutions too; `mixed` each where it is best.
Form = Literal["dynamic", "static", "mixed"]
FORMS: Final = get_args(Form)
CLAMPS: Final = ("Clip", "Relu")
BATCH: Final = 8


def calibrate(model: ModelProto, pixels: Pixels, folder: Path) -> TensorsData:
    """The range of every activation around a product, over the views."""
    source = folder / "calibrated.onnx"
    onnx.save(model, source)
    with _quiet():
        calibrator = create_calibrator(
            source,
            sorted({node.op_type for node in products(model)} | set(CLAMPS)),
            str(folder / "calibrator.onnx"),
        )
        calibrator.collect_data(_Views(pixels))
        return calibrator.compute_data()


def write_int8(
    form: Form, model: ModelProto, ranges: TensorsData, nodes: Collection[str], path: Path
) -> None:
    """Write the graph with the products named in `nodes` in integers, as far as `form` has them."""
    chosen = [node for node in products(model) if node.name in nodes]
    convolutions = [node.name for node in chosen if node.op_type == "Conv"]
    rest = [node.name for node in chosen if node.op_type != "Conv"]
    with _quiet():
        match form:
            case "dynamic":
                _dynamic(model, rest, path)
            case "static":
                onnx.save(_static(model, ranges, convolutions + rest), path)
            case "mixed":
                _dynamic(_static(model, ranges, convolutions), rest, path)


def _dynamic(model: ModelProto, nodes: list[str], path: Path) -> None:
    if not nodes:
        onnx.save(model, path)
        return
    quantize_dynamic(
        copy.deepcopy(model),
        path,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_quantize=nodes,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )


def _static(model: ModelProto, ranges: TensorsData, nodes: list[str]) -> ModelProto:
    if not nodes:
        return model
    chosen = [*nodes, *_clamps(model, nodes)]
    types = {node.op_type for node in model.graph.node if node.name in set(chosen)}
    quantizer = QDQQuantizer(
        copy.deepcopy(model),
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=chosen,
        nodes_to_exclude=[],
        op_types_to_quantize=sorted(types),
        extra_options={
            "DefaultTensorType": TensorProto.FLOAT,
            "TensorQuantOverrides": _full_range(model, nodes),
        },
    )
    quantizer.quantize_model()
    quantised: ModelProto = quantizer.model.model
    return quantised


def _clamps(model: ModelProto, nodes: Collection[str]) -> list[str]:
    """The clamps right behind the convolutions, which their integers' range then does."""
    outputs = {one.output[0] for one in model.graph.node if one.name in nodes}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in CLAMPS and node.input[0] in outputs
    ]


def _full_range(model: ModelProto, nodes: Collection[str]) -> Mapping[str, list[dict[str, Any]]]:
    shapes = {one.name: one.dims for one in model.graph.initializer}
    return {
        node.input[1]: [
            {"quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": False, "axis": 0}
        ]
        for node in products(model)
        if node.name in nodes and node.op_type == "Conv" and shapes[node.input[1]][1] == 1
    }


class _Views(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pixels: Pixels) -> None:
        parts = np.array_split(pixels, -(-len(pixels) // BATCH))
        self._batches = iter([{"pixels": one} for one in parts])

    def get_next(self) -> dict[str, Pixels] | None:
        return next(self._batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice on graphs that it takes all the same."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
