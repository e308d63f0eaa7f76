"""From an image file's bytes to the views that the graph takes.

Training, evaluation and the service all come through here, so that what is measured is what is
served.
"""

import io
from typing import Final

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.colour_profile import to_srgb, usable_mode
from taillift.models.bundle.image_guard import (
    END,
    JPEG,
    ORIENTATION,
    PNG,
    ExcessError,
    essence,
    foreign_format,
    image_size,
    orientation,
)
from taillift.models.bundle.schema import (
    FREE_PIXELS,
    MAX_ASPECT,
    MAX_PIXELS,
    PIXELS_PER_BYTE,
    Preprocessing,
)
from taillift.models.errors import UserError, first_lines

FORMATS: Final = ("JPEG", "PNG", "WEBP")
SIGNATURES: Final = (JPEG, PNG)
VIEWS: Final = 5
# Modes of images that keep the mode of a profile for grey or CMYK.
PROFILED: Final = {("1", "L"), ("L", "L"), ("LA", "L"), ("CMYK", "CMYK")}
# The least size at which the rows of a JPEG without an end are compared.
CHECKED_SIZE: Final = (512, 512)

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


def load_pil(
    image: Image.Image, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS
) -> Pixels:
    """Lay a PIL image on its canvas as a file with the same pixels would be.

    The image itself does not change. Raises `ImageTooLargeError`, `ImageTooLongError` and
    `BrokenImageError`.
    """
    if not all(image.size):
        raise BrokenImageError("the image has no pixels")
    check_size(image.size, max_pixels)
    try:
        copy = image.copy()
    except MemoryError:
        raise
    except Exception as error:  # A file that Pillow has opened is decoded only now.
        raise BrokenImageError(f"the image cannot be decoded: {first_lines(error)}") from error
    exif, xmp, profile = (copy.info.get(name) or b"" for name in ("exif", "xmp", "icc_profile"))
    _keep(copy, orientation(exif, xmp), profile)
    return load_opened(copy, preprocessing)


def load_array(array: Pixels, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Lay an RGB image uint8 [H, W, 3] on its canvas.

    Raises `NotAnImageError` for another array, `ImageTooLargeError` and `ImageTooLongError`.
    """
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise NotAnImageError(
            f"an array of an image must be uint8 [H, W, 3], not {array.dtype} {list(array.shape)}"
        )
    return load_pil(Image.fromarray(array), preprocessing, max_pixels)


def decode(data: bytes, target: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to RGB in sRGB, turned as its EXIF orientation says.

    `target` is the length in pixels of the shorter side that is needed. A larger image is scaled
    down to no less than twice that: a JPEG while it is decoded, any other image before its colours
    are converted. Colours of another profile are converted to sRGB; a profile that is broken or for
    another kind of image counts as none. Transparency is laid on white. 16-bit grey is brought to 8
    bits.

    Raises what `open_image` raises, and `BrokenImageError`.
    """
    return decode_opened(open_image(data, max_pixels), target)


def pixel_count(data: bytes, max_pixels: int = MAX_PIXELS) -> int:
    """Return the pixels of an image file by its header alone; 0 if it is not an image.

    Raises what `check_size` raises, and `BrokenImageError` if the header has too many parts.
    """
    try:
        size = image_size(data)
    except ExcessError as error:
        raise _excess(error) from error
    if size is None or 0 in size:
        return 0
    check_size(size, max_pixels)
    check_ratio(size, len(data))
    return size[0] * size[1]


def _excess(error: ExcessError) -> BrokenImageError:
    return BrokenImageError(f"the image has {error}: save it again with a common program")


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image file's header, which gives its size; no pixel is decoded yet.

    Of its metadata only the orientation and the colour profile are kept. Raises `NotAnImageError`,
    what `pixel_count` raises, and `BrokenImageError`, also if the file has more parts than it could
    need, or if rows are missing at its end.
    """
    if not data:
        raise NotAnImageError("the image is empty (0 bytes)")
    pixels = pixel_count(data, max_pixels)
    try:
        needed = essence(data)
    except ExcessError as error:
        raise _excess(error) from error
    try:
        image = Image.open(io.BytesIO(needed.data), formats=FORMATS)
    except UnidentifiedImageError:
        if data.startswith(SIGNATURES):
            raise BrokenImageError("the image's header is damaged") from None
        known = foreign_format(data)
        raise NotAnImageError(
            f"not a JPEG, PNG or WebP image{known and f', but {known}'}"
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        reason = first_lines(error)
        raise BrokenImageError(f"the image's header cannot be read: {reason}") from error
    if image.width * image.height > pixels:
        fault = "gives two sizes" if pixels else "is damaged"
        raise BrokenImageError(f"the image's header {fault}")
    _keep(image, needed.orientation, needed.profile)
    if not needed.ended:
        _check_rows(needed.data)
    return image


def _keep(image: Image.Image, turned: int, profile: bytes) -> None:
    """Make an orientation and a colour profile the only metadata of an image."""
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)
    image.info.update(exif=exif.tobytes(), icc_profile=profile)


def _check_rows(data: bytes) -> None:
    """Raise `BrokenImageError` if rows are missing at the end of a JPEG that had no end marker.

    What follows the last row changes no pixel. What follows an earlier one is decoded with it.
    """
    end = b"\xff" + END
    try:
        one, other = (
            Image.open(io.BytesIO(data.removesuffix(end) + more + end), formats=["JPEG"])
            for more in (b"", bytes(range(255)) * 4)
        )
        for image in (one, other):
            image.draft(image.mode, CHECKED_SIZE)
        cut_off = ImageChops.difference(one, other).getbbox(alpha_only=False) is not None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's errors for damaged files have no common base.
        raise BrokenImageError(f"the image cannot be decoded: {first_lines(error)}") from error
    if cut_off:
        raise BrokenImageError("the image is cut off: send or copy the whole file")


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Check an image's width and height.

    Raises `ImageTooLargeError` if it has more than `max_pixels`, and `ImageTooLongError` if one
    side is more than `MAX_ASPECT` times the other.
    """
    width, height = size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the image has {width} x {height} pixels, more than the {max_pixels:,} allowed"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageTooLongError(
            f"the image has {width} x {height} pixels: one side is more than {MAX_ASPECT} times "
            "the other; crop it, or send it in parts"
        )


