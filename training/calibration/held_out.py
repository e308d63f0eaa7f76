"""What calibration is fitted on: photos that the model has not seen, view by view."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.bundle.ensemble import Floats
from models.bundle.record import Group

Source = Literal["validation", "cross-fitting"]


@dataclass(frozen=True)
class HeldOut:
    """Logits float32 [N, 5, C] with the centre view first, and the true classes int64 [N].

    `groups` has one entry a class. `data` says in words what the photos are.
    """

    data: str
    source: Source
    view_logits: Floats
    labels: npt.NDArray[np.int64]
    groups: Sequence[Group]

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, rows: npt.NDArray[np.int64]) -> "HeldOut":
        """The photos at `rows`, in that order."""
        return HeldOut(
            self.data, self.source, self.view_logits[rows], self.labels[rows], self.groups
        )
