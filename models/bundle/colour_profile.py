"""From the colours of an image's profile (ICC.1:2022) to sRGB, by LittleCMS."""

import io
import re
from functools import lru_cache
from itertools import product
from typing import Final

import numpy as np
from PIL import Image, ImageCms

from taillift.models.bundle.image_guard import MAX_PROFILE

# The modes of the images that a profile of each colour space is for.
MODES: Final = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
# A profile that changes no colour by more levels than this is taken for sRGB. Rounding changes 1.
SAME: Final = 2
# Transforms that are kept: a camera's photos have the same profile.
KEPT: Final = 8
# Tags of elements in floating point (ICC.1:2022, multiProcessElementsType), which no profile needs:
# a curve may have 65,535 pieces, all of which LittleCMS looks through for each colour.
ELEMENTS: Final = re.compile(rb"D2B([0-3])")
# The header and the table of the most tags that LittleCMS reads.
TAGS_END: Final = 128 + 4 + 12 * 100
PROBE: Final = np.array(list(product(range(0, 256, 51), repeat=3)), np.uint8)[None]


def profile_mode(profile: bytes) -> str:
    """Return the mode of the images that a profile is for: RGB, L or CMYK; else an empty text."""
    return MODES.get(profile[16:20], "") if len(profile) <= MAX_PROFILE else ""


def profile_name(profile: bytes) -> str:
    """Return a profile's description; `broken` if it cannot be read."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.getProfileDescription(opened).strip() or "without a name"
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "broken"


@lru_cache(maxsize=KEPT)
def srgb_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB of images in the profile's mode.

    None if the profile is broken, for another mode or over `MAX_PROFILE` bytes, or if it is sRGB's.
    Its elements in floating point are not read.
    """
    mode = profile_mode(profile)
    if not mode:
        return None
    # By a name of its own for each: LittleCMS refuses a profile that has a tag twice.
    profile = ELEMENTS.sub(rb"non\1", profile[:TAGS_END]) + profile[TAGS_END:]
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    colours = Image.fromarray(PROBE).convert(mode)
    unchanged, changed = colours.convert("RGB"), transform.apply(colours)
    difference = np.abs(np.asarray(unchanged, np.int16) - np.asarray(changed, np.int16))
    return None if difference.max() <= SAME else transform


def usable_mode(profile: bytes) -> str:
    """Return the mode of the images whose colours `to_srgb` converts by a profile; empty if none's.

    Those of a broken profile, and of sRGB's, stay as they are.
    """
    return profile_mode(profile) if srgb_transform(profile) else ""


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert an RGB, RGBA, L, LA or CMYK image with this profile to RGB or RGBA in sRGB.

    The image itself is returned if `usable_mode` does not name its mode.
    """
    opaque, transform = image.mode.removesuffix("A"), srgb_transform(profile)
    if transform is None or opaque != profile_mode(profile):
        return image
    changed = transform.apply(image.convert(opaque))
    if image.mode != opaque:
        changed.putalpha(image.getchannel("A"))
    return changed