def check_ratio(size: tuple[int, int], length: int) -> None:
    """Raise `ImageTooLargeError` if no photo has so many pixels in so few bytes."""
    width, height = size
    if width * height > FREE_PIXELS + PIXELS_PER_BYTE * length:
        raise ImageTooLargeError(
            f"the image has {width} x {height} pixels in {length:,} bytes, which no photo has: "
            "scale it down, or save it as a JPEG"
        )


def decode_opened(image: Image.Image, target: int) -> Image.Image:
    """Decode the result of `open_image` as `decode` says; raises `BrokenImageError`."""
    try:
        image.draft(image.mode, (2 * target, 2 * target))
        # In place or rebound, so that a full-size copy lives no longer than it is needed.
        ImageOps.exif_transpose(image, in_place=True)
        profile = image.info.get("icc_profile", b"")
        profile_mode = usable_mode(profile)
        if (image.mode == "CMYK") != (profile_mode == "CMYK"):
            profile, profile_mode = b"", ""
        image = _eight_bits(image, profile_mode)
        factor = min(image.size) // (2 * target)
        if factor > 1:
            image = image.reduce(factor)
        if image.mode == "L" and profile_mode != "L":
            image = image.convert("RGB")
        image = to_srgb(image, profile)
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's errors for damaged files have no common base.
        raise BrokenImageError(f"the image cannot be decoded: {first_lines(error)}") from error


def _eight_bits(image: Image.Image, profile_mode: str) -> Image.Image:
    """Return the image as L, RGB or RGBA, which can be reduced: palettes cannot.

    If its profile is for grey or for CMYK, it is in that mode, and grey perhaps as LA.
    """
    if image.mode == "I;16":
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    opaque = "RGB"
    if (image.mode, profile_mode) in PROFILED:
        opaque = profile_mode
    mode = f"{opaque}A" if image.has_transparency_data else opaque
    return image if image.mode == mode else image.convert(mode)


def canvas(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Resize an RGB image once, with antialiasing, so that its shorter side is S + expand.

    With `squash`, both sides are. If the longer side is cut off and not rounded, the pixels are
    those of torchvision's `Resize`. Returns uint8 [height, width, 3], RGB.
    """
    short = preprocessing.size + preprocessing.expand
    width, height = image.size
    if preprocessing.resize_mode == "squash":
        size = (short, short)
    elif preprocessing.long_side == "cut":
        size = (short * width // min(width, height), short * height // min(width, height))
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
