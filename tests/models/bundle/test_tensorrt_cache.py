"""Tests that a folder of engines is whole or built again, by one process at a time."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from taillift.models.bundle.tensorrt_cache import engine_folder, engine_key
from taillift.models.errors import UserError


def build(root: Path, content: str = "engine") -> bool:
    """Use the folder, and return whether an engine was there already."""
    with engine_folder(root, "key") as folder:
        engine = folder / "engine.bin"
        existed = engine.exists()
        engine.write_text(content)
        return existed


def test_an_engine_is_kept_for_the_next_start(tmp_path: Path) -> None:
    assert not build(tmp_path / "engines")
    assert build(tmp_path / "engines")


def test_the_engine_of_a_start_that_failed_is_removed(tmp_path: Path) -> None:
    build(tmp_path)

    def fail() -> None:
        with engine_folder(tmp_path, "key"):
            raise RuntimeError("it does not load")

    with pytest.raises(RuntimeError):
        fail()
    assert not build(tmp_path)


def test_the_engine_of_a_process_that_died_is_built_again(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from taillift.models.bundle.tensorrt_cache import engine_folder\n"
        "with engine_folder(Path(sys.argv[1]), 'key') as folder:\n"
        "    (folder / 'engine.bin').write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert dead.returncode == -9
    assert (tmp_path / "key" / "engine.bin").exists()
    assert not build(tmp_path)
    assert build(tmp_path)


def test_the_second_waits_for_the_first_and_finds_its_engine(tmp_path: Path) -> None:
    existed: list[bool] = []
    with engine_folder(tmp_path, "key") as folder:
        waiting = threading.Thread(target=lambda: existed.append(build(tmp_path)))
        waiting.start()
        waiting.join(timeout=0.1)
        assert waiting.is_alive()
        (folder / "engine.bin").write_text("engine")
    waiting.join(timeout=10)
    assert existed == [True]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot hold TensorRT's engines"):
        build(tmp_path / "file")


def test_another_graph_or_another_condition_has_another_engine(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"a")
    second.write_bytes(b"b")
    keys = {engine_key(first, "fp32"), engine_key(first, "fp16"), engine_key(second, "fp32")}
    assert len(keys) == 3
    assert engine_key(first, "fp16") in keys
