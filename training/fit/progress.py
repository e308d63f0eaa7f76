"""The progress of a training run: its position, its time, and its curves for TensorBoard."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from taillift.training.console import is_first
from taillift.training.fit.distributed import Precision

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

Item = TypeVar("Item")


@dataclass
class Progress:
    """The position of a run: `done` steps in all, `step` of them in `epoch`, which counts from 0.

    `summed` is the sum of the losses of this epoch's photos so far, `losses` the mean loss of each
    earlier epoch. `waited` of the `seconds` were spent waiting for photos.
    """

    precision: Precision
    done: int = 0
    epoch: int = 0
    step: int = 0
    summed: float = 0.0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    waited: float = 0.0

    def finish_step(self, loss: float, photos: int) -> None:
        """Count a step whose batch had a mean loss of `loss` over so many `photos`."""
        self.done += 1
        self.step += 1
        self.summed += loss * photos

    def finish_epoch(self, photos: int) -> float:
        """Count an epoch of so many `photos` in all, and return its mean loss."""
        self.losses.append(self.summed / photos)
        self.epoch, self.step, self.summed = self.epoch + 1, 0, 0.0
        return self.losses[-1]


class Clock:
    """Measures a run's seconds, which go on from those that its progress has already."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._start = time.perf_counter() - progress.seconds

    def read(self) -> None:
        """Write the seconds so far to the progress."""
        self._progress.seconds = time.perf_counter() - self._start

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield `items`; the time until each of them is there counts as waiting."""
        source = iter(items)
        while True:
            start = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            self._progress.waited += time.perf_counter() - start
            yield item


class Curves:
    """Scalars by step, which the first process writes to event files in `folder`.

    `folder` None writes nothing. Curves of an earlier run in the folder are removed, except up to
    `start`, the step that this run continues from.
    """

    _writer: "SummaryWriter | None"

    def __init__(self, folder: Path | None = None, start: int = 0) -> None:
        self._writer = None
        if folder is not None and is_first():
            # Only a run that draws curves waits for this import.
            from tensorboardX import SummaryWriter

            if not start:
                for old in folder.glob("events.out.tfevents.*"):
                    old.unlink()
            # tensorboardX names files by the second: two runs may begin in the same one.
            self._writer = SummaryWriter(
                str(folder), purge_step=start or None, filename_suffix=f".{start}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve; TensorBoard groups names by the part before the "/"."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
