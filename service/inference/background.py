"""Work at the lowest priority: it takes little more than the time that nothing else wants.

Elsewhere than on Linux, where threads have priorities, it is work like any other.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread, get_native_id
from time import sleep
from typing import Final, TypeVar

T = TypeVar("T")

TASKS: Final = Path("/proc/self/task")
# Seconds between two looks whether the threads are there.
PAUSE: Final = 0.001
# With SCHED_IDLE, which is lower still, requests are not faster, and on a machine that is busy for
# long the work hardly gets a core.
LOWEST: Final = 19


def run_in_background(work: Callable[[], T], foreground: int = 0) -> T:
    """Return the result of `work`, which a thread of the lowest priority does meanwhile.

    Threads that `work` starts inherit its priority, and a process without privileges cannot raise
    it again. So `work` is in the background only once it has started `foreground` threads, which
    are threads like any other. Raises whatever `work` raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        if foreground:
            rename(get_native_id(), thread_name(get_native_id()))
        else:
            lower(get_native_id())
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run, name="background", daemon=True)
    thread.start()
    if foreground:
        lower_once_started(thread, foreground)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def lower_once_started(thread: Thread, count: int) -> None:
    """Lower a thread as soon as it has started `count` others, which have inherited its name."""
    assert thread.native_id is not None
    while thread.is_alive():
        if named(thread_name(thread.native_id)) > count:
            lower(thread.native_id)
            return
        sleep(PAUSE)


def lower(thread: int) -> None:
    """Give a thread the lowest priority."""
    if sys.platform == "linux":
        with suppress(OSError):  # It has ended just now, or a sandbox refuses.
            os.setpriority(os.PRIO_PROCESS, thread, LOWEST)


def thread_name(thread: int) -> str:
    """Return the name by which the threads that a thread starts are found: at most 15 letters."""
    return f"graph {thread}"


def rename(thread: int, name: str) -> None:
    """Give a thread a name, which those that it starts inherit."""
    with suppress(OSError):  # There is no /proc, or a sandbox refuses.
        (TASKS / str(thread) / "comm").write_text(name)


def named(name: str) -> int:
    """Return how many threads of this process have a name."""
    count = 0
    for task in TASKS.glob("*/comm"):
        with suppress(OSError):  # It has ended just now.
            count += task.read_text().strip() == name
    return count
