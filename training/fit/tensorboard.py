"""Training curves for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tensorboardX import SummaryWriter

from taillift.training.console import is_first


class Curves:
    """Scalars by step, which the first process writes to event files in `folder`.

    `folder` None writes nothing. Curves of an earlier run in the folder are removed, except up to
    `start`, the step that this run continues from.
    """

    def __init__(self, folder: Path | None = None, start: int = 0) -> None:
        self._writer: SummaryWriter | None = None
        if folder is not None and is_first():
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
