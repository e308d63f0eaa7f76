"""Turns on the device, which several versions of a model share, and work in the background."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread, get_native_id
from time import monotonic, sleep
from typing import Final, TypeVar

T = TypeVar("T")

# How long a pass of a version that is loading waits at most for a moment without requests, ...
PATIENCE: Final = 0.5
# ... and how often it looks.
PAUSE: Final = 0.002

LEAST_PRIORITY: Final = 19


class DeviceTurns:
    """One pass at a time. `idle` tells, from any thread, whether no request waits for anything."""

    def __init__(self, idle: Callable[[], bool] = lambda: True) -> None:
        self._idle = idle
        self._lock = Lock()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Hold the device during the block, after at most the pass that is running."""
        with self._lock:
            yield

    @contextmanager
    def when_idle(self) -> Iterator[None]:
        """Hold the device during the block, from a moment without requests on.

        If none comes within `PATIENCE` seconds, requests wait for this one pass.
        """
        end = monotonic() + PATIENCE
        while not self._idle() and monotonic() < end:
            sleep(PAUSE)
        with self._lock:
            yield


def run_niced(work: Callable[[], T]) -> T:
    """Return the result of `work`, which a thread of the least priority does meanwhile.

    ONNX Runtime's own threads would inherit the priority and keep it, so no session may be made in
    `work`. Raises whatever `work` raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        if hasattr(os, "setpriority"):
            # On Linux a priority is that of a thread.
            os.setpriority(os.PRIO_PROCESS, get_native_id(), LEAST_PRIORITY)
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run, name="background", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
