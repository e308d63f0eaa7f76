"""An int8 graph: which of its products are computed in 8-bit integers, and how.

Weights are signed and have a scale a channel, activations are unsigned. On a processor without
VNNI, ONNX Runtime adds two such products in 16 bits, which full 8-bit weights make overflow. With
one bit less they cannot, and every processor gives the same logits. Depthwise convolutions are
computed differently, and keep all eight bits.
"""

import copy
import logging
import shutil
import tempfile
import time
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from taillift.models.bundle.arrays import Doubles, Flags, Labels, Pixels
from taillift.models.bundle.device import Device
from taillift.models.bundle.posterior import without_prior
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError, first_line
from taillift.models.release.paired import PairedCounts
from taillift.training.export.onnx_graph import (
    BATCH,
    Fidelity,
    fidelity,
    folded,
    logits_of,
    products,
)

# Activations' scales: `dynamic` from each batch, for matrix products alone; `static` from
# calibration, for convolutions too; `mixed` static for convolutions, dynamic for matrix products.
Form = Literal["dynamic", "static", "mixed"]
FORMS: Final = get_args(Form)
CLAMPS: Final = ("Clip", "Relu")
# What an attention is told by; graphs of 0.1.0 have it as one operator.
ATTENTION: Final = ("Softmax", "Attention")

# Largest accepted error, as a share of the logits' spread. Two views of a photo differ by four to
# five times as much (wardrobe-lt).
LIMIT: Final = 0.1
# Points of mean accuracy of few-shot classes that the graph may have lost, at the lower end.
MAX_LOSS: Final = 2.0
VIEWS: Final = 128
SENSITIVITY_VIEWS: Final = 16
TIMED_VIEWS: Final = 8
ROUNDS: Final = 3
ONE_THREAD: Final = Device(threads=1)


@dataclass(frozen=True)
class FewShotPhotos:
    """Centre views uint8 [N, S, S, 3] of held-out photos of few-shot classes, and these [N].

    `log_prior` [C] is the prior that the graph's logits carry.
    """

    pixels: Pixels
    labels: Labels
    log_prior: Doubles

    @property
    def can_decide(self) -> bool:
        """Whether they show of a graph that changes no answer that it loses little."""
        nothing = np.zeros(len(self.labels), np.bool_)
        return bool(len(nothing)) and self.lower_end(nothing, nothing) >= -MAX_LOSS

    def right(self, session: Session) -> Flags:
        """Return which photos a graph gets right, [N]."""
        logits = without_prior(logits_of(session, self.pixels), self.log_prior)
        right: Flags = logits.argmax(1) == self.labels
        return right

    def lower_end(self, old: Flags, new: Flags) -> float:
        """Return the lower end of the 95 % interval of the difference in points."""
        return 100 * PairedCounts.of(self.labels, old, new).interval.low


@dataclass(frozen=True)
class QuantisationCandidate:
    """One way to make the graph.

    `in_float` names the products left in float, `seconds` is the processor time a view takes.
    `lower_end` is that of `FewShotPhotos`, if there are enough of them to decide by.
    """

    form: Form
    in_float: tuple[str, ...]
    seconds: float
    fidelity: Fidelity
    lower_end: float | None = None

    @property
    def is_near(self) -> bool:
        """Whether it may be used: by the few-shot photos if they can decide, else by the logits."""
        if self.lower_end is not None:
            return self.lower_end >= -MAX_LOSS
        return self.fidelity.error <= LIMIT

    def __str__(self) -> str:
        text: str = self.form
        if self.in_float:
            text += f", {len(self.in_float)} products left in float"
        text += f"; {self.fidelity}"
        if self.lower_end is not None:
            text += (
                "; chosen on val photos of few-shot classes, which with one view lose at most "
                f"{max(0.0, -self.lower_end):.1f} points (95 %)"
            )
        if self.form != "static":
            text += (
                "; activations are scaled by each batch, so that the other views of a batch move a "
                "view's logits a little"
            )
        return text


@dataclass(frozen=True)
class Quantised:
    """The candidate that was kept, and all that were tried."""

    kept: QuantisationCandidate
    tried: tuple[QuantisationCandidate, ...]


