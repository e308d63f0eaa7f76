"""The GPU's command, as far as it goes without a GPU."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu
from taillift.models.bundle.device import Device
from taillift.models.bundle.folder import MODEL
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.bundle.session import Session
from tests.support.palette import SIZE

ROOT = Path(gpu.__file__).parent.parent


def test_it_says_in_one_line_that_there_is_no_gpu(bundle: Path) -> None:
    if gpu.gpus():
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "benchmarks.gpu", str(bundle)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("no GPU here")
    assert run.stderr.count("\n") == 1


def test_speed_counts_views(bundle: Path) -> None:
    session = Session(bundle / MODEL)
    assert gpu.speed(session, 10, SIZE, seconds=0.05) > 10


def test_random_sizes_use_every_size_and_no_other() -> None:
    sizes = gpu.random_sizes(20)
    assert len(sizes) == gpu.BATCHES
    assert set(sizes) == set(range(1, 21))


def test_many_views_are_different() -> None:
    views = gpu.many_views(gpu.noise(3, SIZE), 8)
    assert views.shape == (8, SIZE, SIZE, 3)
    assert len(np.unique(views, axis=0)) == 8


def test_agreement_is_of_the_largest_logits() -> None:
    first = np.array([[1, 2], [3, 1], [0, 1], [1, 0]], np.float32)
    second = first + np.array([[0, 0], [0, 2.5], [0, 0], [0, 0]], np.float32)
    assert gpu.compare(first, second) == (0.75, 2.5)


def test_fp16_of_cuda_is_the_bundles_own(bundle: Path, tmp_path: Path) -> None:
    session = Session(bundle / MODEL)
    assert gpu.half_session(bundle, Device()) is None
    assert gpu.agreement(bundle, session).startswith("not measured: model.fp16.onnx")
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / FILES[Precision.FP16]).write_bytes((bundle / MODEL).read_bytes())
    assert gpu.agreement(tmp_path, session).startswith("the same class for 100.0% of 200 views")
