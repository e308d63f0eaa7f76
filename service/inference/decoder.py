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

# A first guess of a decoding's seconds per byte and per image, until the first ones are measured.
SECONDS_PER_BYTE: Final = 2e-8
SECONDS_PER_IMAGE: Final = 3e-3


class Decoded(NamedTuple):
    """`views` uint8 [V, S, S, 3]."""

    views: Pixels
    seconds: float


class Decoder:
    """Decodes as many images at once as it has `threads`, and no more than `room` pixels.

    An image with more pixels than that is decoded alone.
    """

    def __init__(
        self, threads: int, room: int, preprocessing: Preprocessing, metrics: Metrics
    ) -> None:
        self.threads = threads
        self.pace = LatencyModel(SECONDS_PER_BYTE, SECONDS_PER_IMAGE)
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._room = PixelRoom(room)
        self._preprocessing = preprocessing
        self._metrics = metrics
        self._works: set[Future[Decoded]] = set()
        self._progress = perf_counter()

    async def views(self, data: bytes, count: int, max_pixels: int, since: float) -> Pixels:
        """The first `count` views of an image, uint8 [count, S, S, 3].

        `since` is when it began to wait, on the clock of `perf_counter`. Raises
        `models.bundle.images.ImageError`. Cancelled while it waits for a thread, it costs nothing.
        """
        decoded = await asyncio.wrap_future(self._begin(data, count, max_pixels, since))
        self.pace.update(len(data), decoded.seconds)
        return decoded.views

    def _begin(self, data: bytes, count: int, max_pixels: int, since: float) -> Future[Decoded]:
        if len(self._works) < self.threads:
            self._progress = perf_counter()
        work = self._pool.submit(self._decode, data, count, max_pixels, since)
        self._works.add(work)
        work.add_done_callback(self._works.discard)
        return work

    def _decode(self, data: bytes, count: int, max_pixels: int, since: float) -> Decoded:
        try:
            image = open_image(data, max_pixels)
            with self._room.take(image.width * image.height):
                start = perf_counter()
                self._metrics.took("decode_queue", start - since)
                with self._metrics.stage("decode"):
                    canvas = load_opened(image, self._preprocessing)
                    cut = views(canvas, self._preprocessing.size, count)
                return Decoded(cut, perf_counter() - start)
        finally:
            self._progress = perf_counter()

    def stalled(self, seconds: float) -> bool:
        """Whether every thread has work, and none has ended any for `seconds`."""
        busy = len(self._works) >= self.threads
        return busy and perf_counter() - self._progress > seconds

    async def close(self) -> None:
        """Drop what waits and finish what is decoded; cancelled, it leaves that to itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        works = map(asyncio.wrap_future, self._works.copy())
        await asyncio.gather(*works, return_exceptions=True)


class PixelRoom:
    """Lets in no more than `limit` pixels at once, first come, first served.

    If whoever fits went first, small images would keep a large one waiting for ever.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = limit
        self._waiting: deque[object] = deque()
        self._change = Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait for room for so many, or for all of it, and keep it during the block."""
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
