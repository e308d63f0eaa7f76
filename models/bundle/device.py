"""The device that runs a graph, and every option that ONNX Runtime is given for it."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.schema import Precision
from taillift.models.errors import UserError

Options = dict[str, str]


class Provider(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"


EXECUTION_PROVIDERS: Final = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.TENSORRT: "TensorrtExecutionProvider",
    Provider.OPENVINO: "OpenVINOExecutionProvider",
}
GPU: Final = frozenset({Provider.CUDA, Provider.TENSORRT})
PACKAGES: Final = {
    Provider.CPU: "taillift[cpu]",
    Provider.CUDA: "taillift[gpu] instead of taillift[cpu]",
    Provider.TENSORRT: "taillift[gpu] instead of taillift[cpu], and TensorRT's libraries",
    Provider.OPENVINO: "onnxruntime-openvino instead of onnxruntime",
}
# By how much two machines' arithmetic may differ, for logits of scale 25.
GOLDEN_TOLERANCES: Final = {Precision.FP32: 1e-2, Precision.FP16: 0.25, Precision.INT8: 0.25}

# ONNX Runtime computes these on the CPU on purpose, because their results are tensors' shapes.
SHAPE_OPERATORS: Final = frozenset(
    {
        "Cast",
        "Concat",
        "ConstantOfShape",
        "Gather",
        "Range",
        "Shape",
        "Size",
        "Slice",
        "Squeeze",
        "Unsqueeze",
    }
)

# The configuration of every session, whatever its provider.
SESSION_ENTRIES: Final[Options] = {
    # A thread that spins while it waits takes the core from one that decodes.
    "session.intra_op.allow_spinning": "0",
    "session.record_ep_graph_assignment_info": "1",
}


@dataclass(frozen=True)
class BatchSizes:
    """The ascending batch `sizes` that run; any other batch is filled up to the next size."""

    sizes: tuple[int, ...]

    @classmethod
    def up_to(cls, largest: int) -> "BatchSizes":
        """Return one view, an image's views, twice as many and so on, up to `largest` views."""
        sizes = {1, largest}
        size = VIEWS
        while size < largest:
            sizes.add(size)
            size *= 2
        return cls(tuple(sorted(sizes)))

    @property
    def largest(self) -> int:
        return self.sizes[-1]

    def padded(self, views: int) -> int:
        """Return the smallest size that holds 1 to `largest` views."""
        return next(size for size in self.sizes if size >= views)


@dataclass(frozen=True)
class Device:
    """A provider and its limits.

    `threads` compute one batch on the CPU, by default one for each core. `memory_bytes` limits the
    GPU memory of ONNX Runtime, `batch_views` is the largest batch that a GPU runs at once, and
    `engines` is the folder that keeps TensorRT's engines between starts.

    Raises `UserError` if the provider cannot do what is asked of it.
    """

    provider: Provider = Provider.CPU
    threads: int | None = None
    precision: Precision = Precision.FP32
    memory_bytes: int | None = None
    batch_views: int = 40
    engines: Path | None = None

    def __post_init__(self) -> None:
        if self.precision is Precision.FP16 and self.provider is not Provider.TENSORRT:
            raise UserError(
                f"provider {self.provider} computes a bundle in fp32 only: set the provider to "
                "tensorrt, or the precision to fp32"
            )
        if self.memory_bytes is not None and self.provider not in GPU:
            raise UserError(
                f"provider {self.provider} has no memory limit: set the provider to cuda or "
                "tensorrt, or leave device_memory_bytes out"
            )

    @property
    def batches(self) -> BatchSizes | None:
        """The only batch sizes that run; None if any size does."""
        return BatchSizes.up_to(self.batch_views) if self.provider in GPU else None

    def golden_tolerance(self, graph: Precision) -> float:
        """Return the largest difference of a golden logit that is arithmetic and not an error.

        `graph` is the precision of the graph that this device runs.
        """
        return max(GOLDEN_TOLERANCES[graph], GOLDEN_TOLERANCES[self.precision])


def execution_providers(
    device: Device, side: int | None, engines: Path | None
) -> list[tuple[str, Options]]:
    """Return a session's providers, the wanted one first, and the options of each.

    `side` is S of the graph's `pixels` uint8 [N, S, S, 3], if that is its input. `engines` is the
    folder of this graph's TensorRT engine.
    """
    wanted = EXECUTION_PROVIDERS[device.provider]
    match device.provider:
        case Provider.CPU:
            return [(wanted, {})]
        case Provider.CUDA:
            return [(wanted, cuda_options(device))]
        case Provider.TENSORRT:
            # The GPU also computes what TensorRT does not take.
            fallback = EXECUTION_PROVIDERS[Provider.CUDA]
            tensorrt = tensorrt_options(device, side, engines)
            return [(wanted, tensorrt), (fallback, cuda_options(device))]
        case Provider.OPENVINO:
            # By default it computes in bfloat16 if the CPU has it.
            precision = {"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}
            options = {"device_type": "CPU", "load_config": json.dumps(precision)}
            if device.threads is not None:
                options["num_of_threads"] = str(device.threads)
            return [(wanted, options)]


def cuda_options(device: Device) -> Options:
    """Return the options of the CUDA provider."""
    # The default arena doubles whenever it grows, and TF32 keeps only ten bits of a factor.
    options = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
    if device.memory_bytes is not None:
        options["gpu_mem_limit"] = str(device.memory_bytes)
    return options


def tensorrt_options(device: Device, side: int | None, engines: Path | None) -> Options:
    """Return the options of the TensorRT provider; see `execution_providers`."""
    options = {"trt_fp16_enable": str(int(device.precision is Precision.FP16))}
    if device.memory_bytes is not None:
        options["trt_max_workspace_size"] = str(device.memory_bytes)
    if engines is not None:
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engines),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(engines),
        }
    if side is not None:
        # One engine for all sizes, built at once, and not again for each size that is new to it.
        largest = BatchSizes.up_to(device.batch_views).largest
        for bound, size in (("min", 1), ("opt", largest), ("max", largest)):
            options[f"trt_profile_{bound}_shapes"] = f"pixels:{size}x{side}x{side}x3"
    return options


def misplaced(nodes: Iterable[tuple[str, str]], wanted: str) -> Counter[str]:
    """Count the operators that run on the CPU instead of the provider `wanted`.

    `nodes` are (provider, operator); those that compute shapes belong on the CPU. Raises
    `UserError` if none at all runs on `wanted`.
    """
    pairs = list(nodes)
    if all(provider != wanted for provider, _ in pairs):
        raise UserError(f"{wanted} takes no part of the graph: choose another provider")
    cpu = EXECUTION_PROVIDERS[Provider.CPU]
    return Counter(
        operator
        for provider, operator in pairs
        if provider == cpu and operator not in SHAPE_OPERATORS
    )
