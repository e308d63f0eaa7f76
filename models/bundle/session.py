"""The ONNX Runtime session behind a bundle's graph."""

from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import onnxruntime as ort

from models import UserError
from models.bundle.ensemble import Floats
from models.bundle.images import Pixels


class Provider(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


EXECUTION_PROVIDERS: Final = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
}
OPTIONS: Final[dict[Provider, dict[str, str]]] = {
    Provider.CPU: {},
    # The default arena doubles at each growth, and TF32 keeps only ten bits of a factor's fraction.
    Provider.CUDA: {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"},
}


class Outputs(NamedTuple):
    """`logits` float32 [N, C]; `features` float32 [N, D], unit length."""

    logits: Floats
    features: Floats


class Session:
    """Runs a bundle's graph: `pixels` uint8 [N, S, S, 3] in, `Outputs` out.

    Safe to call from several threads. Raises what `load_graph` raises.
    """

    def __init__(
        self, path: Path, provider: Provider = Provider.CPU, threads: int | None = None
    ) -> None:
        self._graph = load_graph(path, provider, threads)

    def run(self, pixels: Pixels) -> Outputs:
        logits, features = self._graph.run(["logits", "features"], {"pixels": pixels})
        return Outputs(np.asarray(logits), np.asarray(features))


def load_graph(
    path: Path, provider: Provider = Provider.CPU, threads: int | None = None
) -> ort.InferenceSession:
    """Load an ONNX file; `threads` compute one batch on the CPU, by default one a core.

    Raises `UserError` where the file does not load, or the provider asked for is not the one that
    runs: ONNX Runtime itself falls back to the CPU with a line in its log.
    """
    wanted = EXECUTION_PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise UserError(
            f"this onnxruntime has no {wanted}: install taillift[gpu] instead of taillift[cpu], "
            "or set the provider to cpu"
        )
    if provider is Provider.CUDA:
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        graph: ort.InferenceSession = ort.InferenceSession(
            str(path), options, providers=[(wanted, OPTIONS[provider])]
        )
    except Exception as error:  # ONNX Runtime's errors have no common base.
        raise UserError(
            f"ONNX Runtime cannot load {path}: {first_line(error)}; export the bundle again"
        ) from error
    if (found := graph.get_providers()[0]) != wanted:
        raise UserError(
            f"asked for {wanted} and got {found}: check the driver and CUDA libraries, or set the "
            "provider to cpu"
        )
    return graph


def first_line(error: Exception) -> str:
    """ONNX Runtime's messages have many lines, of which the first says it."""
    return str(error).partition("\n")[0]
