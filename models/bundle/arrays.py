"""The types of the project's arrays, and two ways to fill one.

A docstring that names an array gives its shape: N images, V views of an image, C classes, D
features, S pixels a side.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.schema import GROUPS, Group

Item = TypeVar("Item")

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def group_indices(groups: Sequence[Group]) -> Indices:
    """Return the index in `GROUPS` of each class's group, [C]."""
    return np.array([GROUPS.index(group) for group in groups], np.int64)


def chunks(items: Iterable[Item], length: int) -> Iterator[list[Item]]:
    """Yield lists of `length` items; the last one may be shorter."""
    source = iter(items)
    while chunk := list(islice(source, length)):
        yield chunk
