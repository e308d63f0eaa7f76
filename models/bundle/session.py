"""The ONNX Runtime session behind a bundle's graph."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

import numpy as np
import onnxruntime as ort

from taillift.models.bundle.arrays import Floats, Pixels
from taillift.models.bundle.device import (
    EXECUTION_PROVIDERS,
    GPU,
    PACKAGES,
    SESSION_ENTRIES,
    BatchSizes,
    Device,
    Options,
    Provider,
    execution_providers,
    misplaced,
)
from taillift.models.bundle.tensorrt_cache import engine_folder, engine_key
from taillift.models.bundle.text import first_line
from taillift.models.errors import UserError

CPU: Final = Device()
OUTPUTS: Final = ("logits", "features")

# Only fatal messages: every other one comes as an exception.
SILENT: Final = 4


class Outputs(NamedTuple):
    """`logits` float32 [N, C]; `features` float32 [N, D], unit length."""

    logits: Floats
    features: Floats


class Session:
    """Runs a bundle's graph: `pixels` uint8 [N, S, S, 3] in, `Outputs` out.

    `side` is S, which TensorRT has to know before. Safe to call from several threads. Raises what
    `load_graph` raises.
    """

    def __init__(self, path: Path, device: Device = CPU, side: int | None = None) -> None:
        self.device = device
        self.batches = device.batches
        self._graph = load_graph(path, device, side)
        self._bound = BoundGraph(self._graph, "cuda") if device.provider in GPU else None

    def run(self, pixels: Pixels) -> Outputs:
        if self.batches is None:
            return Outputs(*map(np.asarray, self._graph.run(OUTPUTS, {"pixels": pixels})))
        step = self.batches.largest
        parts = [
            self._run_padded(pixels[start : start + step], self.batches)
            for start in range(0, len(pixels), step)
        ]
        return Outputs(*map(np.concatenate, zip(*parts, strict=True)))

    def close(self) -> None:
        """Let go of the graph and its memory; nothing runs afterwards."""
        del self._graph, self._bound

    def placement(self) -> list[tuple[str, str]]:
        """(provider, operator) of every node."""
        return placement(self._graph)

    def _run_padded(self, pixels: Pixels, batches: BatchSizes) -> Outputs:
        assert self._bound is not None
        count = len(pixels)
        outputs = self._bound.run(padded(pixels, batches.padded(count)))
        return Outputs(outputs.logits[:count], outputs.features[:count])


class BoundGraph:
    """A graph whose input has its own memory on `place`, one for each batch size.

    Nothing is then allocated for a batch but what the graph itself needs.
    """

    def __init__(self, graph: ort.InferenceSession, place: str) -> None:
        self._graph = graph
        self._place = place
        self._inputs: dict[tuple[int, ...], ort.OrtValue] = {}
        self._turn = Lock()

    def run(self, pixels: Pixels) -> Outputs:
        with self._turn:
            binding = self._graph.io_binding()
            binding.bind_ortvalue_input("pixels", self._input(pixels))
            for name in OUTPUTS:
                binding.bind_output(name, self._place)
            self._graph.run_with_iobinding(binding)
            return Outputs(*map(np.asarray, binding.copy_outputs_to_cpu()))

    def _input(self, pixels: Pixels) -> ort.OrtValue:
        if pixels.shape not in self._inputs:
            self._inputs[pixels.shape] = ort.OrtValue.ortvalue_from_shape_and_type(
                pixels.shape, np.uint8, self._place
            )
        value = self._inputs[pixels.shape]
        value.update_inplace(np.ascontiguousarray(pixels))
        return value


def padded(pixels: Pixels, size: int) -> Pixels:
    """[size, S, S, 3]: the views, and black ones behind them."""
    if len(pixels) == size:
        return pixels
    filled: Pixels = np.zeros((size, *pixels.shape[1:]), np.uint8)
    filled[: len(pixels)] = pixels
    return filled


def load_graph(path: Path, device: Device = CPU, side: int | None = None) -> ort.InferenceSession:
    """Load an ONNX file.

    Raises `UserError` where the file does not load, or anything but shapes is not computed by the
    provider asked for: ONNX Runtime itself falls back to the CPU with a line in its log.
    """
    wanted = EXECUTION_PROVIDERS[device.provider]
    if wanted not in ort.get_available_providers():
        raise UserError(
            f"this onnxruntime has no {wanted}: install {PACKAGES[device.provider]}, or set the "
            "provider to cpu"
        )
    if device.provider in GPU:
        ort.preload_dlls()
    with _engines(path, device) as engines:
        graph = _load(path, device, execution_providers(device, side, engines))
        _check_placement(graph, device)
    return graph


def _engines(path: Path, device: Device) -> AbstractContextManager[Path | None]:
    """The folder of the graph's TensorRT engine, where there is one."""
    if device.provider is not Provider.TENSORRT or device.engines is None:
        return nullcontext()
    key = engine_key(path, ort.__version__, device.precision, device.batches, device.memory_bytes)
    return engine_folder(device.engines, key)


def _load(path: Path, device: Device, providers: list[tuple[str, Options]]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    if device.threads is not None:
        options.intra_op_num_threads = device.threads
    for name, value in SESSION_ENTRIES.items():
        options.add_session_config_entry(name, value)
    try:
        # Else a provider that fails, now or in a run, is replaced by another one.
        return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no common base.
        raise UserError(
            f"ONNX Runtime cannot load {path}: {first_line(error)}; export the bundle again, or "
            "choose another provider"
        ) from error


def _check_placement(graph: ort.InferenceSession, device: Device) -> None:
    wanted = EXECUTION_PROVIDERS[device.provider]
    if (found := graph.get_providers()[0]) != wanted:
        raise UserError(
            f"asked for {wanted} and got {found}: check that its driver and libraries are there "
            f"({PACKAGES[device.provider]}), or set the provider to cpu"
        )
    if device.provider is Provider.CPU:
        return
    if elsewhere := misplaced(placement(graph), wanted):
        names = ", ".join(f"{count} {name}" for name, count in elsewhere.most_common())
        raise UserError(
            f"{wanted} leaves a part of the graph to the CPU ({names}): take a newer onnxruntime, "
            "or choose another provider"
        )


def placement(graph: ort.InferenceSession) -> list[tuple[str, str]]:
    """(provider, operator) of every node."""
    return [
        (part.ep_name, node.op_type)
        for part in graph.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
