"""One photo of a set: where it lies, and the bytes of its image file."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from taillift.models.bundle.images import ImageError
from taillift.models.errors import UserError


@dataclass(frozen=True, slots=True)
class StoredPhoto:
    """An image file, or `size` bytes of a shard from byte `start` on.

    `file` is relative to `root`; `member` is the photo's own name in a shard. `changed` is the
    file's time of change in nanoseconds.
    """

    root: Path
    file: str
    size: int
    changed: int
    start: int = 0
    member: str = ""

    @property
    def name(self) -> str:
        """The same wherever the set is moved to."""
        return f"{self.file}/{self.member}" if self.member else self.file

    @property
    def path(self) -> Path:
        return self.root / self.file

    def read(self) -> bytes:
        """Raises `UserError` where the file is gone, forbidden or shorter than it was."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.size)
        except OSError as error:
            raise UserError(
                f"{self} cannot be read ({error.strerror}): put it back, or remove it from the set"
            ) from error
        if len(data) < self.size:
            raise UserError(f"{self} is shorter than it was: let files be while they are read")
        return data

    def __str__(self) -> str:
        return str(self.root / self.name)


@dataclass(frozen=True, slots=True, eq=False)
class RawPhoto:
    """Pixels that come without an image file: uint8 [3, height, width], RGB."""

    name: str
    pixels: npt.NDArray[np.uint8]

    @property
    def size(self) -> int:
        return self.pixels.nbytes

    def read(self) -> bytes:
        """As a PNG file, which loses nothing."""
        buffer = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(self.pixels.transpose(1, 2, 0)))
        image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def __str__(self) -> str:
        return self.name


Photo = StoredPhoto | RawPhoto


@contextmanager
def naming(photo: Photo) -> Iterator[None]:
    """What is wrong with the image that is decoded in the block is said with the photo's name."""
    try:
        yield
    except ImageError as error:
        raise UserError(f"{photo}: {error}; mend it, or remove it from the set") from error
