"""A queue whose order is fair to whoever asks for little."""

from collections import Counter
from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

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