def quantise(
    graph: Path, target: Path, pixels: Pixels, few: FewShotPhotos | None = None
) -> Quantised:
    """Write the int8 variant of the fp32 `graph` to `target`.

    `pixels` uint8 [N, S, S, 3] are training views, of which at most `VIEWS` are used: every other
    one calibrates, and the variant is compared with fp32 on the rest. The form is chosen by what
    the photos `few` lose, if they are enough to decide, else by the logits. The head, and attention
    between its projections, stay in float. Raises `UserError` if the graph cannot be quantised.
    """
    if len(pixels) < 2:
        raise UserError("an int8 variant needs two training views or more: add photos")
    spread = np.linspace(0, len(pixels) - 1, min(VIEWS, len(pixels)), dtype=int)
    with tempfile.TemporaryDirectory() as folder:
        try:
            search = QuantisationSearch(graph, pixels[spread], Path(folder), few)
            tried = search.run()
        except UserError:
            raise
        except Exception as error:  # The quantiser's errors have no common base.
            raise UserError(
                f"{graph} cannot be quantised ({first_line(error)}): leave int8 out"
            ) from error
        kept = best(tried)
        shutil.copyfile(search.path(kept.form, kept.in_float), target)
    return Quantised(kept, tuple(tried))


def quantise_like(graph: Path, target: Path, pixels: Pixels, kept: QuantisationCandidate) -> None:
    """Write the int8 variant of another `graph` of the same shape in the way that was `kept`.

    `pixels` uint8 [N, S, S, 3] are training views to calibrate on.
    """
    model = folded(graph)
    with tempfile.TemporaryDirectory() as folder:
        ranges = calibrate(model, pixels[:: max(1, 2 * len(pixels) // VIEWS)], Path(folder))
    nodes = {node.name for node in products(model)} - set(kept.in_float)
    write_int8(kept.form, model, ranges, nodes, target)


def best(candidates: Sequence[QuantisationCandidate]) -> QuantisationCandidate:
    """Return the fastest that is near to fp32; if there is none, the nearest."""
    near = [candidate for candidate in candidates if candidate.is_near]
    if near:
        return min(near, key=lambda candidate: candidate.seconds)
    return min(candidates, key=lambda one: (-(one.lower_end or 0.0), one.fidelity.error))


class QuantisationSearch:
    """Makes candidates of one graph in a folder, and measures them.

    `pixels` uint8 [N, S, S, 3]: every other view calibrates, the rest are measured on, and so are
    the photos `few` if they can decide. Raises `UserError` if the graph has nothing to quantise.
    """

    def __init__(
        self, graph: Path, pixels: Pixels, folder: Path, few: FewShotPhotos | None = None
    ) -> None:
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
        session = Session(graph, ONE_THREAD)
        self.expected = logits_of(session, self.pixels)
        self.few = few if few is not None and few.can_decide else None
        self.few_right = None if self.few is None else self.few.right(session)

    def run(self) -> list[QuantisationCandidate]:
        """Return every form with all products in integers, and refinements if they are needed.

        If the fastest form is not near enough, the fewest groups of products that bring it within
        are left in float, the most sensitive ones first. It comes nearer with every group, so that
        bisection finds the number.
        """
        tried = [self.candidate(form, ()) for form in FORMS]
        fastest = min(tried, key=lambda candidate: candidate.seconds)
        if fastest.is_near:
            return tried
        parts = product_groups(self.model.graph.node, set(self.nodes))
        errors = [self.error_alone(fastest.form, part) for part in parts]
        most_sensitive = sorted(range(len(parts)), key=lambda index: -errors[index])

        def is_near(count: int) -> bool:
            left = sorted(most_sensitive[:count])
            in_float = tuple(name for index in left for name in parts[index])
            tried.append(self.candidate(fastest.form, in_float))
            return tried[-1].is_near

        bisect_left(range(1, len(parts)), True, key=is_near)
        return tried

    def candidate(self, form: Form, in_float: tuple[str, ...]) -> QuantisationCandidate:
        """Write and measure the graph with all products but `in_float` in integers."""
        path = self.path(form, in_float)
        write_int8(form, self.model, self.ranges, set(self.nodes) - set(in_float), path)
        session = Session(path, ONE_THREAD)
        near = fidelity(logits_of(session, self.pixels), self.expected)
        seconds = seconds_a_view(session, self.pixels[:TIMED_VIEWS])
        lower_end = None
        if self.few is not None and self.few_right is not None:
            lower_end = self.few.lower_end(self.few_right, self.few.right(session))
        return QuantisationCandidate(form, in_float, seconds, near, lower_end)

    def error_alone(self, form: Form, part: Sequence[str]) -> float:
        """Return the error with only the products of `part` in integers."""
        path = self.folder / "alone.onnx"
        write_int8(form, self.model, self.ranges, part, path)
        logits = logits_of(Session(path, ONE_THREAD), self.pixels[:SENSITIVITY_VIEWS])
        return fidelity(logits, self.expected[:SENSITIVITY_VIEWS]).error

    def path(self, form: Form, in_float: Collection[str]) -> Path:
        """Return the file of a candidate."""
        return self.folder / f"{form}-{len(in_float)}.onnx"


def product_groups(nodes: Sequence[NodeProto], chosen: set[str]) -> list[list[str]]:
    """Return the names in `chosen`, in the order of `nodes`, in groups that belong together.

    A group ends at an attention and at a convolution with a stride.
    """
    parts: list[list[str]] = [[]]
    for node in nodes:
        strides = next((each.ints for each in node.attribute if each.name == "strides"), ())
        strided = node.op_type == "Conv" and any(step > 1 for step in strides)
        if strided or node.op_type in ATTENTION:
            parts.append([])
        if node.name in chosen:
            parts[-1].append(node.name)
    return [part for part in parts if part]


def seconds_a_view(session: Session, pixels: Pixels) -> float:
    """Return the least processor time of this thread over `ROUNDS`.

    The session runs on this thread alone, so that other load on the machine hardly matters.
    """
    seconds = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        session.run(pixels)
        seconds.append(time.thread_time() - start)
    return min(seconds) / len(pixels)


class ViewBatches(CalibrationDataReader):  # type: ignore[misc]
    """Views in batches, as the quantiser asks for them."""

    def __init__(self, pixels: Pixels) -> None:
        parts = np.array_split(pixels, -(-len(pixels) // BATCH))
        self.batches = iter([{"pixels": part} for part in parts])

    def get_next(self) -> dict[str, Pixels] | None:
        return next(self.batches, None)


def calibrate(model: ModelProto, pixels: Pixels, folder: Path) -> TensorsData:
    """Return the range of every activation around a product, over the views."""
    source = folder / "calibrated.onnx"
    onnx.save(model, source)
    with quiet_quantiser():
        calibrator = create_calibrator(
            source,
            sorted({node.op_type for node in products(model)} | set(CLAMPS)),
            str(folder / "calibrator.onnx"),
        )
        calibrator.collect_data(ViewBatches(pixels))
        return calibrator.compute_data()


def write_int8(
    form: Form, model: ModelProto, ranges: TensorsData, nodes: Collection[str], path: Path
) -> None:
    """Write the graph with the products named in `nodes` in integers, as far as `form` can."""
    chosen = [node for node in products(model) if node.name in nodes]
    convolutions = [node.name for node in chosen if node.op_type == "Conv"]
    matrix_products = [node.name for node in chosen if node.op_type != "Conv"]
    with quiet_quantiser():
        match form:
            case "dynamic":
                write_dynamic(model, matrix_products, path)
            case "static":
                onnx.save(with_static(model, ranges, convolutions + matrix_products), path)
            case "mixed":
                write_dynamic(with_static(model, ranges, convolutions), matrix_products, path)


def write_dynamic(model: ModelProto, nodes: list[str], path: Path) -> None:
    """Write the graph with these matrix products in integers, scaled by each batch."""
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


def with_static(model: ModelProto, ranges: TensorsData, nodes: list[str]) -> ModelProto:
    """Return the graph with these products in integers, scaled by calibrated ranges."""
    if not nodes:
        return model
    chosen = [node for node in products(model) if node.name in nodes]
    # The integers' range does the work of a clamp right after a product.
    outputs = {node.output[0] for node in chosen}
    clamps = [
        node for node in model.graph.node if node.op_type in CLAMPS and node.input[0] in outputs
    ]
    shapes = {constant.name: constant.dims for constant in model.graph.initializer}
    depthwise = [
        node.input[1] for node in chosen if node.op_type == "Conv" and shapes[node.input[1]][1] == 1
    ]
    signed = {"quant_type": QuantType.QInt8, "symmetric": True, "axis": 0}
    quantizer = QDQQuantizer(
        copy.deepcopy(model),
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[*nodes, *(node.name for node in clamps)],
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({node.op_type for node in (*chosen, *clamps)}),
        extra_options={
            "DefaultTensorType": TensorProto.FLOAT,
            "TensorQuantOverrides": {
                weights: [{**signed, "reduce_range": False}] for weights in depthwise
            },
        },
    )
    quantizer.quantize_model()
    quantised: ModelProto = quantizer.model.model
    return quantised


@contextmanager
def quiet_quantiser() -> Iterator[None]:
    """Silence the advice that the quantiser logs on graphs which it accepts anyway."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
