"""From an image file's bytes to the views that the graph takes.

Training, evaluation and the service all come through here, so what is measured is what is served.
"""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from models import UserError
from models.bundle.manifest import Preprocessing

Pixels = npt.NDArray[np.uint8]

FORMATS: Final = ("JPEG", "PNG", "WEBP")
SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
MAX_PIXELS: Final = 50_000_000
MAX_ASPECT: Final = 32
VIEWS: Final = 5

RESAMPLING: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# The limit is `decode`'s own, checked against the header before any pixel is decoded; Pillow's
# only warns at first, and a warning in a thread pool helps nobody.
Image.MAX_IMAGE_PIXELS = None


class ImageError(UserError):
    """An image that cannot be used; the text says why."""


class NotAnImageError(ImageError):
    """The bytes are not of a format that is taken."""


class BrokenImageError(ImageError):
    """The format is right and the contents are not."""


class ImageTooLargeError(ImageError):
    """More pixels than allowed."""


def decode(data: bytes, target: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to RGB, turned as its EXIF orientation says.

    `target` is the length in pixels of the shorter side that is needed; a larger JPEG is scaled
    while decoding, to no less than twice that. Transparency is laid on white; 16-bit grey is
    brought to 8 bits.

    Raises `NotAnImageError`, `ImageTooLargeError` (more than `max_pixels`, seen in the header) or
    `BrokenImageError`.
    """
    if not data:
        raise NotAnImageError("the image is empty (0 bytes)")
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the image has {width} x {height} pixels, more than the {max_pixels:,} allowed"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BrokenImageError(
            f"the image has {width} x {height} pixels: one side is more than {MAX_ASPECT} times "
            "the other"
        )
    try:
        image.draft(image.mode, (2 * target, 2 * target))
        return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's answers to damaged files have no common base.
        raise BrokenImageError(f"the image cannot be decoded: {error}") from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data.startswith(SIGNATURES):
            raise BrokenImageError("the image's header is damaged") from None
        raise NotAnImageError("not a JPEG, PNG or WebP image") from None
    except Exception as error:
        raise BrokenImageError(f"the image's header cannot be read: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def canvas(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Resize once, with antialiasing, so that the shorter side (`squash`: each) is S + expand.

    Returns uint8 [height, width, 3], RGB.
    """
    short = preprocessing.size + preprocessing.expand
    width, height = image.size
    if preprocessing.resize_mode == "squash":
        size = (short, short)
    else:
        scale = short / min(width, height)
        size = (max(short, round(width * scale)), max(short, round(height * scale)))
    return np.asarray(image.resize(size, RESAMPLING[preprocessing.interpolation]))


def offsets(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """(top, left) of the five S x S views of a canvas: the centre, then the four corners."""
    bottom, right = height - size, width - size
    return [(round(bottom / 2), round(right / 2)), (0, 0), (0, right), (bottom, 0), (bottom, right)]


def views(pixels: Pixels, size: int, count: int = VIEWS) -> Pixels:
    """The first `count` views of a canvas, as uint8 [count, S, S, 3]; the centre comes first."""
    height, width = pixels.shape[:2]
    places = offsets(height, width, size)[:count]
    return np.stack([pixels[top : top + size, left : left + size] for top, left in places])


def load(data: bytes, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an image file and lay it on its canvas; raises what `decode` raises."""
    image = decode(data, preprocessing.size + preprocessing.expand, max_pixels)
    return canvas(image, preprocessing)
