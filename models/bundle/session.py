"""The ONNX Runtime session behind a bundle's graph, and the TensorRT engines that it keeps."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

import numpy as np
import onnxruntime as ort

from taillift.models.bundle.arrays import Floats, Pixels
from taillift.models.bundle.atomic import file_sha256
from taillift.models.bundle.device import (
    EXECUTION_PROVIDERS,
    GPU,
    PACKAGES,
    SESSION_ENTRIES,
    Device,
    Provider,
    execution_providers,
    misplaced,
)
from taillift.models.errors import UserError, first_line

CPU: Final = Device()
OUTPUTS: Final = ("logits", "features")

# Only fatal messages: every other one comes as an exception.
SILENT: Final = 4

# A file in the folder of a whole TensorRT engine, which takes minutes to build.
COMPLETE: Final = "complete"


class Outputs(NamedTuple):
    """Views' logits float32 [N, C] and features float32 [N, D], which have unit length."""

    logits: Floats
    features: Floats


class Session:
    """Runs a bundle's graph: `pixels` uint8 [N, S, S, 3] in, `Outputs` out.

    TensorRT needs S, as `side`, before the first batch. Several threads may use a session. Raises
    what `load_graph` raises.
    """

    def __init__(self, path: Path, device: Device = CPU, side: int | None = None) -> None:
        self.device = device
        self.batches = device.batches
        self._graph = load_graph(path, device, side)
        self._bound = BoundGraph(self._graph, "cuda") if device.provider in GPU else None

    def run(self, pixels: Pixels) -> Outputs:
        """Run views of any number; on a GPU in padded batches.

        The logits are the graph's own, with the prior that they carry.
        """
        if self.batches is None:
            return Outputs(*map(np.asarray, self._graph.run(OUTPUTS, {"pixels": pixels})))
        assert self._bound is not None
        step = self.batches.largest
        batches: list[Outputs] = []
        for start in range(0, len(pixels), step):
            part = pixels[start : start + step]
            outputs = self._bound.run(padded(part, self.batches.padded(len(part))))
            batches.append(Outputs(outputs.logits[: len(part)], outputs.features[: len(part)]))
        return Outputs(*map(np.concatenate, zip(*batches, strict=True)))

    def close(self) -> None:
        """Free the graph and its memory; nothing runs afterwards."""
        del self._graph, self._bound

    def placement(self) -> list[tuple[str, str]]:
        """Return (provider, operator) of every node."""
        return placement(self._graph)


class BoundGraph:
    """A graph whose input has its own memory on `place`, one for each batch size.

    So a batch allocates nothing but what the graph itself needs.
    """

    def __init__(self, graph: ort.InferenceSession, place: str) -> None:
        self._graph = graph
        self._place = place
        self._inputs: dict[tuple[int, ...], ort.OrtValue] = {}
        self._lock = Lock()

    def run(self, pixels: Pixels) -> Outputs:
        with self._lock:
            if pixels.shape not in self._inputs:
                self._inputs[pixels.shape] = ort.OrtValue.ortvalue_from_shape_and_type(
                    pixels.shape, np.uint8, self._place
                )
            value = self._inputs[pixels.shape]
            value.update_inplace(np.ascontiguousarray(pixels))
            binding = self._graph.io_binding()
            binding.bind_ortvalue_input("pixels", value)
            for name in OUTPUTS:
                binding.bind_output(name, self._place)
            self._graph.run_with_iobinding(binding)
            return Outputs(*map(np.asarray, binding.copy_outputs_to_cpu()))


def padded(pixels: Pixels, size: int) -> Pixels:
    """Return the views with black ones behind them, [size, S, S, 3]."""
    if len(pixels) == size:
        return pixels
    filled: Pixels = np.zeros((size, *pixels.shape[1:]), np.uint8)
    filled[: len(pixels)] = pixels
    return filled


def load_graph(path: Path, device: Device = CPU, side: int | None = None) -> ort.InferenceSession:
    """Load an ONNX file.

    Raises `UserError` if the file does not load, or if the requested provider does not compute
    everything but shapes: ONNX Runtime itself would fall back to the CPU with a line in its log.
    """
    wanted = EXECUTION_PROVIDERS[device.provider]
    if wanted not in ort.get_available_providers():
        raise UserError(
            f"this onnxruntime has no {wanted}: install {PACKAGES[device.provider]}, or set the "
            "provider to cpu"
        )
    if device.provider in GPU:
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    if device.threads is not None:
        options.intra_op_num_threads = device.threads
    for name, value in SESSION_ENTRIES.items():
        options.add_session_config_entry(name, value)
    with engines_of(path, device) as engines:
        providers = execution_providers(device, side, engines)
        try:
            # Without a fallback: it would replace a provider that fails, now or in a run.
            graph = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
        except Exception as error:  # ONNX Runtime's errors have no common base.
            raise UserError(
                f"ONNX Runtime cannot load {path}: {first_line(error)}; export the bundle again, "
                "or choose another provider"
            ) from error
        check_placement(graph, device)
    return graph


def engines_of(path: Path, device: Device) -> AbstractContextManager[Path | None]:
    """Return the folder of the graph's TensorRT engine, or None if none is kept."""
    if device.provider is not Provider.TENSORRT or device.engines is None:
        return nullcontext()
    key = engine_key(path, ort.__version__, device.precision, device.batches, device.memory_bytes)
    return engine_folder(device.engines, key)


def engine_key(graph: Path, *conditions: object) -> str:
    """Return the name of a graph's engine that was built under these conditions."""
    digest = file_sha256(graph)
    digest.update(repr(conditions).encode())
    return digest.hexdigest()[:16]


@contextmanager
def engine_folder(root: Path, key: str) -> Iterator[Path]:
    """Yield the folder for `key` in `root`; no other process uses it until the block ends.

    The folder is marked as complete, last, if the block succeeds. Otherwise it is removed: by the
    block itself, or by the next one if the process died. So an engine that does not load is built
    again at the next start. Raises `UserError` if the folder cannot be written.
    """
    folder = root / key
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f"{key}.lock").open("w")
    except OSError as error:
        raise UserError(
            f"{root} cannot hold TensorRT's engines ({error.strerror}): set engines to a folder "
            "that can be written"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / COMPLETE).touch()


def check_placement(graph: ort.InferenceSession, device: Device) -> None:
    """Raise `UserError` if another provider computes a part of the graph."""
    wanted = EXECUTION_PROVIDERS[device.provider]
    if (first := graph.get_providers()[0]) != wanted:
        raise UserError(
            f"asked for {wanted} and got {first}: check that its driver and libraries are there "
            f"({PACKAGES[device.provider]}), or set the provider to cpu"
        )
    if device.provider is Provider.CPU:
        return
    if elsewhere := misplaced(placement(graph), wanted):
        names = ", ".join(f"{count} {name}" for name, count in elsewhere.most_common())
        raise UserError(
            f"{wanted} leaves a part of the graph to the CPU ({names}): use a newer onnxruntime, "
            "or choose another provider"
        )


def placement(graph: ort.InferenceSession) -> list[tuple[str, str]]:
    """Return (provider, operator) of every node."""
    return [
        (part.ep_name, node.op_type)
        for part in graph.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
