"""Tests of work in the background: what it runs on, and what the threads that it starts run on."""

import os
import sys
import threading
from pathlib import Path

import pytest

from taillift.models.bundle.device import Device
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.bundle.session import Session
from taillift.service.inference.background import LOWEST, TASKS, run_in_background
from tests.support.serving import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux")


def priority(thread: int = 0) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread or threading.get_native_id())


def threads() -> set[int]:
    return {int(task.name) for task in TASKS.iterdir()}


def test_work_has_the_lowest_priority_and_the_caller_has_not() -> None:
    own = priority()
    assert run_in_background(priority) == LOWEST
    assert priority() == own < LOWEST


def test_an_error_of_the_work_is_raised() -> None:
    def fail() -> None:
        raise KeyError("lost")

    for foreground in (0, 1):
        with pytest.raises(KeyError, match="lost"):
            run_in_background(fail, foreground)


def test_the_threads_of_a_session_that_is_made_in_the_background_serve_like_any_other(
    bundle: Path,
) -> None:
    graph = bundle / FILES[Precision.FP32]
    # The first session of a process also starts a thread of the library.
    Session(graph, Device(threads=1)).close()
    before = threads()
    session = run_in_background(lambda: Session(graph, Device(threads=4)), foreground=3)
    # The thread that made it may still be there for a moment.
    until(lambda: len(threads() - before) == 3)
    made = threads() - before
    assert {priority(thread) for thread in made} == {priority()}
    session.close()


def test_work_is_in_the_background_once_its_threads_are_there() -> None:
    end = threading.Event()
    priorities = []

    def work() -> list[threading.Thread]:
        priorities.append(priority())
        started = [threading.Thread(target=end.wait) for _ in range(2)]
        for thread in started:
            thread.start()
        until(lambda: priority() == LOWEST)
        priorities.append(priority())
        return started

    started = run_in_background(work, foreground=2)
    try:
        assert priorities == [priority(), LOWEST]
        assert [priority(thread.native_id or 0) for thread in started] == [priority()] * 2
    finally:
        end.set()
