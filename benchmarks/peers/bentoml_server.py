"""BentoML: a service that decodes, and behind it one that runs the graph in adaptive batches."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
import numpy.typing as npt
from bentoml.validators import ContentType

from benchmarks.peers.model import BATCH_IMAGES, QUEUE, THREADS, TIMEOUT_SECONDS, Decoder, Model

TRAFFIC = {"timeout": TIMEOUT_SECONDS, "max_concurrency": QUEUE}
# A line for each request would be its cost, and nobody else writes one.
LOGGING = {"access": {"enabled": False}}


@bentoml.service(workers=1, traffic=TRAFFIC, logging=LOGGING)
class Classify:
    def __init__(self) -> None:
        self._model = Model()

    @bentoml.api(
        batchable=True, max_batch_size=BATCH_IMAGES, max_latency_ms=TIMEOUT_SECONDS * 1_000
    )
    def labels(self, views: npt.NDArray[np.uint8]) -> list[str]:
        return self._model.labels(list(views))


@bentoml.service(workers=1, traffic=TRAFFIC, logging=LOGGING)
class Front:
    classify = bentoml.depends(Classify)

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._threads = ThreadPoolExecutor(int(os.environ[THREADS]))

    @bentoml.api
    async def label(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> dict[str, str]:
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(self._threads, image.read_bytes)
        views = await loop.run_in_executor(self._threads, self._decoder.views, data)
        (label,) = await self.classify.to_async.labels(views[None])
        return {"label": label}
