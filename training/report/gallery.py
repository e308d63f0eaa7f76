"""Galleries of held-out photos: the surest mistakes, and the rarest classes."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Doubles, Labels
from taillift.models.bundle.images import decode
from taillift.training.calibration.held_out import HeldOut
from taillift.training.calibration.predictions import predictions_on
from taillift.training.calibration.variants import CalibratedVariant
from taillift.training.data.photo import Photo
from taillift.training.fit.checkpoint import CheckpointMetadata

MOST_PHOTOS: Final = 12
# Of the longer side, in pixels.
SIDE: Final = 192


@dataclass(frozen=True)
class Thumbnail:
    """A photo as a URL that holds it, with its true class as the title and words on its answer."""

    source: str
    title: str
    words: str


@dataclass(frozen=True)
class Galleries:
    """The surest mistakes first, and a photo of each of the rarest classes."""

    mistakes: list[Thumbnail]
    rare: list[Thumbnail]

    @property
    def size(self) -> int:
        """The number of different photos in both."""
        return len({photo.source for photo in (*self.mistakes, *self.rare)})


def galleries(
    metadata: CheckpointMetadata, calibrated: CalibratedVariant, photos: Sequence[Photo]
) -> Galleries:
    """Return galleries of the `photos` that the variant was checked on, answered with five views.

    Confidences are under the uniform prior. Without photos the galleries are empty.
    """
    check = calibrated.check
    if check is None or not photos:
        return Galleries([], [])
    classes = metadata.classes
    answers, confidences = answered(calibrated, check)
    wrong = np.flatnonzero(answers != check.labels)
    surest = wrong[np.argsort(-confidences[wrong], kind="stable")][:MOST_PHOTOS].tolist()
    mistakes = [
        Thumbnail(
            thumbnail(photos[index]),
            classes[check.labels[index]],
            f"taken for {classes[answers[index]]}, {100 * confidences[index]:.0f} %",
        )
        for index in surest
    ]
    rare = []
    measured = set(check.labels.tolist())
    for label in sorted(measured, key=lambda label: metadata.counts[label])[:MOST_PHOTOS]:
        own = np.flatnonzero(check.labels == label)
        right = int((answers[own] == label).sum())
        rare.append(
            Thumbnail(
                thumbnail(photos[own[0]]),
                classes[label],
                f"{metadata.counts[label]:,} training photos; {right:,} of {len(own):,} right",
            )
        )
    return Galleries(mistakes, rare)


def answered(calibrated: CalibratedVariant, check: HeldOut) -> tuple[Labels, Doubles]:
    """Return the answers int64 [N] with five views, and the confidences [N] in them."""
    full = predictions_on(check)[1]
    temperatures = np.ones(len(check))
    if (calibration := calibrated.variant.calibration) is not None:
        temperatures = calibration.temperatures(full.logits, full.views, full.ensemble, full.groups)
    probabilities = full.probabilities(temperatures)
    return probabilities.argmax(1), probabilities.max(1)


def thumbnail(photo: Photo) -> str:
    """Return a small JPEG of the photo as a URL that holds it, without what the file says of it."""
    image = decode(photo.read(), SIDE)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
