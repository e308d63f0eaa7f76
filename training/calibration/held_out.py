"""Held-out photos, on which calibration is fitted: their logits, their weights, the predictions."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.arrays import Doubles, Floats, Indices, group_indices
from taillift.models.bundle.calibration_error import ScoredPredictions, Weights, class_weights
from taillift.models.bundle.ensemble import Ensemble, MeanLogits, mean_over_views
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.posterior import posterior, without_prior
from taillift.models.bundle.schema import Group, Precision, Preprocessing
from taillift.models.bundle.session import Session
from taillift.models.bundle.temperature import Calibration
from taillift.training.console import track
from taillift.training.data.photo import Split
from taillift.training.fit.inputs import evaluation_photos, first_copies

BATCH: Final = 8
# The logits of one photo agree to this many decimal places, whatever batch it is in.
DECIMALS: Final = 4

Source = Literal["validation", "cross-fitting"]
# Float32 [N, 5, C], the centre view first.
ViewLogits = dict[Precision, Floats]
Estimate = TypeVar("Estimate", float, Weights)


@dataclass(frozen=True)
class HeldOut:
    """Logits float32 [N, 5, C] with the centre view first, and the true classes int64 [N].

    `groups` has one entry a class. `data` describes the photos in words. `duplicates` is the number
    of photos that were left out because they are the same as others.
    """

    data: str
    source: Source
    view_logits: Floats
    labels: npt.NDArray[np.int64]
    groups: Sequence[Group]
    duplicates: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def cautions(self) -> tuple[str, ...]:
        """Notes that belong to everything that is fitted on these photos."""
        notes = []
        if self.source == "cross-fitting":
            notes.append(
                "measured on models that were trained without these photos, not on this model"
            )
        if self.duplicates:
            total = self.duplicates + len(self)
            notes.append(
                f"{self.duplicates} of {total} photos are duplicates of others and count once"
            )
        images = len(set(self._image_hashes))
        if images < len(self):
            notes.append(
                f"the {len(self)} photos show only {images} different images, with several labels"
            )
        return tuple(notes)

    @property
    def distinct(self) -> npt.NDArray[np.int64]:
        """The indices of the photos that are not duplicates of an earlier one with its label."""
        first: dict[tuple[bytes, int], int] = {}
        for index, photo in enumerate(zip(self._image_hashes, self.labels.tolist(), strict=True)):
            first.setdefault(photo, index)
        return np.array(list(first.values()), np.int64)

    @cached_property
    def _image_hashes(self) -> list[bytes]:
        """A hash of each photo's logits, [N]; equal for equal images."""
        # Adding 0.0 turns minus zero, which has other bytes, into zero.
        rounded = (logits.round(DECIMALS) + 0.0 for logits in self.view_logits)
        return [hashlib.sha256(logits.tobytes()).digest() for logits in rounded]

    def only(self, rows: npt.NDArray[np.int64]) -> "HeldOut":
        """Return the photos at `rows`, in that order."""
        return replace(self, view_logits=self.view_logits[rows], labels=self.labels[rows])

    def without_duplicates(self, distinct: npt.NDArray[np.int64]) -> "HeldOut":
        """Return the photos at `distinct`, of which the others are duplicates."""
        duplicates = self.duplicates + len(self) - len(distinct)
        return replace(self.only(distinct), duplicates=duplicates)


def view_logits(
    sessions: Mapping[Precision, Session],
    log_prior: Doubles,
    split: Split,
    preprocessing: Preprocessing,
    title: str,
) -> ViewLogits:
    """Return the logits of each session, float32 [N, 5, C]; each photo is decoded only once.

    The `log_prior` [C] that the graph's logits carry is removed. `title` labels the progress bar.
    Raises `UserError` if a photo cannot be read.
    """
    photos = evaluation_photos(split, preprocessing)
    batches = photos.batches(first_copies(len(split)), BATCH)
    parts: dict[Precision, list[Floats]] = {precision: [] for precision in sessions}
    for rows, _ in track(batches, title, -(-len(split) // BATCH)):
        for precision, session in sessions.items():
            logits = session.run(rows.numpy()).logits
            parts[precision].append(without_prior(logits, log_prior))
    shape = len(split), photos.rows, -1
    return {precision: np.concatenate(part).reshape(shape) for precision, part in parts.items()}


def photo_weights(count: int) -> Weights:
    """Return ones [N]: every photo counts the same."""
    return np.ones(count)


def shrink(estimate: Estimate, error: Estimate, toward: Estimate, spread: float) -> Estimate:
    """Return `estimate` shrunk toward a prior value, the more so the larger its `error` is.

    This is the mean of N(toward, spread^2) after a measurement with a normal error, all in one
    unit.
    """
    trust = spread**2 / (spread**2 + error**2)
    return trust * estimate + (1 - trust) * toward


@dataclass(frozen=True)
class Predictions:
    """Mean logits [N, C] over `views` [N], true `labels` [N] and group indices `groups` [C]."""

    ensemble: Ensemble
    logits: Floats
    views: Indices
    labels: Indices
    groups: Indices

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def weights(self) -> Doubles:
        """Weights [N] that sum to 1, with the same sum for every class that has photos.

        With them, held-out photos stand for equally frequent classes, whatever their own
        distribution is.
        """
        return class_weights(self.labels) / max(1, len(self))

    @cached_property
    def predicted_groups(self) -> Indices:
        """The group of the class with the largest logit, [N]."""
        groups: Indices = self.groups[self.logits.argmax(axis=1)]
        return groups

    def probabilities(self, temperatures: Doubles) -> Doubles:
        """Return probabilities [N, C] at temperatures [N], for equally frequent classes."""
        return posterior(self.logits, np.zeros(len(self.groups)), temperatures)

    def at(self, temperatures: Doubles) -> "ScoredPredictions":
        """Return the answers at temperatures [N], for equally frequent classes."""
        probabilities = self.probabilities(temperatures)
        answers = probabilities.argmax(axis=1)
        return ScoredPredictions(
            probabilities.max(axis=1), answers == self.labels, self.groups[answers], self.weights
        )

    def calibrated(self, calibration: Calibration) -> "ScoredPredictions":
        """Return the answers at the temperatures of `calibration`."""
        return self.at(
            calibration.temperatures(self.logits, self.views, self.ensemble, self.groups)
        )

    def uncalibrated(self) -> "ScoredPredictions":
        """Return the answers at temperature 1."""
        return self.at(np.ones(len(self)))


def predictions_on(held: HeldOut, adaptive: MeanLogits | None = None) -> list[Predictions]:
    """Return the predictions of one view, of all views, and of `adaptive` if it is given."""
    count, _, classes = held.view_logits.shape
    full = mean_over_views(held.view_logits.reshape(-1, classes), VIEWS)
    mean_logits: list[MeanLogits] = [
        MeanLogits(held.view_logits[:, 0], np.ones(count, np.int64)),
        MeanLogits(full, np.full(count, VIEWS)),
    ]
    if adaptive:
        mean_logits.append(adaptive)
    groups = group_indices(held.groups)
    return [
        Predictions(ensemble, logits, views, held.labels, groups)
        for ensemble, (logits, views) in zip(Ensemble, mean_logits, strict=False)
    ]
