"""Ways to compute a graph's products in 8-bit integers.

Weights are signed and have a scale a channel, activations are unsigned. Where a processor has no
VNNI, ONNX Runtime adds two such products in 16 bits, which full 8-bit weights make overflow; with
one bit less they cannot, and every processor gives the same logits. Depthwise convolutions are
computed otherwise, and keep all eight bits.
"""

import copy
import logging
import shutil
import tempfile
import time
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.device import Device
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError, first_line
from taillift.training.export.onnx_graph import Fidelity, fidelity, folded, logits_of, products

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


def groups(nodes: Sequence[NodeProto], chosen: set[str]) -> list[list[str]]:
    """The names of `chosen` in `nodes`, in order: what lies between two attentions, or between two
    convolutions with a stride, belongs together."""
    found: list[list[str]] = [[]]
    for node in nodes:
        if node.op_type == "Attention" or _strided(node):
            found.append([])
        if node.name in chosen:
            found[-1].append(node.name)
    return [group for group in found if group]


def _strided(node: NodeProto) -> bool:
    strides = [one.ints for one in node.attribute if one.name == "strides"]
    return node.op_type == "Conv" and any(step > 1 for ints in strides for step in ints)


# Of the logits' spread. Two views of a photo differ by four to five times as much (wardrobe-lt).
LIMIT: Final = 0.1
VIEWS: Final = 128
SENSITIVITY_VIEWS: Final = 16
TIMED_VIEWS: Final = 8
ROUNDS: Final = 3
ONE_THREAD: Final = Device(threads=1)


@dataclass(frozen=True)
class QuantisationCandidate:
    """`seconds` of processor time a view takes; `in_float` names the products left in float."""

    form: Form
    in_float: tuple[str, ...]
    seconds: float
    fidelity: Fidelity

    def __str__(self) -> str:
        left = f", {len(self.in_float)} products left in float" if self.in_float else ""
        batch = (
            ""
            if self.form == "static"
            else "; activations are scaled by each batch, so that what "
            "is beside a view moves its logits a little"
        )
        return f"{self.form}{left}; {self.fidelity}{batch}"


@dataclass(frozen=True)
class Quantised:
    kept: QuantisationCandidate
    tried: tuple[QuantisationCandidate, ...]


def quantise(graph: Path, target: Path, pixels: Pixels) -> Quantised:
    """Write the int8 variant of the fp32 `graph` to `target`.

    `pixels` uint8 [N, S, S, 3] are training views, of which at most `VIEWS` are used: every other
    one calibrates, and the rest are what variant and fp32 are compared on. The head, and attention
    between its projections, stay in float. Raises `UserError` where the graph cannot be quantised.
    """
    if len(pixels) < 2:
        raise UserError("an int8 variant needs two training views or more: add photos")
    spread = np.linspace(0, len(pixels) - 1, min(VIEWS, len(pixels)), dtype=int)
    with tempfile.TemporaryDirectory() as folder:
        try:
            trial = _Trial(graph, pixels[spread], Path(folder))
            tried = trial.run()
        except UserError:
            raise
        except Exception as error:  # The quantiser's errors have no common base.
            raise UserError(
                f"{graph} cannot be quantised ({first_line(error)}): leave int8 out"
            ) from error
        kept = best(tried)
        shutil.copyfile(trial.path(kept.form, kept.in_float), target)
    return Quantised(kept, tuple(tried))


def quantise_like(graph: Path, target: Path, pixels: Pixels, kept: QuantisationCandidate) -> None:
    """Write the int8 variant of another `graph` of the same shape the way that was `kept`.

    `pixels` uint8 [N, S, S, 3] are training views to calibrate on.
    """
    model = folded(graph)
    with tempfile.TemporaryDirectory() as folder:
        ranges = calibrate(model, pixels[:: max(1, 2 * len(pixels) // VIEWS)], Path(folder))
    nodes = {node.name for node in products(model)} - set(kept.in_float)
    write_int8(kept.form, model, ranges, nodes, target)


def best(candidates: Sequence[QuantisationCandidate]) -> QuantisationCandidate:
    """The quickest whose error is within `LIMIT`; where there is none, the one nearest to fp32."""
    near = [one for one in candidates if one.fidelity.error <= LIMIT]
    if near:
        return min(near, key=lambda one: one.seconds)
    return min(candidates, key=lambda one: one.fidelity.error)


class _Trial:
    def __init__(self, graph: Path, pixels: Pixels, folder: Path) -> None:
        self.folder = folder
        self.model = folded(graph)
        self.nodes = [node.name for node in products(self.model)]
        if not self.nodes:
            raise UserError(
                f"{graph} cannot be quantised (it has no convolution or matrix product with "
                "constant weights before its head): leave int8 out"
            )
        self.ranges = calibrate(self.model, pixels[::2], folder)
        self.pixels = pixels[1::2]
        self.expected = logits_of(Session(graph, ONE_THREAD), self.pixels)

    def run(self) -> list[QuantisationCandidate]:
        tried = [self._candidate(form, ()) for form in FORMS]
        quickest = min(tried, key=lambda one: one.seconds)
        if quickest.fidelity.error > LIMIT:
            tried += self._refined(quickest)
        return tried

    def path(self, form: Form, in_float: Collection[str]) -> Path:
        return self.folder / f"{form}-{len(in_float)}.onnx"

    def _refined(self, whole: QuantisationCandidate) -> list[QuantisationCandidate]:
        """With the fewest groups in float, the most sensitive first, that bring the error into the
        limit: found by bisection, as it falls with every group."""
        parts = groups(self.model.graph.node, set(self.nodes))
        alone = [self._alone(whole.form, part) for part in parts]
        worst = sorted(range(len(parts)), key=lambda one: -alone[one])
        tried: list[QuantisationCandidate] = []

        def near(count: int) -> bool:
            left = sorted(worst[:count])
            in_float = tuple(name for part in left for name in parts[part])
            tried.append(self._candidate(whole.form, in_float))
            return tried[-1].fidelity.error <= LIMIT

        bisect_left(range(1, len(parts)), True, key=near)
        return tried

    def _alone(self, form: Form, part: Sequence[str]) -> float:
        """The error with nothing but `part` in integers."""
        path = self.folder / "alone.onnx"
        write_int8(form, self.model, self.ranges, part, path)
        found = logits_of(Session(path, ONE_THREAD), self.pixels[:SENSITIVITY_VIEWS])
        return fidelity(found, self.expected[:SENSITIVITY_VIEWS]).error

    def _candidate(self, form: Form, in_float: tuple[str, ...]) -> QuantisationCandidate:
        path = self.path(form, in_float)
        nodes = set(self.nodes) - set(in_float)
        write_int8(form, self.model, self.ranges, nodes, path)
        session = Session(path, ONE_THREAD)
        found = logits_of(session, self.pixels)
        return QuantisationCandidate(
            form, in_float, self._seconds(session), fidelity(found, self.expected)
        )

    def _seconds(self, session: Session) -> float:
        """Of this thread, on which all of it runs, whatever else the machine does."""
        rows = self.pixels[:TIMED_VIEWS]
        taken = []
        for _ in range(ROUNDS):
            start = time.thread_time()
            session.run(rows)
            taken.append(time.thread_time() - start)
        return min(taken) / len(rows)
