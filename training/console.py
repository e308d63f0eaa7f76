"""Progress bars, lines where there is no terminal, and which process shows them."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import track as rich_track

Item = TypeVar("Item")

# Without a terminal, a line of progress is written at most this often, in seconds.
LINE_EVERY: Final = 20.0


def is_first() -> bool:
    """Return whether this is the only process, or the one of several that writes and prints.

    `torchrun` numbers the processes that it starts in the environment variable RANK.
    """
    return int(os.environ.get("RANK", 0)) == 0


def is_interactive() -> bool:
    """Return whether this process draws progress bars: it is the first, and on a terminal."""
    return is_first() and Console().is_terminal


def note(line: str) -> None:
    """Write a line for people to stderr, from the first process alone."""
    if is_first():
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a duration in words, no more exact than an estimate can be, such as "about 3 min"."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {10 * round(seconds / 10)} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def track(items: Iterable[Item], title: str, total: int) -> Iterable[Item]:
    """Return `items` with a progress bar, which disappears after the last of them.

    Without a terminal there are lines of progress instead.
    """
    if is_interactive():
        return rich_track(items, title, total, transient=True)
    return _with_lines(items, title, total)


@contextmanager
def steps_bar(title: str, steps: int, done: int) -> Iterator[Callable[[int, str], None]]:
    """Show the steps of a training run, `done` of them from before; without a terminal in lines.

    Yields a function that takes the number of finished steps and a text such as the loss.
    """
    if not is_interactive():
        yield ProgressLines(title, steps, done).update
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(title, total=steps, completed=done, text="")
        yield lambda completed, text: progress.update(task, completed=completed, text=text)


class ProgressLines:
    """Lines that say how much of `total` is done and how long the rest takes.

    `done` was done before, and tells nothing about the speed.
    """

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self._title = title
        self._total = total
        self._before = done
        self._start = self._written = time.monotonic()

    def update(self, done: int, text: str = "") -> None:
        """Write a line with the `text` if the last one is old enough."""
        now = time.monotonic()
        if done <= self._before or now - self._written < LINE_EVERY:
            return
        self._written = now
        left = (self._total - done) * (now - self._start) / (done - self._before)
        parts = (f"{self._title}: {done:,} of {self._total:,}", text, f"{duration(left)} left")
        note(", ".join(part for part in parts if part))


def _with_lines(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    lines = ProgressLines(title, total)
    for done, item in enumerate(items):
        lines.update(done)
        yield item
