"""Batches of whatever comes."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def chunks(items: Iterable[Item], length: int) -> Iterator[list[Item]]:
    """Lists of `length` items, the last one shorter."""
    source = iter(items)
    while chunk := list(islice(source, length)):
        yield chunk
