"""Tests of the array types and of `chunks`."""

import subprocess
import sys

from taillift.models.bundle.arrays import chunks


def test_chunks_are_full_but_for_the_last() -> None:
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(chunks([], 2)) == []


def test_the_photos_for_training_need_no_onnx_runtime() -> None:
    code = "import taillift.training.fit.inputs, sys; print('onnxruntime' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
