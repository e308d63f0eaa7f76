"""One image on its way through the device."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import numpy as np

from taillift.models.bundle.arrays import Floats, Pixels
from taillift.models.bundle.ensemble import ExitRule, mean_over_views
from taillift.service.inference.deadline import Deadline


class ImageOutputs(NamedTuple):
    """`logits` float32 [C], the mean over the first `views` views."""

    logits: Floats
    views: int


@dataclass(eq=False)
class ImageJob:
    """One image's views, uint8 [V, S, S, 3], of which `rule` may spare some.

    V is the rule's last stage where there is a rule.
    `owner` is the request: of two requests the images take turns.
    """

    views: Pixels
    answer: asyncio.Future[ImageOutputs]
    deadline: Deadline
    owner: Hashable
    rule: ExitRule | None = None
    since: float = field(default_factory=perf_counter)
    taken: int = 0
    passes: int = 1
    rows: list[Floats] = field(default_factory=list)
    goal: int = field(init=False)

    def __post_init__(self) -> None:
        self.goal = self._next_stage()

    @property
    def seen(self) -> int:
        return sum(map(len, self.rows))

    @property
    def due(self) -> int:
        """Views that wait for the device."""
        return self.goal - self.taken

    @property
    def wanted(self) -> bool:
        return not self.answer.done()

    def take(self, count: int) -> "ViewSlice":
        """The next `count` of the views that are due."""
        piece = ViewSlice(self, self.taken, self.taken + count)
        self.taken += count
        return piece

    def mean(self) -> Floats:
        """float32 [1, C], over the views seen so far."""
        return mean_over_views(np.concatenate(self.rows), self.seen)

    def request_next_stage(self) -> None:
        """Ask for the views of the next stage."""
        self.passes += 1
        self.goal = self._next_stage()

    def _next_stage(self) -> int:
        if self.rule is None:
            return len(self.views)
        return next(stage for stage in self.rule.stages if stage > self.taken)

    def succeed(self) -> None:
        if self.wanted:
            self.answer.set_result(ImageOutputs(self.mean()[0], self.seen))

    def fail(self, error: Exception) -> None:
        if self.wanted:
            self.answer.set_exception(error)


@dataclass(frozen=True)
class ViewSlice:
    """The views `start` to `stop` of one image, in one batch."""

    work: ImageJob
    start: int
    stop: int

    @property
    def views(self) -> Pixels:
        return self.work.views[self.start : self.stop]

    def __len__(self) -> int:
        return self.stop - self.start


def settle(reached: Sequence[ImageJob]) -> None:
    """Answer the images that have seen enough; the others ask for the views of the next stage.

    The images of one rule and one stage are judged together.
    """
    for kind in {(id(work.rule), work.seen) for work in reached}:
        _judge_alike([work for work in reached if (id(work.rule), work.seen) == kind])


def _judge_alike(works: Sequence[ImageJob]) -> None:
    rule, seen = works[0].rule, works[0].seen
    if rule is None:
        stops = np.ones(len(works), np.bool_)
    else:
        stops = rule.stops(np.concatenate([work.mean() for work in works]), seen)
    for work, stop in zip(works, stops, strict=True):
        if stop:
            work.succeed()
        else:
            work.request_next_stage()


class WaitingJobs:
    """Images begun before new ones; of the new ones, one of each request in turn.

    What was begun holds memory and has cost work already: to finish it first keeps both small, and
    an image is never overtaken between its passes. Of the new ones, those of a small request wait
    for one image of every other request and not for all images of a large one, which in turn gets
    whatever the others leave: nobody starves, and the device never idles for the sake of order.
    """

    def __init__(self) -> None:
        self._begun: deque[ImageJob] = deque()
        self._new: OrderedDict[Hashable, deque[ImageJob]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._begun or self._new)

    def __iter__(self) -> Iterator[ImageJob]:
        """All that wait now, whatever becomes of them meanwhile."""
        return iter([*self._begun, *(work for works in self._new.values() for work in works)])

    def add(self, work: ImageJob) -> None:
        self._new.setdefault(work.owner, deque()).append(work)

    def add_begun(self, work: ImageJob) -> None:
        self._begun.append(work)

    def put_back(self, work: ImageJob) -> None:
        """To the very front, from where it was taken."""
        self._begun.appendleft(work)

    def first(self) -> ImageJob:
        return self._begun[0] if self._begun else next(iter(self._new.values()))[0]

    def pop(self) -> ImageJob:
        """The first, out of the queue; its request goes behind the others."""
        if self._begun:
            return self._begun.popleft()
        owner, works = self._new.popitem(last=False)
        work = works.popleft()
        if works:
            self._new[owner] = works
        return work

    def discard(self, work: ImageJob) -> bool:
        """Whether it waited; if so, it no longer does."""
        if work in self._begun:
            self._begun.remove(work)
            return True
        works = self._new.get(work.owner)
        if works is None or work not in works:
            return False
        works.remove(work)
        if not works:
            del self._new[work.owner]
        return True
