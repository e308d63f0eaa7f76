"""The progress of a training run: its position, its time, and its curves.

The curves go to TensorBoard's files, and to wandb or mlflow besides them if a user asks for it.
"""

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol, Self, TypeVar

from taillift.models.bundle.atomic import atomic_file
from taillift.models.errors import UserError, first_lines
from taillift.training.console import is_first
from taillift.training.fit.distributed import Precision

Item = TypeVar("Item")

# The project of wandb, and the experiment of mlflow.
PROJECT: Final = "taillift"


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


class Log(StrEnum):
    """The libraries that curves can be sent to."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"


class CurveWriter(Protocol):
    """Receives points of curves until it is closed. `run` is the id to continue it by, if any."""

    run: str

    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Curves:
    """Scalars by step, which the first process writes to event files in `folder` and to `logs`.

    `folder` None writes nothing. Curves of an earlier run in the folder are removed, except up to
    `start`, the step that this run continues from. `config` is what the run was told to do.
    """

    def __init__(
        self,
        folder: Path | None = None,
        start: int = 0,
        logs: Sequence[Log] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Open all writers. Raises `UserError` if one of the `logs` cannot be written to."""
        self._writers: list[TensorBoardCurves | CurveWriter] = []
        if folder is not None and is_first():
            self._writers.append(TensorBoardCurves(folder, start))
            for log in dict.fromkeys(logs):
                if log != Log.TENSORBOARD:
                    self._writers.append(open_log(log, folder, start, config or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve; their names are grouped by the part before the "/"."""
        for writer in self._writers:
            writer.add(step, values)


class TensorBoardCurves:
    """Event files in a folder."""

    def __init__(self, folder: Path, start: int) -> None:
        # Only a run that draws curves waits for this import.
        from tensorboardX import SummaryWriter

        if not start:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        # tensorboardX names files by the second: two runs may begin in the same one.
        self._writer = SummaryWriter(
            str(folder), purge_step=start or None, filename_suffix=f".{start}"
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbCurves:
    """A run of wandb, in the place and mode that its own variables WANDB_* say."""

    def __init__(self, name: str, run: str | None, config: Mapping[str, Any]) -> None:
        """Begin a run with this `name`, or continue the one with the id `run`."""
        import wandb

        self._run = wandb.init(
            project=PROJECT, name=name, id=run, resume="allow" if run else None, config={**config}
        )
        self.run: str = self._run.id
        # Steps and epochs are counted apart, and wandb's own steps must never go back.
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("loss/epoch", step_metric="epoch")
        self._run.define_metric("validation/*", step_metric="epoch")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        axis = "step" if "loss/step" in values else "epoch"
        self._run.log({axis: step, **values})

    def close(self) -> None:
        self._run.finish()


class MlflowCurves:
    """A run of mlflow, at the place that its own variable MLFLOW_TRACKING_URI says."""

    def __init__(self, name: str, run: str | None, config: Mapping[str, Any]) -> None:
        """Begin a run with this `name`, or continue the one with the id `run`."""
        import mlflow

        mlflow.set_experiment(PROJECT)
        self._mlflow = mlflow
        self.run: str = mlflow.start_run(run_id=run, run_name=None if run else name).info.run_id
        if run is None:
            mlflow.log_dict({**config}, "recipe.json")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


LOGS: Final[dict[Log, Callable[[str, str | None, Mapping[str, Any]], CurveWriter]]] = {
    Log.WANDB: WandbCurves,
    Log.MLFLOW: MlflowCurves,
}


def open_log(log: Log, folder: Path, start: int, config: Mapping[str, Any]) -> CurveWriter:
    """Begin a run, or continue the run that `folder` has the id of if training goes on at `start`.

    The run has the folder's name. Raises `UserError` if the library refuses.
    """
    remembered = folder / f"{log}-run.txt"
    run = remembered.read_text("utf-8") if start and remembered.exists() else None
    try:
        writer = LOGS[log](folder.name, run, config)
    except Exception as error:  # Each library has errors of its own.
        raise UserError(f"--log {log}: {first_lines(error)}") from error
    with atomic_file(remembered) as temporary:
        temporary.write_text(writer.run, "utf-8")
    return writer


def require_installed(logs: Sequence[Log]) -> None:
    """Raise `UserError` if the library of one of the `logs` is not installed."""
    for log in logs:
        if log != Log.TENSORBOARD and importlib.util.find_spec(log.value) is None:
            raise UserError(f"--log {log} needs a package: run pip install 'taillift[{log}]'")
