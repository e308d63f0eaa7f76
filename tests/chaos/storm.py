"""Many clients at once, each with one request after the other."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.chaos.judge import Judge
from tests.chaos.kinds import draw
from tests.chaos.photos import Photos
from tests.chaos.requests import Request
from tests.chaos.wire import exchange

CLIENTS: Final = 24
AGAIN_SECONDS: Final = 0.1


@dataclass
class Tally:
    """The outcomes of one kind of request: statuses (0: the client left), and wrong answers."""

    statuses: Counter[int] = field(default_factory=Counter)
    turned_away: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass
class Storm:
    """Requests 0, 1, ..., each drawn from `seed` and its number."""

    photos: Photos
    port: int
    judge: Judge
    seed: str
    tallies: dict[str, Tally] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(tally.statuses.total() for tally in self.tallies.values())

    @property
    def wrong(self) -> int:
        return sum(len(tally.wrong) for tally in self.tallies.values())

    async def blow(self, goes_on: Callable[[int], bool]) -> None:
        """Send requests as long as `goes_on(number of the next one)` is true."""
        numbers = iter(_counting(goes_on))
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(self._client(numbers))

    async def _client(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            choose = random.Random(f"{self.seed}/{number}")
            kind, request = draw(self.photos, choose)
            await self.send(kind.__name__, request, f"{self.seed}/{number}")

    async def send(self, kind: str, request: Request, name: str) -> None:
        """Send a request until the service accepts it, and check the answer."""
        tally = self.tallies.setdefault(kind, Tally())
        while self.judge.turned_away(done := await exchange(request, self.port)):
            tally.turned_away += 1
            await asyncio.sleep(AGAIN_SECONDS)
        tally.statuses[done.reply.status if done.reply else 0] += 1
        if wrong := self.judge.wrong(request, done):
            tally.wrong.append(f"{kind} {name}: {wrong}")


def _counting(goes_on: Callable[[int], bool]) -> Iterator[int]:
    number = 0
    while goes_on(number):
        yield number
        number += 1
