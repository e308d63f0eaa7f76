"""From an image file's bytes to its views, in threads, and the fair queue of those that wait."""

import asyncio
from collections import Counter
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from time import perf_counter
from typing import Final, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.images import load_opened, open_image, views
from taillift.models.bundle.schema import Preprocessing
from taillift.service.inference.latency import LatencyModel
from taillift.service.monitoring.counters import Metrics

# A first guess of the decoding time, until images have been measured.
SECONDS_PER_UNIT: Final = 2e-8
SECONDS_PER_IMAGE: Final = 3e-3


class Decoded(NamedTuple):
    """An image's views, uint8 [V, S, S, 3], and the seconds that decoding it took."""

    views: Pixels
    seconds: float


def work(size: int, pixels: int) -> int:
    """Return the work of an image in units of the decoder's latency: its bytes and its pixels."""
    return size + pixels


@dataclass(eq=False)
class DecodeJob:
    """One image on its way through the decoder; `pixels` are those of its header."""

    data: bytes
    pixels: int
    count: int
    max_pixels: int
    preprocessing: Preprocessing
    since: float
    answer: "asyncio.Future[Decoded]"


class Decoder:
    """Decodes up to `threads` images at the same time, which together have up to `room` pixels.

    An image with more pixels than that is decoded alone. Requests take turns by their work
    (`FairQueue`), and who is first is never overtaken.
    """

    def __init__(self, threads: int, room: int, metrics: Metrics) -> None:
        self.threads = threads
        self.latency = LatencyModel(SECONDS_PER_UNIT, SECONDS_PER_IMAGE)
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._room = self._free = room
        self._waiting: FairQueue[DecodeJob] = FairQueue()
        self._running: set[asyncio.Future[Decoded]] = set()
        self._metrics = metrics
        self._progress = perf_counter()

    async def views(
        self,
        data: bytes,
        pixels: int,
        count: int,
        max_pixels: int,
        preprocessing: Preprocessing,
        owner: Hashable,
        since: float,
    ) -> Pixels:
        """Return the first `count` views of an image, uint8 [count, S, S, 3].

        `pixels` are those of its header, `owner` is its request, and `since` is when it began to
        wait, on the clock of `perf_counter`. Raises `ImageError`. If cancelled while it waits for
        its turn, it costs nothing and its bytes are let go.
        """
        if not self._busy:
            self._progress = perf_counter()
        answer: asyncio.Future[Decoded] = asyncio.get_running_loop().create_future()
        job = DecodeJob(data, pixels, count, max_pixels, preprocessing, since, answer)
        cost = work(len(data), pixels)
        self._waiting.add(owner, cost, job)
        self._start_jobs()
        try:
            decoded = await answer
        finally:
            self._waiting.discard(job)
            del answer, job  # The traceback of an error has this frame, and the future that error.
        self.latency.update(cost, decoded.seconds)
        return decoded.views

    def _start_jobs(self) -> None:
        """Hand to the threads what is first, as long as a thread and the room are free."""
        while self._waiting and len(self._running) < self.threads:
            share = min(self._waiting.first().pixels, self._room)
            if share > self._free:
                return
            self._free -= share
            job = self._waiting.pop()
            task = asyncio.wrap_future(self._pool.submit(self._decode, job))
            self._running.add(task)
            task.add_done_callback(partial(self._finish, job.answer, share))

    def _finish(
        self,
        answer: "asyncio.Future[Decoded]",
        share: int,
        task: "asyncio.Future[Decoded]",
    ) -> None:
        self._running.discard(task)
        self._free += share
        error = task.exception()  # Asked for even if nobody waits: asyncio would log it otherwise.
        if answer.done():
            pass
        elif error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(task.result())
        self._start_jobs()

    def _decode(self, job: DecodeJob) -> Decoded:
        start = perf_counter()
        self._metrics.record_stage("decode_queue", start - job.since)
        try:
            image = open_image(job.data, job.max_pixels)
            with self._metrics.time_stage("decode"):
                canvas = load_opened(image, job.preprocessing)
                cut = views(canvas, job.preprocessing.size, job.count)
            return Decoded(cut, perf_counter() - start)
        finally:
            self._progress = perf_counter()
            del job  # As in `views`: it has the future.

    @property
    def _busy(self) -> bool:
        return len(self._running) >= self.threads or len(self._waiting) > 0

    @property
    def is_idle(self) -> bool:
        """Whether no image waits, and no thread has one."""
        return not self._running and not self._waiting

    def stalled(self, seconds: float) -> bool:
        """Return whether images wait or all threads are busy, and none ends for `seconds`."""
        return self._busy and perf_counter() - self._progress > seconds

    async def close(self) -> None:
        """Drop the images that wait and finish those in the threads; if cancelled, do not wait."""
        while self._waiting:
            self._waiting.pop().answer.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._running:
            await asyncio.wait(self._running)


Item = TypeVar("Item")


class Waiting(NamedTuple, Generic[Item]):
    """An item that waits; `number` keeps the order of items that end at the same time."""

    end: float
    number: int
    cost: float
    owner: Hashable
    item: Item


class FairQueue(Generic[Item]):
    """Weighted fair queueing (Demers, Keshav and Shenker, 1989).

    The first item is the one that would end first if all owners were served at the same time, each
    with an equal share. So a small item waits for nothing that costs more than it does, unless its
    owner has just had its share; and a large one is never overtaken for ever.
    """

    def __init__(self) -> None:
        self._heap: list[Waiting[Item]] = []
        self._numbers = count()
        # The time of that imagined service, and when it has done the last item of each owner.
        self._now = 0.0
        self._ends: WeakKeyDictionary[Hashable, float] = WeakKeyDictionary()
        self._owners: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, owner: Hashable, cost: float, item: Item) -> None:
        """Add an item; the order of one owner's items stays."""
        end = max(self._now, self._ends.get(owner, 0.0)) + cost
        self._ends[owner] = end
        self._owners[owner] += 1
        heappush(self._heap, Waiting(end, next(self._numbers), cost, owner, item))

    def first(self) -> Item:
        return self._heap[0].item

    def pop(self) -> Item:
        """Take the first item out of the queue."""
        self._now += self._heap[0].cost / len(self._owners)
        return self._leave(heappop(self._heap))

    def discard(self, item: Item) -> None:
        """Take an item out of the queue, if it is there."""
        for waiting in self._heap:
            if waiting.item is item:
                self._heap.remove(waiting)
                heapify(self._heap)
                self._leave(waiting)
                return

    def _leave(self, waiting: Waiting[Item]) -> Item:
        self._owners[waiting.owner] -= 1
        self._owners += Counter()  # Owners without an item are dropped.
        return waiting.item
