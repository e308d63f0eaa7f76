"""Training curves for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tensorboardX import SummaryWriter

from taillift.training.fit.distributed import is_first


class Curves:
    """Scalars by step in an event file in `folder`, from the first process; None: nowhere.

    What the folder held of an earlier run goes, except up to `start`, the step that this run
    continues from.
    """

    def __init__(self, folder: Path | None = None, start: int = 0) -> None:
        self._writer: SummaryWriter | None = None
        if folder is not None and is_first():
            if not start:
                for old in folder.glob("events.out.tfevents.*"):
                    old.unlink()
            # Files are named by the second: two may begin in the same one.
            self._writer = SummaryWriter(
                str(folder), purge_step=start or None, filename_suffix=f".{start}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve; what stands before a "/" in their names groups them."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
