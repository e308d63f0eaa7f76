"""Tests of work in the background: what it runs on, and what the threads that it starts run on."""

import os
import sys
import threading
from pathlib import Path

import pytest

from taillift.models.bundle.device import Device
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.bundle.session import Session
from taillift.service.inference.background import TASKS, run_in_background
from tests.support.serving import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have policies on Linux")


def threads() -> set[int]:
    return {int(task.name) for task in TASKS.iterdir()}


def test_work_runs_only_while_a_core_is_idle_and_the_caller_does_not() -> None:
    assert run_in_background(lambda: os.sched_getscheduler(0)) == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


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
    made = threads() - before
    assert len(made) == 3
    assert {os.sched_getscheduler(thread) for thread in made} == {os.SCHED_OTHER}
    session.close()


def test_work_is_in_the_background_once_its_threads_are_there() -> None:
    end = threading.Event()
    policies = []

    def work() -> list[threading.Thread]:
        policies.append(os.sched_getscheduler(0))
        started = [threading.Thread(target=end.wait) for _ in range(2)]
        for thread in started:
            thread.start()
        until(lambda: os.sched_getscheduler(0) == os.SCHED_IDLE)
        policies.append(os.sched_getscheduler(0))
        return started

    started = run_in_background(work, foreground=2)
    try:
        assert policies == [os.SCHED_OTHER, os.SCHED_IDLE]
        numbers = [thread.native_id or 0 for thread in started]
        assert [os.sched_getscheduler(number) for number in numbers] == [os.SCHED_OTHER] * 2
    finally:
        end.set()
