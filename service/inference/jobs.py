"""One image on its way through the device, and the queue of all of them."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from taillift.models.bundle.arrays import Floats, Pixels
from taillift.models.bundle.ensemble import ImageOutputs, Stages, mean_over_views
from taillift.models.bundle.session import Outputs
from taillift.service.inference.deadline import Deadline
from taillift.service.monitoring.logs import request_id


@dataclass(eq=False)
class ImageJob:
    """One image's views, uint8 [V, S, S, 3], some of which `rule` may spare.

    V is the rule's last stage. `owner` is the request: images of different requests take turns.
    `stage` counts the rule's stages from 1, `goal` is the number of views up to the end of the
    stage, and the first `taken` of them have been handed to the device. It waits since `since`, and
    was first handed over at `begun`, both on the clock of `perf_counter`.
    """

    views: Pixels
    answer: asyncio.Future[ImageOutputs]
    deadline: Deadline
    owner: Hashable
    rule: Stages
    since: float = field(default_factory=perf_counter)
    begun: float | None = None
    taken: int = 0
    stage: int = 1
    rows: list[Outputs] = field(default_factory=list)
    goal: int = field(init=False)
    request_id: str | None = field(default_factory=request_id.get)

    def __post_init__(self) -> None:
        self.goal = self.rule.stages[0]

    @property
    def done(self) -> int:
        """The number of views that the device has run."""
        return sum(len(outputs.logits) for outputs in self.rows)

    @property
    def pending(self) -> int:
        """The number of views that wait for the device."""
        return self.goal - self.taken

    @property
    def wanted(self) -> bool:
        return not self.answer.done()

    def take(self, count: int) -> "ViewSlice":
        """Take the next `count` of the pending views."""
        taken = ViewSlice(self, self.taken, self.taken + count)
        self.taken += count
        return taken

    def request_next_stage(self, goal: int) -> None:
        """Wait for the device again, until `goal` views are done."""
        self.stage += 1
        self.goal = goal

    def mean_logits(self) -> Floats:
        """Return the mean over the views that are done, float32 [1, C]."""
        return mean_over_views(np.concatenate([rows.logits for rows in self.rows]), self.done)

    def succeed(self, logits: Floats) -> None:
        """Answer with the mean `logits` [C], and the mean features of the same views."""
        if self.wanted:
            features = np.concatenate([rows.features for rows in self.rows])
            mean = mean_over_views(features, self.done)[0]
            self.answer.set_result(ImageOutputs(logits, mean, self.done))

    def fail(self, error: Exception) -> None:
        if self.wanted:
            self.answer.set_exception(error)


@dataclass(frozen=True)
class ViewSlice:
    """The views `start` to `stop` of one image, which are in one batch."""

    job: ImageJob
    start: int
    stop: int

    @property
    def views(self) -> Pixels:
        return self.job.views[self.start : self.stop]

    def __len__(self) -> int:
        return self.stop - self.start


def settle(jobs: Sequence[ImageJob]) -> None:
    """Answer the images that have seen enough views, and send the others to their next stage.

    All views up to the images' goals are done. Images of one rule and one stage are decided
    together.
    """
    groups: dict[tuple[int, int], list[ImageJob]] = {}
    for job in jobs:
        groups.setdefault((id(job.rule), job.done), []).append(job)
    for (_, views), alike in groups.items():
        logits = np.concatenate([job.mean_logits() for job in alike])
        goals = alike[0].rule.next(logits, views).tolist()
        for job, mean, goal in zip(alike, logits, goals, strict=True):
            if goal == views:
                job.succeed(mean)
            else:
                job.request_next_stage(goal)


class WaitingJobs:
    """The queue: images that have begun first, then new ones, one of each request in turn.

    An image that has begun holds memory and has cost work already. Finishing it first keeps both
    small, and no image is overtaken between its stages. New images of a small request wait for one
    image of every other request, not for all images of a large one. The large request gets whatever
    the others leave. So nobody starves, and the device never idles for the sake of the order.
    """

    def __init__(self) -> None:
        self._begun: deque[ImageJob] = deque()
        self._new: OrderedDict[Hashable, deque[ImageJob]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._begun or self._new)

    def __iter__(self) -> Iterator[ImageJob]:
        """Iterate over the jobs that wait now, even if the queue changes meanwhile."""
        return iter([*self._begun, *(job for jobs in self._new.values() for job in jobs)])

    def add(self, job: ImageJob) -> None:
        self._new.setdefault(job.owner, deque()).append(job)

    def add_begun(self, job: ImageJob) -> None:
        self._begun.append(job)

    def put_back(self, job: ImageJob) -> None:
        """Put a job that was popped to the very front."""
        self._begun.appendleft(job)

    def first(self) -> ImageJob:
        return self._begun[0] if self._begun else next(iter(self._new.values()))[0]

    def pop(self) -> ImageJob:
        """Take the first job out of the queue; its request goes behind the others."""
        if self._begun:
            return self._begun.popleft()
        owner, jobs = self._new.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._new[owner] = jobs
        return job

    def discard(self, job: ImageJob) -> bool:
        """Take a job out of the queue; return whether it was there."""
        if job in self._begun:
            self._begun.remove(job)
            return True
        jobs = self._new.get(job.owner)
        if jobs is None or job not in jobs:
            return False
        jobs.remove(job)
        if not jobs:
            del self._new[job.owner]
        return True
