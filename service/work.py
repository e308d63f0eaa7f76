"""One image on its way through the device."""

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import numpy as np

from models.bundle.ensemble import Floats, combine
from models.bundle.exit import ExitRule
from models.bundle.images import Pixels
from service.deadline import Deadline


class Answer(NamedTuple):
    """`logits` float32 [C], the mean over the first `views` views."""

    logits: Floats
    views: int


@dataclass(eq=False)
class Work:
    """One image's views, uint8 [V, S, S, 3], of which `rule` may spare some.

    V is the rule's last stage where there is a rule.
    `owner` is the request: of two requests the images take turns.
    """

    views: Pixels
    answer: asyncio.Future[Answer]
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

    def take(self, count: int) -> "Piece":
        """The next `count` of the views that are due."""
        piece = Piece(self, self.taken, self.taken + count)
        self.taken += count
        return piece

    def mean(self) -> Floats:
        """float32 [1, C], over the views seen so far."""
        return combine(np.concatenate(self.rows), self.seen)

    def go_on(self) -> None:
        """Ask for the views of the next stage."""
        self.passes += 1
        self.goal = self._next_stage()

    def _next_stage(self) -> int:
        if self.rule is None:
            return len(self.views)
        return next(stage for stage in self.rule.stages if stage > self.taken)

    def succeed(self) -> None:
        if self.wanted:
            self.answer.set_result(Answer(self.mean()[0], self.seen))

    def fail(self, error: Exception) -> None:
        if self.wanted:
            self.answer.set_exception(error)


@dataclass(frozen=True)
class Piece:
    """The views `start` to `stop` of one image, in one batch."""

    work: Work
    start: int
    stop: int

    @property
    def views(self) -> Pixels:
        return self.work.views[self.start : self.stop]

    def __len__(self) -> int:
        return self.stop - self.start


def judge(reached: Sequence[Work]) -> None:
    """Answer the images that have seen enough; the others ask for the views of the next stage.

    The images of one rule and one stage are judged together.
    """
    for kind in {(id(work.rule), work.seen) for work in reached}:
        _judge_alike([work for work in reached if (id(work.rule), work.seen) == kind])


def _judge_alike(works: Sequence[Work]) -> None:
    rule, seen = works[0].rule, works[0].seen
    if rule is None:
        stops = np.ones(len(works), np.bool_)
    else:
        stops = rule.stops(np.concatenate([work.mean() for work in works]), seen)
    for work, stop in zip(works, stops, strict=True):
        if stop:
            work.succeed()
        else:
            work.go_on()
