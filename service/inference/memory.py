"""Memory: what this process may still take, what a bundle will take, and giving it back."""

import ctypes
import gc
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.errors import UserError

# A loaded graph, its arena and its batches take about 4.6 times the file, measured on the demo
# bundle (benchmarks/swaps.py prints the current figure).
FIRST_FACTOR: Final = 6.0
# Over what a graph of the same size took the last time.
MARGIN: Final = 1.2

# The option of glibc's mallopt.
ARENA_MAX: Final = -8

CGROUP: Final = Path("/sys/fs/cgroup")
MEMINFO: Final = Path("/proc/meminfo")
STATUS: Final = Path("/proc/self/status")


class OverBudgetError(UserError):
    """A version that would not fit into memory next to those that are loaded."""


def status_bytes(name: str) -> int:
    """Return a size in /proc/self/status, such as VmRSS, in bytes; 0 if there is none."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    sizes = [int(line.split()[1]) for line in lines if line.startswith(f"{name}:")]
    return sizes[0] * 2**10 if sizes else 0


def available_bytes() -> int:
    """Return the bytes that this process may still take.

    The smallest of what the machine, the control group and the limit on address space leave.
    """
    rooms = [machine_room(), group_room(), address_room()]
    return max(0, min(room for room in rooms if room is not None))


def machine_room() -> int:
    """Return the memory that the kernel estimates a new program could have."""
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 2**10
    raise RuntimeError(f"{MEMINFO} has no MemAvailable")


def group_room() -> int | None:
    """Return what the control group leaves (version 2); None without a limit.

    Files in the cache that nobody has used lately are given back by themselves.
    """
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        rows = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + int(rows["inactive_file"])
    except (OSError, ValueError, KeyError):  # "max", or version 1.
        return None


def address_room() -> int | None:
    """Return what RLIMIT_AS leaves; None without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit - status_bytes("VmSize")


def estimate_bytes(
    manifest: Manifest, precisions: frozenset[Precision], taken: Mapping[int, int]
) -> int:
    """Return the bytes that the graphs of these precisions may take once they are loaded.

    `taken` has what graphs took before, by the size of their files; both in bytes.
    """
    total = 0.0
    for precision in precisions & manifest.variants.keys():
        size = manifest.files[FILES[precision]].size
        total += MARGIN * taken[size] if size in taken else FIRST_FACTOR * size
    return round(total)


def check_budget(needed: int, number: int | None, freed: int | None = None) -> None:
    """Raise `OverBudgetError` if `needed` bytes are more than what is left.

    If the version that is served is closed before, `freed` are the bytes that this gives.
    """
    left = available_bytes() + (freed or 0)
    if needed <= left:
        return
    place, cure = "next to the one that is served", ", or let it replace that one (--swap replace)"
    if freed is not None:
        place, cure = "in place of the one that is served", ""
    raise OverBudgetError(
        f"version {number} needs about {needed / 2**20:,.0f} MB {place}, and "
        f"{left / 2**20:,.0f} MB are left: give the service more memory{cure}"
    )


def limit_arenas(count: int) -> None:
    """Let all threads share so many heaps, before any is started; only glibc has several.

    Each thread that loads or runs a version would otherwise leave holes in a heap of its own, and
    memory would grow from swap to swap (docs/versions.md has the figures).
    """
    if (call := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        call(ARENA_MAX, count)


def shorten_collections() -> None:
    """Let garbage collections leave out what is alive now: the modules, which never go.

    A whole collection took 40 ms with them, and all threads wait for it. There is none before, for
    the sake of the start: what little garbage the imports have left stays.
    """
    gc.freeze()


def give_back() -> None:
    """Collect what is unreachable, and give free memory back to the system."""
    gc.collect()
    trim()


def trim() -> None:
    """Give free memory back to the system; only glibc needs to be asked."""
    if (call := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        call(0)
