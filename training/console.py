"""Progress bars, where there is a terminal to draw them on."""

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


def track(items: Iterable[Item], title: str, total: int) -> Iterable[Item]:
    """A bar over `items`, gone when they are."""
    return rich_track(items, title, total, transient=True, disable=not _is_shown())


def epochs_bar(title: str, epochs: int) -> Progress:
    """A bar over epochs that shows the field `loss`, its one task already added."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        transient=True,
        disable=not _is_shown(),
    )
    progress.add_task(title, total=epochs, loss=math.nan)
    return progress


def _is_shown() -> bool:
    # Of several processes that train together, `torchrun` gives the first one the rank 0.
    return os.environ.get("RANK", "0") == "0" and Console().is_terminal
