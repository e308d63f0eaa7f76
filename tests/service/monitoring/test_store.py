"""The tail file, with which a restart loses nothing."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from taillift.models.errors import UserError
from taillift.service.monitoring.store import Store


def test_saved_arrays_are_loaded_after_a_restart(tmp_path: Path) -> None:
    arrays = {
        "counts": np.arange(6, dtype=np.uint32).reshape(2, 3),
        "number": np.array(7),
        "none": np.zeros((0, 4)),
        "times": np.array([np.nan, 1.5]),
    }
    with Store(tmp_path / "folder" / "tail.db") as store:
        store.save("v1", arrays)
    with Store(tmp_path / "folder" / "tail.db") as store:
        kept = store.load("v1")
        assert store.load("v2") == {}
    assert kept.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(kept[name], array)
        assert kept[name].dtype == array.dtype
    kept["counts"] += 1


def test_each_save_replaces_the_one_before(tmp_path: Path) -> None:
    with Store(tmp_path / "tail.db") as store:
        store.save("v1", {"old": np.ones(2), "both": np.ones(2)})
        store.save("v1", {"new": np.ones(3), "both": np.zeros(2)})
    with Store(tmp_path / "tail.db") as store:
        store.load("v1")
        store.save("v1", {"both": np.zeros(2)})
        kept = store.load("v1")
    assert list(kept) == ["both"]
    assert kept["both"].tolist() == [0, 0]


def test_bundle_versions_are_kept_apart(tmp_path: Path) -> None:
    with Store(tmp_path / "tail.db") as store:
        store.save("v1", {"a": np.ones(2)})
        store.save("v2", {"a": np.zeros(3)})
        store.save("v2", {})
        assert store.load("v1")["a"].tolist() == [1, 1]
        assert store.load("v2") == {}


def test_a_second_writer_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tail.db"
    with Store(path), pytest.raises(UserError, match=r"tail\.db is in use by another process"):
        Store(path)
    Store(path).close()


@pytest.mark.parametrize("content", [b"no database at all" * 500, b"SQLite format 3\0" + b"x" * 99])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tail.db"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tail\.db is damaged \(.*\): move it away") as caught:
        Store(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_damaged_rows_are_found_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tail.db"
    with Store(path) as store:
        store.save("v1", {"a": np.ones(2)})
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE arrays SET data = x'00'")
    database.close()
    with Store(path) as store, pytest.raises(UserError, match="is damaged"):
        store.load("v1")


def test_a_file_of_another_schema_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "tail.db"
    database = sqlite3.connect(path)
    with database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(UserError, match=r"another version of taillift \(schema 99, not 1\)"):
        Store(path)


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"tail\.db cannot be used"):
        Store(tmp_path / "file" / "tail.db")
    with pytest.raises(UserError, match="cannot be used"):
        Store(tmp_path)


def test_a_file_that_is_removed_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "folder" / "tail.db"
    with Store(path) as store:
        store.save("v1", {"a": np.ones(2), "b": np.ones(3)})
        shutil.rmtree(path.parent)
        assert not store.in_place
        store.save("v1", {"a": np.ones(2), "b": np.zeros(3)})
        assert store.in_place
    (line,) = caplog.messages
    assert line == f"{path} was removed or replaced: it is written again"
    with Store(path) as store:
        kept = store.load("v1")
    assert {name: array.tolist() for name, array in kept.items()} == {"a": [1, 1], "b": [0, 0, 0]}


def test_what_another_file_in_its_place_holds_of_other_bundles_is_kept(tmp_path: Path) -> None:
    with Store(tmp_path / "other.db") as other:
        other.save("v1", {"a": np.ones(2), "old": np.ones(2)})
        other.save("v2", {"a": np.ones(4)})
    with Store(tmp_path / "tail.db") as store:
        store.save("v1", {"a": np.zeros(2)})
        (tmp_path / "other.db").replace(tmp_path / "tail.db")
        store.save("v1", {"a": np.zeros(2)})
    with Store(tmp_path / "tail.db") as store:
        assert store.load("v1")["a"].tolist() == [0, 0]
        assert store.load("v2")["a"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("obstacle", ["a folder", "a database of another program"])
def test_a_file_that_cannot_be_made_again_is_one_line_until_it_can(
    tmp_path: Path, obstacle: str
) -> None:
    path = tmp_path / "tail.db"
    with Store(path) as store:
        store.save("v1", {"a": np.ones(2)})
        path.unlink()
        if obstacle == "a folder":
            path.mkdir()
        else:
            path.write_bytes(b"something else" * 100)
        for _ in range(2):
            with pytest.raises(UserError, match=r"tail\.db (cannot be used|is damaged)") as caught:
                store.save("v1", {"a": np.ones(2)})
            assert "\n" not in str(caught.value)
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
        store.save("v1", {"a": np.ones(2)})
    with Store(path) as store:
        assert store.load("v1")["a"].tolist() == [1, 1]


def test_a_process_that_is_killed_leaves_a_complete_save(tmp_path: Path) -> None:
    """Every save writes one number everywhere, so everything that is loaded must be equal."""
    program = """
import sys, numpy as np
from pathlib import Path
from taillift.service.monitoring.store import Store
store = Store(Path(sys.argv[1]))
for number in range(10**6):
    store.save("v", {name: np.full(20_000, number) for name in "abcd"})
    print(number, flush=True)
"""
    path = tmp_path / "tail.db"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        saved = -1
        while saved < 20:
            saved = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    with Store(path) as store:
        kept = store.load("v")
    (number,) = set(np.concatenate(list(kept.values())).tolist())
    assert number >= saved
