"""What calibration is fitted on: photos that the model has not seen, view by view."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.arrays import Doubles, Floats
from taillift.models.bundle.posterior import without_prior
from taillift.models.bundle.schema import Group, Precision, Preprocessing
from taillift.models.bundle.session import Session
from taillift.training.console import track
from taillift.training.data.split import Split
from taillift.training.fit.inputs import evaluation_photos, first_copies

# Digits after the point to which one photo has the same logits in any batch.
SAME: Final = 4

Source = Literal["validation", "cross-fitting"]


@dataclass(frozen=True)
class HeldOut:
    """Logits float32 [N, 5, C] with the centre view first, and the true classes int64 [N].

    `groups` has one entry a class. `data` says in words what the photos are; so many `copies` of
    them were left out.
    """

    data: str
    source: Source
    view_logits: Floats
    labels: npt.NDArray[np.int64]
    groups: Sequence[Group]
    copies: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def cautions(self) -> tuple[str, ...]:
        """What holds of everything that is fitted on them."""
        return tuple(self._cautions())

    @property
    def distinct(self) -> npt.NDArray[np.int64]:
        """The photos that are no copies of an earlier one with the same label, in their order."""
        first: dict[tuple[bytes, int], int] = {}
        for row, image in enumerate(zip(self._images, self.labels.tolist(), strict=True)):
            first.setdefault(image, row)
        return np.array(list(first.values()), np.int64)

    def only(self, rows: npt.NDArray[np.int64]) -> "HeldOut":
        """The photos at `rows`, in that order."""
        return replace(self, view_logits=self.view_logits[rows], labels=self.labels[rows])

    def without_copies(self, distinct: npt.NDArray[np.int64]) -> "HeldOut":
        """The photos at `distinct`; the others are copies of them."""
        copies = self.copies + len(self) - len(distinct)
        return replace(self.only(distinct), copies=copies)

    @cached_property
    def _images(self) -> list[bytes]:
        """[N], what is the same for the same image: a hash, for logits of many classes are long."""
        # 0.0: minus zero has other bytes.
        rounded = (logits.round(SAME) + 0.0 for logits in self.view_logits)
        return [hashlib.sha256(one.tobytes()).digest() for one in rounded]

    def _cautions(self) -> Iterator[str]:
        if self.source == "cross-fitting":
            yield "measured on models that were trained without these photos, not on this model"
        if self.copies:
            every = self.copies + len(self)
            yield f"{self.copies} of {every} photos are copies of others and count once"
        images = len(set(self._images))
        if images < len(self):
            yield (
                f"the {len(self)} photos show only {images} different images, with several labels"
            )


BATCH: Final = 8

# Float32 [N, 5, C], the centre view first.
ViewLogits = dict[Precision, Floats]


def view_logits(
    sessions: Mapping[Precision, Session],
    log_prior: Doubles,
    split: Split,
    preprocessing: Preprocessing,
    title: str,
) -> ViewLogits:
    """Logits float32 [N, 5, C] of each session; a photo is decoded once for all of them.

    The `log_prior` [C] that the graph's logits carry is taken out. `title` stands before the
    progress bar. Raises `UserError` where a photo cannot be read.
    """
    photos = evaluation_photos(split, preprocessing)
    batches = photos.batches(first_copies(len(split)), BATCH)
    parts: dict[Precision, list[Floats]] = {precision: [] for precision in sessions}
    for rows, _ in track(batches, title, -(-len(split) // BATCH)):
        for precision, session in sessions.items():
            logits = session.run(rows.numpy()).logits
            parts[precision].append(without_prior(logits, log_prior))
    shape = len(split), photos.rows, -1
    return {one: np.concatenate(part).reshape(shape) for one, part in parts.items()}
