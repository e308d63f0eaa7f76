"""Check and measure a bundle on this machine's GPU.

    python -m benchmarks.gpu BUNDLE [--provider cuda|tensorrt]

Checks that every node but those of shapes is on the GPU, that the golden logits come out, and that
fp16 agrees with fp32; then measures the views per second of each batch size that the service uses,
and the GPU's memory before and after 1,000 batches of random sizes. Nothing else should use the
GPU meanwhile. Ends with 1 where a check fails and with 2 where there is no GPU.
"""

import argparse
import ctypes
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from taillift.models.bundle.arrays import Floats, Pixels
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.device import Device, Provider
from taillift.models.bundle.folder import MODEL, read_golden, read_manifest
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError

SECONDS: Final = 2.0
BATCHES: Final = 1_000
AGREEMENT_VIEWS: Final = 200
# Fewer equal first classes than this, and fp16 is another model.
MIN_AGREEMENT: Final = 0.99
# ONNX Runtime takes memory in pieces of this size, and may take one for work of a kind still new.
PIECE: Final = 2 * 2**20

Row = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--provider", choices=["cuda", "tensorrt"], default="cuda")
    parser.add_argument("--memory-bytes", type=int, help="as in TAILLIFT_DEVICE_MEMORY_BYTES")
    parser.add_argument("--batch-views", type=int, default=40)
    parser.add_argument("--engines", type=Path, help="folder of TensorRT's engines")
    options = parser.parse_args()
    if gpus() == 0:
        print("no GPU here: the driver finds none, so there is nothing to check", file=sys.stderr)
        sys.exit(2)
    device = Device(
        Provider(options.provider),
        memory_bytes=options.memory_bytes,
        batch_views=options.batch_views,
        engines=options.engines,
    )
    try:
        table = Table("", f"{options.bundle} on {device.provider}")
        for name, value in rows(options.bundle, device):
            table.add_row(name, value)
        Console().print(table)
    except UserError as error:
        sys.exit(f"error: {error}")


def rows(bundle: Path, device: Device) -> Iterator[Row]:
    """Each check and each measure in turn; raises `UserError` where a check fails."""
    start = perf_counter()
    session = Classifier.open(bundle, device).session
    yield "start, with provider, placement and golden logits right", f"{seconds_since(start)} s"
    places = Counter(provider for provider, _ in session.placement())
    yield "nodes", ", ".join(f"{count} on {name}" for name, count in places.most_common())
    yield "fp16", agreement(bundle, session)
    side = read_manifest(bundle).preprocessing.size
    assert session.batches is not None
    for size in session.batches.sizes:
        yield f"views/s in batches of {size}", f"{speed(session, size, side):,.0f}"
    growth = memory_growth(session, session.batches.largest, side)
    yield f"memory after {BATCHES:,} batches", f"{growth / 2**20:+.1f} MiB"
    if growth > PIECE:
        raise UserError(f"the GPU's memory grew by {growth:,} bytes over {BATCHES:,} batches")


def seconds_since(start: float) -> str:
    return f"{perf_counter() - start:.1f}"


def agreement(bundle: Path, session: Session) -> str:
    """How near fp16 comes to fp32; raises `UserError` where that is not near enough."""
    half = half_session(bundle, session.device)
    if half is None:
        return (
            f"not measured: {FILES[Precision.FP16]} is not there, and cuda has no fp16 of its own"
        )
    views = many_views(read_golden(bundle)[0], AGREEMENT_VIEWS)
    share, difference = compare(session.run(views).logits, half.run(views).logits)
    if share < MIN_AGREEMENT:
        raise UserError(f"fp16 names the same class for {share:.1%} of {len(views)} views only")
    return f"the same class for {share:.1%} of {len(views)} views, logits within {difference:.2g}"


def half_session(bundle: Path, device: Device) -> Session | None:
    """The bundle in fp16: TensorRT makes it itself, CUDA needs the bundle's own variant."""
    side = read_manifest(bundle).preprocessing.size
    if device.provider is Provider.TENSORRT:
        return Session(bundle / MODEL, replace(device, precision=Precision.FP16), side)
    path = bundle / FILES[Precision.FP16]
    return Session(path, device, side) if path.exists() else None


def many_views(views: Pixels, count: int) -> Pixels:
    """`count` different views: those given, and those shifted around."""
    shifted = [np.roll(views, 7 * step, axis=2) for step in range(-(-count // len(views)))]
    return np.concatenate(shifted)[:count]


def compare(first: Floats, second: Floats) -> tuple[float, float]:
    """The share of rows with the same largest logit, and the largest difference of any two."""
    same = first.argmax(axis=1) == second.argmax(axis=1)
    return float(same.mean()), float(np.abs(first - second).max())


def speed(session: Session, size: int, side: int, seconds: float = SECONDS) -> float:
    """Views per second in batches of `size`, with the copies to the device and back."""
    pixels = noise(size, side)
    session.run(pixels)
    start, count = perf_counter(), 0
    while perf_counter() - start < seconds:
        session.run(pixels)
        count += size
    return count / (perf_counter() - start)


def memory_growth(session: Session, largest: int, side: int) -> int:
    """Bytes of the GPU that `BATCHES` batches of 1 to `largest` views took for good."""
    pixels = noise(largest, side)
    session.run(pixels)
    before = free_bytes()
    for size in random_sizes(largest):
        session.run(pixels[:size])
    return before - free_bytes()


def random_sizes(largest: int) -> Sequence[int]:
    sizes: list[int] = np.random.default_rng(0).integers(1, largest + 1, BATCHES).tolist()
    return sizes


def noise(count: int, side: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def gpus() -> int:
    """How many GPUs the NVIDIA driver finds; none where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def free_bytes() -> int:
    """Return the free memory of the first GPU, as its driver reports it."""
    driver = ctypes.CDLL("libcuda.so.1")
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    for failed in (
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
        driver.cuCtxSetCurrent(context),
        driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)),
        driver.cuDevicePrimaryCtxRelease_v2(0),
    ):
        if failed:
            raise UserError(f"the NVIDIA driver does not tell the GPU's memory (error {failed})")
    return free.value


if __name__ == "__main__":
    main()
