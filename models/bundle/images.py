"""From an image file's bytes to the views that the graph takes.

Training, evaluation and the service all come through here, so what is measured is what is served.
"""

import io
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.image_guard import JPEG, PNG, too_many_parts
from taillift.models.bundle.schema import MAX_ASPECT, MAX_PIXELS, Preprocessing
from taillift.models.errors import UserError

FORMATS: Final = ("JPEG", "PNG", "WEBP")
SIGNATURES: Final = (JPEG, PNG)
VIEWS: Final = 5

RESAMPLING: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# The limit is `open_image`'s own, checked against the header before any pixel is decoded; Pillow's
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


class ImageTooLongError(ImageError):
    """One side is too many times the other."""


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image file's header, in which its size stands; no pixel is decoded yet.

    Raises `NotAnImageError`, `ImageTooLargeError` (more than `max_pixels`), `ImageTooLongError`
    (one side more than `MAX_ASPECT` times the other) or `BrokenImageError`, also where the file
    has more parts than it could need (`parts.excess`).
    """
    if not data:
        raise NotAnImageError("the image is empty (0 bytes)")
    if (too_much := too_many_parts(data)) is not None:
        raise BrokenImageError(f"the image has {too_much}: save it again with a common program")
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the image has {width} x {height} pixels, more than the {max_pixels:,} allowed"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageTooLongError(
            f"the image has {width} x {height} pixels: one side is more than {MAX_ASPECT} times "
            "the other; crop it, or send it in parts"
        )
    return image


def decode(data: bytes, target: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to RGB, turned as its EXIF orientation says.

    `target` is the length in pixels of the shorter side that is needed; a larger JPEG is scaled
    while decoding and any other image before its colours are converted, to no less than twice
    that. Transparency is laid on white; 16-bit grey is brought to 8 bits.

    Raises what `open_image` raises, and `BrokenImageError`.
    """
    return _decoded(open_image(data, max_pixels), target)


def _decoded(image: Image.Image, target: int) -> Image.Image:
    try:
        image.draft(image.mode, (2 * target, 2 * target))
        # In place or rebound, so that a full-size copy lives no longer than it is needed.
        ImageOps.exif_transpose(image, in_place=True)
        image = _eight_bits(image)
        image = _reduced(image, 2 * target)
        return _on_white(image)
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


def _eight_bits(image: Image.Image) -> Image.Image:
    """L, RGB or RGBA, which can be reduced: palettes and transparent colours cannot."""
    if image.mode == "I;16":
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _reduced(image: Image.Image, least: int) -> Image.Image:
    """Averaged over blocks, to a shorter side of `least` pixels or more."""
    factor = min(image.size) // least
    return image.reduce(factor) if factor > 1 else image


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


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
    """(top, left) of the five S x S views of a canvas: the centre, then the four corners.

    Opposite corners follow each other, so that the first three views are not all of one side.
    """
    bottom, right = height - size, width - size
    return [(round(bottom / 2), round(right / 2)), (0, 0), (bottom, right), (0, right), (bottom, 0)]


def views(pixels: Pixels, size: int, count: int = VIEWS) -> Pixels:
    """The first `count` views of a canvas, as uint8 [count, S, S, 3]; the centre comes first."""
    height, width = pixels.shape[:2]
    places = offsets(height, width, size)[:count]
    return np.stack([pixels[top : top + size, left : left + size] for top, left in places])


def load(data: bytes, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an image file and lay it on its canvas; raises what `decode` raises."""
    return load_opened(open_image(data, max_pixels), preprocessing)


def load_opened(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Decode what `open_image` gave, once, and lay it on its canvas; raises `BrokenImageError`."""
    return canvas(_decoded(image, preprocessing.size + preprocessing.expand), preprocessing)
