"""Which batch sizes a GPU is given: few, so that its memory does not grow with every new one."""

from dataclasses import dataclass

from models.bundle.images import VIEWS


@dataclass(frozen=True)
class BatchSizes:
    """`sizes` ascend; a batch between two of them is filled up to the larger."""

    sizes: tuple[int, ...]

    @classmethod
    def up_to(cls, largest: int) -> "BatchSizes":
        """One view, an image's views, twice as many and so on, up to `largest` views."""
        sizes = {1, largest}
        size = VIEWS
        while size < largest:
            sizes.add(size)
            size *= 2
        return cls(tuple(sorted(sizes)))

    @property
    def largest(self) -> int:
        return self.sizes[-1]

    def padded(self, views: int) -> int:
        """The size that 1 to `largest` views run at: the smallest that holds them."""
        return next(size for size in self.sizes if size >= views)
