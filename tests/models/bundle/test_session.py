"""Tests of a session without a GPU: its memory, padding and errors, and its folder of engines.

An engine is whole or built again, by one process at a time.
"""

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.device import EXECUTION_PROVIDERS, PACKAGES, Device, Provider
from taillift.models.bundle.folder import MODEL
from taillift.models.bundle.session import (
    BoundGraph,
    Session,
    engine_folder,
    engine_key,
    load_graph,
    padded,
    placement,
)
from taillift.models.errors import UserError
from tests.support.palette import CLASSES, SIZE, canvases, logits_of

COLOURS = [colour for colour, _ in CLASSES.values()]


def test_a_bound_graph_answers_each_batch_with_its_own_rows(bundle: Path) -> None:
    bound = BoundGraph(load_graph(bundle / MODEL), "cpu")
    for colours in (COLOURS[:2], COLOURS[2:4], COLOURS, COLOURS[4:6]):
        outputs = bound.run(canvases(colours))
        np.testing.assert_allclose(outputs.logits, logits_of(colours), atol=1e-4)
        assert outputs.features.shape == (len(colours), 3)


def test_outputs_of_a_bound_graph_outlive_the_next_batch(bundle: Path) -> None:
    bound = BoundGraph(load_graph(bundle / MODEL), "cpu")
    first = bound.run(canvases(COLOURS[:2])).logits
    bound.run(canvases(COLOURS[2:4]))
    np.testing.assert_allclose(first, logits_of(COLOURS[:2]), atol=1e-4)


@given(st.integers(1, 6), st.integers(0, 6))
def test_padding_adds_black_views_behind(count: int, more: int) -> None:
    pixels = np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    filled = padded(pixels, count + more)
    assert filled.dtype == np.uint8
    np.testing.assert_array_equal(filled[:count], pixels)
    np.testing.assert_array_equal(filled[count:], np.zeros((more, SIZE, SIZE, 3)))


def test_every_node_has_a_place(bundle: Path) -> None:
    nodes = placement(load_graph(bundle / MODEL))
    assert {provider for provider, _ in nodes} == {"CPUExecutionProvider"}
    assert Counter(operator for _, operator in nodes)["Gemm"] == 1


@pytest.mark.parametrize("provider", [Provider.CUDA, Provider.TENSORRT, Provider.OPENVINO])
def test_a_provider_that_is_not_installed_is_refused_with_what_to_install(
    bundle: Path, provider: Provider
) -> None:
    if EXECUTION_PROVIDERS[provider] in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has it")
    with pytest.raises(UserError) as caught:
        Session(bundle / MODEL, Device(provider), SIZE)
    assert f"has no {EXECUTION_PROVIDERS[provider]}" in str(caught.value)
    assert PACKAGES[provider] in str(caught.value)
    assert "\n" not in str(caught.value)


def build_engine(root: Path, content: str = "engine") -> bool:
    """Use the folder, and return whether an engine was there already."""
    with engine_folder(root, "key") as folder:
        engine = folder / "engine.bin"
        existed = engine.exists()
        engine.write_text(content)
        return existed


def test_an_engine_is_kept_for_the_next_start(tmp_path: Path) -> None:
    assert not build_engine(tmp_path / "engines")
    assert build_engine(tmp_path / "engines")


def test_the_engine_of_a_start_that_failed_is_removed(tmp_path: Path) -> None:
    build_engine(tmp_path)

    def fail() -> None:
        with engine_folder(tmp_path, "key"):
            raise RuntimeError("it does not load")

    with pytest.raises(RuntimeError):
        fail()
    assert not build_engine(tmp_path)


def test_the_engine_of_a_process_that_died_is_built_again(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from taillift.models.bundle.session import engine_folder\n"
        "with engine_folder(Path(sys.argv[1]), 'key') as folder:\n"
        "    (folder / 'engine.bin').write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert dead.returncode == -9
    assert (tmp_path / "key" / "engine.bin").exists()
    assert not build_engine(tmp_path)
    assert build_engine(tmp_path)


def test_the_second_waits_for_the_first_and_finds_its_engine(tmp_path: Path) -> None:
    existed: list[bool] = []
    with engine_folder(tmp_path, "key") as folder:
        waiting = threading.Thread(target=lambda: existed.append(build_engine(tmp_path)))
        waiting.start()
        waiting.join(timeout=0.1)
        assert waiting.is_alive()
        (folder / "engine.bin").write_text("engine")
    waiting.join(timeout=10)
    assert existed == [True]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot hold TensorRT's engines"):
        build_engine(tmp_path / "file")


def test_another_graph_or_another_condition_has_another_engine(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"a")
    second.write_bytes(b"b")
    keys = {engine_key(first, "fp32"), engine_key(first, "fp16"), engine_key(second, "fp32")}
    assert len(keys) == 3
    assert engine_key(first, "fp16") in keys
