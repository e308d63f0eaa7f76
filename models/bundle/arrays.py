"""The types of the project's arrays, and lists of a fixed length from any iterable.

A docstring that names an array gives its shape: N images, V views of an image, C classes, D
features, S pixels a side.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def chunks(items: Iterable[Item], length: int) -> Iterator[list[Item]]:
    """Yield lists of `length` items; the last one may be shorter."""
    source = iter(items)
    while chunk := list(islice(source, length)):
        yield chunk
