"""Progress bars, and whether this process is the one that shows them."""

import math
import os
from collections.abc import Iterable
from typing import TypeVar

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


def is_first() -> bool:
    """Return whether this is the only process, or the one of several that writes and prints.

    `torchrun` numbers the processes that it starts in the environment variable RANK.
    """
    return int(os.environ.get("RANK", 0)) == 0


def is_interactive() -> bool:
    """Return whether this process draws progress bars: it is the first, and on a terminal."""
    return is_first() and Console().is_terminal


def track(items: Iterable[Item], title: str, total: int) -> Iterable[Item]:
    """Return `items` with a progress bar, which disappears after the last of them."""
    return rich_track(items, title, total, transient=True, disable=not is_interactive())


def epochs_bar(title: str, epochs: int) -> Progress:
    """Return a progress bar over epochs, with one task that has the field `loss`."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        transient=True,
        disable=not is_interactive(),
    )
    progress.add_task(title, total=epochs, loss=math.nan)
    return progress
