"""Tests of the order in which images of several requests are decoded."""

from hypothesis import given
from hypothesis import strategies as st

from taillift.service.inference.fair_queue import FairQueue


class Owner:
    """A request."""


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_items_of_one_owner_keep_their_order() -> None:
    queue, owner = FairQueue[str](), Owner()
    for name, cost in (("a", 9), ("b", 1), ("c", 5)):
        queue.add(owner, cost, name)
    assert queue.first() == "a"
    assert drained(queue) == ["a", "b", "c"]


def test_a_small_item_goes_before_the_large_ones_that_came_first() -> None:
    queue, owners = FairQueue[str](), [Owner() for _ in range(9)]
    for owner in owners[:8]:
        for _ in range(4):
            queue.add(owner, 50e6, "bomb")
    assert queue.pop() == "bomb"
    queue.add(owners[8], 80e3, "photo")
    assert queue.pop() == "photo"


def test_a_large_item_is_not_overtaken_for_ever() -> None:
    queue, large, owners = FairQueue[str](), Owner(), [Owner() for _ in range(200)]
    queue.add(large, 50, "large")
    before = 0
    for owner in owners:
        queue.add(owner, 1, "small")
        if queue.pop() == "large":
            break
        before += 1
    assert before <= 101


def test_an_item_that_is_taken_out_does_not_come() -> None:
    queue, owner = FairQueue[str](), Owner()
    for name in ("a", "b", "c"):
        queue.add(owner, 1, name)
    queue.discard("b")
    queue.discard("unknown")
    assert drained(queue) == ["a", "c"]
    assert len(queue) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100)), max_size=40))
def test_nothing_is_lost_and_equal_owners_get_equal_shares(items: list[tuple[int, int]]) -> None:
    queue, owners = FairQueue[tuple[int, int]](), [Owner() for _ in range(4)]
    for owner, cost in items:
        queue.add(owners[owner], cost, (owner, cost))
    left = list(items)
    served = [0.0] * 4
    while queue:
        owner, cost = queue.pop()
        left.remove((owner, cost))
        waiting = {index for index, _ in left}
        for other in waiting - {owner}:
            # Until then the other has had as much, or its next item would have made it more.
            following = next(cost for index, cost in left if index == other)
            assert served[owner] + cost <= served[other] + following
        served[owner] += cost
    assert not left
