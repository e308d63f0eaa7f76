"""From an image file's bytes to the views that the graph takes.

Training, evaluation and the service all come through here, so that what is measured is what is
served.
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

# The limit is checked by `open_image` against the header, before any pixel is decoded. Pillow's own
# limit only warns at first, and a warning in a thread pool helps nobody.
Image.MAX_IMAGE_PIXELS = None


class ImageError(UserError):
    """An image that cannot be used; the text says why."""


class UnreadableImageError(ImageError):
    """The image's file cannot be read."""


class NotAnImageError(ImageError):
    """The image is not of a supported format."""


class BrokenImageError(ImageError):
    """The image's format is supported, but its contents are damaged."""


class ImageTooLargeError(ImageError):
    """The image has more pixels than allowed."""


class ImageTooLongError(ImageError):
    """One side of the image is too many times the other."""


class ModelFailureError(ImageError):
    """The model fails on the image, and on no other."""


def load(data: bytes, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an image file and lay it on its canvas; raises what `decode` raises."""
    return load_opened(open_image(data, max_pixels), preprocessing)


def load_opened(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Decode the result of `open_image`, once, and lay it on its canvas.

    Raises `BrokenImageError`.
    """
    return canvas(decode_opened(image, preprocessing.size + preprocessing.expand), preprocessing)


def load_pil(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Lay a PIL image on its canvas as a file with the same pixels would be.

    The image itself does not change. Raises `ImageTooLargeError`, `ImageTooLongError` and
    `BrokenImageError`.
    """
    check_size(image, MAX_PIXELS)
    try:
        copy = image.copy()
    except Exception as error:  # A file that Pillow has opened is decoded only now.
        raise BrokenImageError(f"the image cannot be decoded: {error}") from error
    return load_opened(copy, preprocessing)


def load_array(array: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Lay an RGB image uint8 [H, W, 3] on its canvas.

    Raises `NotAnImageError` for another array, `ImageTooLargeError` and `ImageTooLongError`.
    """
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise NotAnImageError(
            f"an array of an image must be uint8 [H, W, 3], not {array.dtype} {list(array.shape)}"
        )
    return load_pil(Image.fromarray(array), preprocessing)


def decode(data: bytes, target: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to RGB, turned as its EXIF orientation says.

    `target` is the length in pixels of the shorter side that is needed. A larger image is scaled
    down to no less than twice that: a JPEG while it is decoded, any other image before its colours
    are converted. Transparency is laid on white. 16-bit grey is brought to 8 bits.

    Raises what `open_image` raises, and `BrokenImageError`.
    """
    return decode_opened(open_image(data, max_pixels), target)


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image file's header, which gives its size; no pixel is decoded yet.

    Raises `NotAnImageError`, what `check_size` raises, and `BrokenImageError`, also if the file has
    more parts than it could need (`image_guard.too_many_parts`).
    """
    if not data:
        raise NotAnImageError("the image is empty (0 bytes)")
    if (too_many := too_many_parts(data)) is not None:
        raise BrokenImageError(f"the image has {too_many}: save it again with a common program")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data.startswith(SIGNATURES):
            raise BrokenImageError("the image's header is damaged") from None
        raise NotAnImageError("not a JPEG, PNG or WebP image") from None
    except Exception as error:
        raise BrokenImageError(f"the image's header cannot be read: {error}") from error
    check_size(image, max_pixels)
    return image


def check_size(image: Image.Image, max_pixels: int) -> None:
    """Check an image's size.

    Raises `ImageTooLargeError` if it has more than `max_pixels`, and `ImageTooLongError` if one
    side is more than `MAX_ASPECT` times the other.
    """
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


def decode_opened(image: Image.Image, target: int) -> Image.Image:
    """Decode the result of `open_image` as `decode` says; raises `BrokenImageError`."""
    try:
        image.draft(image.mode, (2 * target, 2 * target))
        # In place or rebound, so that a full-size copy lives no longer than it is needed.
        ImageOps.exif_transpose(image, in_place=True)
        image = _eight_bits(image)
        factor = min(image.size) // (2 * target)
        if factor > 1:
            image = image.reduce(factor)
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # Pillow's errors for damaged files have no common base.
        raise BrokenImageError(f"the image cannot be decoded: {error}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the image as L, RGB or RGBA, which can be reduced: palettes cannot."""
    if image.mode == "I;16":
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def canvas(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Resize an RGB image once, with antialiasing, so that its shorter side is S + expand.

    With `squash`, both sides are. Returns uint8 [height, width, 3], RGB.
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
    """Return (top, left) of a canvas's five S x S views: the centre, then the four corners.

    Opposite corners follow each other, so that the first three views are not all of one side.
    """
    bottom, right = height - size, width - size
    return [(round(bottom / 2), round(right / 2)), (0, 0), (bottom, right), (0, right), (bottom, 0)]


def views(pixels: Pixels, size: int, count: int = VIEWS) -> Pixels:
    """Cut a canvas's first `count` views, uint8 [count, S, S, 3]; the centre comes first."""
    height, width = pixels.shape[:2]
    corners = offsets(height, width, size)[:count]
    return np.stack([pixels[top : top + size, left : left + size] for top, left in corners])
