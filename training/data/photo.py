"""A photo of a set: where it is stored, and the bytes of its image file."""

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
    """An image file, or the `size` bytes of a shard that begin at byte `start`.

    `file` is relative to `root`. In a shard, `member` is the photo's own name. `changed` is the
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
        """The photo's name, which stays the same if the set is moved."""
        return f"{self.file}/{self.member}" if self.member else self.file

    @property
    def path(self) -> Path:
        return self.root / self.file

    def read(self) -> bytes:
        """Return the bytes of the image file.

        Raises `UserError` if the file is missing, may not be read or has become shorter.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.size)
        except OSError as error:
            raise UserError(
                f"{self} cannot be read ({error.strerror}): put it back, or remove it from the set"
            ) from error
        if len(data) < self.size:
            raise UserError(
                f"{self} has shrunk since it was listed: do not change files during a run"
            )
        return data

    def __str__(self) -> str:
        return str(self.root / self.name)


@dataclass(frozen=True, slots=True, eq=False)
class RawPhoto:
    """Pixels without an image file: uint8 [3, height, width], RGB."""

    name: str
    pixels: npt.NDArray[np.uint8]

    @property
    def size(self) -> int:
        return self.pixels.nbytes

    def read(self) -> bytes:
        """Return the photo as a PNG file, which is lossless."""
        buffer = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(self.pixels.transpose(1, 2, 0)))
        image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def __str__(self) -> str:
        return self.name


Photo = StoredPhoto | RawPhoto


@contextmanager
def naming(photo: Photo) -> Iterator[None]:
    """Turn an `ImageError` from the block into a `UserError` that names the photo."""
    try:
        yield
    except ImageError as error:
        raise UserError(f"{photo}: {error}; repair it, or remove it from the set") from error
