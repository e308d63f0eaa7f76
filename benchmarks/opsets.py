"""How fast ONNX Runtime runs two graphs of one model, such as a bundle's before and after a change.

    python -m benchmarks.opsets old/model.onnx new/model.onnx

Both take turns on one thread, each first in every other round, and the processor time of this
thread counts, so other load on the machine matters little. The medians of the rounds are shown.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.tables import markdown

BATCHES = (1, 5, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graphs", type=Path, nargs=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    sessions = [session(path) for path in options.graphs]
    size = sessions[0].get_inputs()[0].shape[1]
    random, rows, far = np.random.default_rng(0), list[list[str]](), 0.0
    for batch in BATCHES:
        pixels = random.integers(0, 256, (batch, size, size, 3), np.uint8)
        logits = [one.run(["logits"], {"pixels": pixels})[0] for one in sessions]
        far = max(far, float(np.abs(logits[0] - logits[1]).max()))
        seconds = np.empty((options.rounds, 2))
        for number, row in enumerate(seconds):
            for index in (0, 1) if number % 2 else (1, 0):
                start = time.thread_time()
                sessions[index].run(["logits"], {"pixels": pixels})
                row[index] = time.thread_time() - start
        speeds = [f"{speed:.1f}" for speed in np.median(batch / seconds, axis=0)]
        ratio = np.median(seconds[:, 0] / seconds[:, 1])
        rows.append([str(batch), *speeds, f"{ratio:.2f}"])
    names = [f"opset {opset(path)}, views a second" for path in options.graphs]
    print(markdown(["views", *names, "ratio"], rows))
    print(f"\nlogits differ by at most {far:.1e}")


def session(path: Path) -> ort.InferenceSession:
    """Open a graph on this thread alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def opset(path: Path) -> int:
    """Return the version of the standard operators in a graph."""
    (standard,) = (one for one in onnx.load(str(path)).opset_import if not one.domain)
    return int(standard.version)


if __name__ == "__main__":
    main()
