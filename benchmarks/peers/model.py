"""The work that every server does for an image: taillift's own decoding, views, session, mean."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.device import Device
from taillift.models.bundle.ensemble import mean_over_views
from taillift.models.bundle.folder import read_manifest
from taillift.models.bundle.images import VIEWS, load, views

BUNDLE: Final = "PEER_BUNDLE"
THREADS: Final = "PEER_THREADS"
BATCH: Final = "PEER_BATCH"

# The most images that the graph is given at once, and the servers' usual wait for them.
BATCH_IMAGES: Final = int(os.environ.get(BATCH, "1"))
WAIT_SECONDS: Final = 0.01
# Of requests that wait: nobody is turned away for want of room.
QUEUE: Final = 1_000
TIMEOUT_SECONDS: Final = 120


class Decoder:
    def __init__(self) -> None:
        self._preprocessing = read_manifest(Path(os.environ[BUNDLE])).preprocessing

    def views(self, data: bytes) -> Pixels:
        """uint8 [5, S, S, 3]."""
        return views(load(data, self._preprocessing), self._preprocessing.size)


class Model:
    def __init__(self) -> None:
        device = Device(threads=int(os.environ[THREADS]))
        self._classifier = Classifier.open(Path(os.environ[BUNDLE]), device)

    def labels(self, batch: Sequence[Pixels]) -> list[str]:
        """The surest class of each image, from its views."""
        logits = mean_over_views(self._classifier.run(np.concatenate(batch)).logits, VIEWS)
        labels = self._classifier.manifest.labels
        return [labels[index] for index in logits.argmax(1)]
