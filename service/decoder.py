"""From an image file's bytes to its views, in threads."""

import asyncio
import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from time import perf_counter
from typing import Final, NamedTuple

from PIL import Image

from models.bundle.images import FORMATS, Pixels, load, views
from models.bundle.preprocessing import Preprocessing
from service.pace import Pace

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

    def __init__(self, threads: int, room: int, preprocessing: Preprocessing) -> None:
        self.threads = threads
        self.pace = Pace(SECONDS_PER_BYTE, SECONDS_PER_IMAGE)
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._room = PixelRoom(room)
        self._preprocessing = preprocessing

    async def views(self, data: bytes, count: int, max_pixels: int) -> Pixels:
        """The first `count` views of an image, uint8 [count, S, S, 3].

        Raises `models.bundle.images.ImageError`. Cancelled while it waits for a thread, it costs
        nothing.
        """
        loop = asyncio.get_running_loop()
        decoded = await loop.run_in_executor(self._pool, self._decode, data, count, max_pixels)
        self.pace.update(len(data), decoded.seconds)
        return decoded.views

    def _decode(self, data: bytes, count: int, max_pixels: int) -> Decoded:
        with self._room.take(min(max_pixels, header_pixels(data))):
            start = perf_counter()
            canvas = load(data, self._preprocessing, max_pixels)
            cut = views(canvas, self._preprocessing.size, count)
            return Decoded(cut, perf_counter() - start)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


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


def header_pixels(data: bytes) -> int:
    """Width times height as the header has it; 0 where it cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # Pillow's answers to damaged files have no common base.
        return 0
