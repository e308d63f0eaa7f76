"""The images that wait for the device, and whose turn it is."""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator

from service.work import Work


class Waiting:
    """Images begun before new ones; of the new ones, one of each request in turn.

    What was begun holds memory and has cost work already: to finish it first keeps both small, and
    an image is never overtaken between its passes. Of the new ones, those of a small request wait
    for one image of every other request and not for all images of a large one, which in turn gets
    whatever the others leave: nobody starves, and the device never idles for the sake of order.
    """

    def __init__(self) -> None:
        self._begun: deque[Work] = deque()
        self._new: OrderedDict[Hashable, deque[Work]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._begun or self._new)

    def __iter__(self) -> Iterator[Work]:
        """All that wait now, whatever becomes of them meanwhile."""
        return iter([*self._begun, *(work for works in self._new.values() for work in works)])

    def add(self, work: Work) -> None:
        self._new.setdefault(work.owner, deque()).append(work)

    def add_begun(self, work: Work) -> None:
        self._begun.append(work)

    def put_back(self, work: Work) -> None:
        """To the very front, from where it was taken."""
        self._begun.appendleft(work)

    def first(self) -> Work:
        return self._begun[0] if self._begun else next(iter(self._new.values()))[0]

    def pop(self) -> Work:
        """The first, out of the queue; its request goes behind the others."""
        if self._begun:
            return self._begun.popleft()
        owner, works = self._new.popitem(last=False)
        work = works.popleft()
        if works:
            self._new[owner] = works
        return work

    def discard(self, work: Work) -> bool:
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
