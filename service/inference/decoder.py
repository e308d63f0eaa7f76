"""From an image file's bytes to its views, in threads."""

import asyncio
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from time import perf_counter
from typing import Final, NamedTuple

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.images import load_opened, open_image, views
from taillift.models.bundle.schema import Preprocessing
from taillift.service.inference.latency import LatencyModel
from taillift.service.monitoring.counters import Metrics

# A first guess of the decoding time, until images have been measured.
SECONDS_PER_BYTE: Final = 2e-8
SECONDS_PER_IMAGE: Final = 3e-3


class Decoded(NamedTuple):
    """An image's views, uint8 [V, S, S, 3], and the seconds that decoding it took."""

    views: Pixels
    seconds: float


class Decoder:
    """Decodes up to `threads` images at the same time, which together have up to `room` pixels.

    An image with more pixels than that is decoded alone.
    """

    def __init__(
        self, threads: int, room: int, preprocessing: Preprocessing, metrics: Metrics
    ) -> None:
        self.threads = threads
        self.latency = LatencyModel(SECONDS_PER_BYTE, SECONDS_PER_IMAGE)
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._room = PixelRoom(room)
        self._preprocessing = preprocessing
        self._metrics = metrics
        self._tasks: set[Future[Decoded]] = set()
        self._progress = perf_counter()

    async def views(self, data: bytes, count: int, max_pixels: int, since: float) -> Pixels:
        """Return the first `count` views of an image, uint8 [count, S, S, 3].

        `since` is when it began to wait, on the clock of `perf_counter`. Raises `ImageError`. If
        cancelled while it waits for a thread, it costs nothing.
        """
        if len(self._tasks) < self.threads:
            self._progress = perf_counter()
        task = self._pool.submit(self._decode, data, count, max_pixels, since)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        decoded = await asyncio.wrap_future(task)
        self.latency.update(len(data), decoded.seconds)
        return decoded.views

    def _decode(self, data: bytes, count: int, max_pixels: int, since: float) -> Decoded:
        try:
            image = open_image(data, max_pixels)
            with self._room.take(image.width * image.height):
                start = perf_counter()
                self._metrics.record_stage("decode_queue", start - since)
                with self._metrics.time_stage("decode"):
                    canvas = load_opened(image, self._preprocessing)
                    cut = views(canvas, self._preprocessing.size, count)
                return Decoded(cut, perf_counter() - start)
        finally:
            self._progress = perf_counter()

    def stalled(self, seconds: float) -> bool:
        """Return whether all threads are busy and none has finished an image for `seconds`."""
        busy = len(self._tasks) >= self.threads
        return busy and perf_counter() - self._progress > seconds

    async def close(self) -> None:
        """Drop the images that wait and finish those in the threads; if cancelled, do not wait."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        tasks = map(asyncio.wrap_future, self._tasks.copy())
        await asyncio.gather(*tasks, return_exceptions=True)


class PixelRoom:
    """Lets in no more than `limit` pixels at once, first come, first served.

    If images that fit were let in first, small ones could keep a large one waiting for ever.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = limit
        self._waiting: deque[object] = deque()
        self._change = Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait for room for so many pixels, or for all room, and keep it during the block."""
        share, ticket = min(pixels, self._limit), object()
        with self._change:
            self._waiting.append(ticket)
            self._change.wait_for(lambda: self._waiting[0] is ticket and self._free >= share)
            self._waiting.popleft()
            self._free -= share
            self._change.notify_all()
        try:
            yield
        finally:
            with self._change:
                self._free += share
                self._change.notify_all()
