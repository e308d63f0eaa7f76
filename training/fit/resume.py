"""What an interrupted training run continues from: a file beside its checkpoint."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, ZipFile

import torch

from taillift.models.bundle.atomic import atomic_file
from taillift.models.errors import UserError
from taillift.training.fit.distributed import Precision, Processes
from taillift.training.recipe.recipe import Recipe

# Inside an epoch it is written so often, in seconds.
SAVE_EVERY: Final = 600.0
# Another number where the file's content means something else than before.
FORMAT: Final = 1


@dataclass
class Progress:
    """Where a run is: `done` steps in all, `step` of them in `epoch`, which counts from 0.

    `summed` is the sum of the losses of this epoch's examples, `losses` the mean of each epoch
    before it; `waited` of the `seconds` went by until photos came.
    """

    precision: Precision
    done: int = 0
    epoch: int = 0
    step: int = 0
    summed: float = 0.0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    waited: float = 0.0


class Resume:
    """The state of the run with the fingerprint `key`, in a file at `path`; None: nowhere.

    The crops and the order of the photos follow from seed and epoch, so that the position and the
    learner's tensors are all that there is to keep.
    """

    def __init__(self, path: Path | None, key: str, processes: Processes) -> None:
        """Reads what is there; done by all. `progress` and `learner` are None where nothing is.

        Raises `UserError` where the file is of another run or cannot be read.
        """
        self._key = key
        self._path = path if processes.rank == 0 else None
        self._written = time.monotonic()
        kept = processes.broadcast(_readable(self._path, key))
        if isinstance(kept, str):
            raise UserError(kept)
        self.progress: Progress | None = Progress(**kept["progress"]) if kept else None
        self.learner: dict[str, Any] | None = kept["learner"] if kept else None

    @property
    def done(self) -> int:
        """How many steps are done already."""
        return self.progress.done if self.progress else 0

    @property
    def due(self) -> bool:
        return time.monotonic() - self._written >= SAVE_EVERY

    def forget(self) -> None:
        """Have the run begin anew the next time."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def write(self, progress: Progress, learner: dict[str, Any]) -> None:
        """Replace what is there; the old state stays whole until then."""
        if self._path is not None:
            kept = {"key": self._key, "progress": asdict(progress), "learner": learner}
            with atomic_file(self._path) as temporary:
                torch.save(kept, temporary)
        self._written = time.monotonic()


def _readable(path: Path | None, key: str) -> dict[str, Any] | str | None:
    """What `read_state` gives or, for all processes to hear of it, why it gives nothing."""
    try:
        return read_state(path, key) if path else None
    except UserError as error:
        return str(error)


def read_state(path: Path, key: str) -> dict[str, Any] | None:
    """What the run with the fingerprint `key` has left at `path`; None where nothing is there.

    Raises `UserError` where the file is of another run or cannot be read.
    """
    if not path.exists():
        return None
    try:
        kept = _load_whole(path)
        found = kept["key"]
    except Exception as error:  # A damaged file may raise anything.
        raise UserError(
            f"{path}, what an interrupted run left, cannot be read: remove it to start from the "
            "beginning"
        ) from error
    if found != key:
        raise UserError(
            f"{path} was left by an interrupted run with another recipe, other photos or another "
            "backbone: remove it, or write this run's checkpoint elsewhere"
        )
    return kept


def _load_whole(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote, by its checksums, which `torch.load` does not look at."""
    with ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise BadZipFile(f"{damaged} has another checksum")
    kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return kept


def resume_path(checkpoint: Path) -> Path:
    """Where a run that is to end in `checkpoint` keeps its state."""
    return checkpoint.with_name(f"{checkpoint.name}.resume")


def run_key(recipe: Recipe, data: str, backbone: str) -> str:
    """sha256 of what a run's result depends on: recipe, photos and backbone by their own sha256.

    Raises `UserError` where a file that the recipe names cannot be read.
    """
    files = recipe.head.initial.contents()
    parts = [FORMAT, recipe.model_dump(mode="json"), data, backbone, *files]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
