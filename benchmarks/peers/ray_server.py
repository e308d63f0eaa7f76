"""Ray Serve: one replica that decodes in threads and runs the graph, batches within a wait."""

import asyncio
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request

from benchmarks.peers.model import BATCH_IMAGES, QUEUE, THREADS, WAIT_SECONDS, Decoder, Model
from taillift.models.bundle.arrays import Pixels


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=QUEUE,
    # A line for each request would be its cost, and nobody else writes one.
    logging_config=LoggingConfig(enable_access_log=False),
)
class Classify:
    def __init__(self) -> None:
        self._decoder, self._model = Decoder(), Model()
        self._threads = ThreadPoolExecutor(int(os.environ[THREADS]))

    @serve.batch(max_batch_size=BATCH_IMAGES, batch_wait_timeout_s=WAIT_SECONDS)
    async def labels(self, batch: list[Pixels]) -> list[str]:
        return await asyncio.to_thread(self._model.labels, batch)

    async def __call__(self, request: Request) -> dict[str, str]:
        data = await request.body()
        loop = asyncio.get_running_loop()
        views = await loop.run_in_executor(self._threads, self._decoder.views, data)
        return {"label": await self.labels(views)}


if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=max(2, int(os.environ[THREADS])))
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Classify.bind())  # type: ignore[attr-defined]
    signal.pause()
