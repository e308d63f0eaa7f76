"""Arrays in the cache are whole or not used, fit the budget, and survive several processes."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from taillift.models.errors import UserError
from taillift.training.data.cache import ArrayCache, cache_budget

FEATURES = np.arange(600, dtype=np.float16).reshape(100, 2, 3)
# A file is a little larger than its array.
FILE = FEATURES.nbytes + 300


@pytest.fixture(autouse=True)
def default_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of a user who has set none."""
    monkeypatch.delenv("TAILLIFT_CACHE_GIB")


def kept(cache: Path) -> set[str]:
    return {path.stem for path in (cache / "features").iterdir()}


def used(cache: Path) -> int:
    return sum(path.stat().st_size for path in (cache / "features").iterdir())


def test_an_array_comes_back_as_it_was_and_only_under_its_key() -> None:
    ArrayCache().write("a", FEATURES)
    found = ArrayCache().read("a")
    assert found is not None
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, FEATURES)
    assert ArrayCache().read("b") is None


@pytest.mark.parametrize("byte", [0, 9, 60, 700, -1])
def test_a_damaged_file_is_told_of_and_not_used(
    cache: Path, caplog: pytest.LogCaptureFixture, byte: int
) -> None:
    ArrayCache().write("a", FEATURES)
    path = cache / "features/a.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[byte] ^= 1
    path.write_bytes(damaged)
    assert ArrayCache().read("a") is None
    (line,) = caplog.messages
    assert line.startswith(f"{path} cannot be read (")
    ArrayCache().write("a", FEATURES)
    assert ArrayCache().read("a") is not None, "written again"


@pytest.mark.parametrize("length", [0, 5, 200, 800])
def test_a_file_that_was_cut_off_is_told_of_and_not_used(
    cache: Path, caplog: pytest.LogCaptureFixture, length: int
) -> None:
    ArrayCache().write("a", FEATURES)
    path = cache / "features/a.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert ArrayCache().read("a") is None
    assert len(caplog.messages) == 1


def test_those_used_longest_ago_go_first_and_the_budget_holds(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = ArrayCache(3 * FILE)
    for age, key in enumerate("abc"):
        small.write(key, FEATURES)
        os.utime(cache / f"features/{key}.safetensors", (age, age))
    assert small.read("a") is not None, "which is now the last one used"
    small.write("d", FEATURES)
    assert kept(cache) == {"a", "c", "d"}
    assert used(cache) <= 3 * FILE
    small.write("large", np.zeros(4 * FILE, np.uint8))
    assert kept(cache) == {"a", "c", "d"}
    assert "TAILLIFT_CACHE_GIB" in caplog.messages[0]


def test_what_a_killed_process_has_left_is_removed_after_a_day(cache: Path) -> None:
    old, young = cache / "features/.a.x1", cache / "features/.b.x2"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "a.safetensors").write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    ArrayCache().write("c", FEATURES)
    assert not old.exists()
    assert young.exists()


def test_several_that_write_and_read_at_once_see_whole_arrays(cache: Path) -> None:
    def use(turn: int) -> bool:
        own, key = ArrayCache(3 * FILE), "abcd"[turn % 4]
        own.write(key, FEATURES + turn % 4)
        found = own.read(key)
        return found is None or bool((found == FEATURES + turn % 4).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(24)))
    ArrayCache(3 * FILE).write("e", FEATURES)
    assert used(cache) <= 3 * FILE


def test_a_place_that_cannot_be_written_is_told_once(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_bytes(b"a file")
    own = ArrayCache()
    for key in "ab":
        own.write(key, FEATURES)
        assert own.read(key) is None
    assert len(caplog.messages) == 1


def test_half_of_the_free_disk_stays_free(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    own = ArrayCache()
    own.write("a", np.zeros(20_000, np.uint8))
    own.write("b", np.zeros(50_000, np.uint8))
    assert kept(small_disk / "taillift") == {"a"}
    (line,) = caplog.messages
    assert "free some space on the disk" in line


def test_a_disk_that_becomes_full_costs_only_the_cache(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**40))
    own = ArrayCache()
    own.write("a", np.zeros(20_000, np.uint8))
    own.write("b", np.zeros(80_000, np.uint8))
    assert own.read("a") is not None
    assert own.read("b") is None
    assert kept(small_disk / "taillift") == {"a"}, "nothing half-written is left"
    assert len(caplog.messages) == 1


def test_the_budget_is_a_variable_in_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("", 8 * 2**30), ("0.5", 2**29), ("0", 0), ("-1", 0)):
        monkeypatch.setenv("TAILLIFT_CACHE_GIB", text)
        assert cache_budget() == expected
    for text in ("much", "nan", "inf"):
        monkeypatch.setenv("TAILLIFT_CACHE_GIB", text)
        with pytest.raises(UserError, match=f"TAILLIFT_CACHE_GIB={text}: give a number"):
            cache_budget()


def test_without_a_budget_or_a_home_nothing_is_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ArrayCache(0).write("a", FEATURES)
    assert not (cache / "features").exists()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    homeless_cache = ArrayCache()
    homeless_cache.write("a", FEATURES)
    assert homeless_cache.folder is None
    assert homeless_cache.read("a") is None


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")
