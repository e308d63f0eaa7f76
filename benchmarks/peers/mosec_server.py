"""mosec: processes that decode, then one that runs the graph, batches within a wait."""

import os
from typing import Any

import mosec

from benchmarks.peers.model import (
    BATCH_IMAGES,
    THREADS,
    TIMEOUT_SECONDS,
    WAIT_SECONDS,
    Decoder,
    Model,
)
from taillift.models.bundle.arrays import Pixels


class Decode(mosec.Worker):
    def __init__(self) -> None:
        self._decoder = Decoder()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> Pixels:
        return self._decoder.views(data)


class Classify(mosec.Worker):
    def __init__(self) -> None:
        self._model = Model()

    def forward(self, data: list[Pixels]) -> list[dict[str, Any]]:
        return [{"label": label} for label in self._model.labels(data)]


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(Decode, num=int(os.environ[THREADS]))
    server.append_worker(
        Classify,
        max_batch_size=BATCH_IMAGES,
        max_wait_time=int(WAIT_SECONDS * 1_000),
        timeout=TIMEOUT_SECONDS,
    )
    server.run()
