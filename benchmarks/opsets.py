"""How fast two graphs of one model run, such as a bundle's before and after a change.

    python -m benchmarks.opsets old/model.onnx new/model.onnx
    python -m benchmarks.opsets model.onnx model.onnx --provider openvino

Both take turns on one thread, each first in every other round, and the processor time of this
process counts, so other load on the machine matters little. The medians of the rounds are shown.
The second graph runs on the provider that is named.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnx

from benchmarks.tables import markdown
from taillift.models.bundle.device import Device, Provider
from taillift.models.bundle.session import Session

BATCHES = (1, 5, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graphs", type=Path, nargs=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--provider", choices=list(map(str, Provider)), default="cpu")
    options = parser.parse_args()
    size = side(options.graphs[0])
    devices = [Device(threads=1), Device(Provider(options.provider), threads=1)]
    sessions = [
        Session(path, device, size) for path, device in zip(options.graphs, devices, strict=True)
    ]
    random, rows, far = np.random.default_rng(0), list[list[str]](), 0.0
    for batch in BATCHES:
        pixels = random.integers(0, 256, (batch, size, size, 3), np.uint8)
        logits = [one.run(pixels).logits for one in sessions]
        far = max(far, float(np.abs(logits[0] - logits[1]).max()))
        seconds = np.empty((options.rounds, 2))
        for number, row in enumerate(seconds):
            for index in (0, 1) if number % 2 else (1, 0):
                start = time.process_time()
                sessions[index].run(pixels)
                row[index] = time.process_time() - start
        speeds = [f"{speed:.1f}" for speed in np.median(batch / seconds, axis=0)]
        ratio = np.median(seconds[:, 0] / seconds[:, 1])
        rows.append([str(batch), *speeds, f"{ratio:.2f}"])
    names = [
        f"opset {opset(path)}, {device.provider}, views a second"
        for path, device in zip(options.graphs, devices, strict=True)
    ]
    print(markdown(["views", *names, "ratio"], rows))
    print(f"\nlogits differ by at most {far:.1e}")


def side(path: Path) -> int:
    """Return the side S of the views uint8 [N, S, S, 3] that a graph takes."""
    (pixels,) = onnx.load(str(path)).graph.input
    return int(pixels.type.tensor_type.shape.dim[1].dim_value)


def opset(path: Path) -> int:
    """Return the version of the standard operators in a graph."""
    (standard,) = (one for one in onnx.load(str(path)).opset_import if not one.domain)
    return int(standard.version)


if __name__ == "__main__":
    main()
