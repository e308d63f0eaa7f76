"""Tests of colour profiles: what is converted to sRGB, and what a bad profile changes: nothing."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from benchmarks.colours import (
    SRGB,
    WIDER,
    converted_exactly,
    matrix_profile,
    packed_profile,
    stored_in,
)
from taillift.models.bundle.colour_profile import profile_name
from taillift.models.bundle.image_guard import MAX_PROFILE
from taillift.models.bundle.images import decode, load, load_pil
from taillift.models.bundle.schema import Preprocessing
from tests.support.png import chunk

P3 = matrix_profile(WIDER["Display P3"], "Display P3")
# sRGB's red, green, blue, a skin tone and a grey in each space, by the published matrices.
KNOWN = {
    "Display P3": [(234, 51, 35), (117, 251, 76), (0, 0, 245), (217, 179, 154), (99, 99, 99)],
    "Adobe RGB": [(219, 0, 0), (144, 255, 60), (0, 0, 250), (211, 176, 150), (98, 98, 98)],
}
SRGB_COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (224, 177, 150), (99, 99, 99)]


def noise(mode: str = "RGB") -> Image.Image:
    count = 40 * 32 * len(mode)
    return Image.frombytes(mode, (40, 32), random.Random(0).randbytes(count))


def saved(kind: str, image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"lossless": True} | options if kind == "WEBP" else options))
    return file.getvalue()


def pixel(image: Image.Image, x: int, y: int) -> NDArray[np.int16]:
    return np.asarray(image.crop((x, y, x + 1, y + 1)), np.int16).ravel()


def smooth() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)


def lut_profile(space: bytes, channels: int) -> bytes:
    """Return a profile with a table from white to black that follows the last channel alone."""
    tables = struct.pack(">HH", 2, 2) + struct.pack(">HH", 0, 65535) * channels
    white_and_black = struct.pack(">6H", 65280, 32768, 32768, 0, 32768, 32768)
    outputs = white_and_black * 2 ** (channels - 1)
    identity = [65536 * (row == column) for row in range(3) for column in range(3)]
    head = b"mft2\0\0\0\0" + bytes([channels, 3, 2, 0]) + struct.pack(">9i", *identity)
    lut = head + tables + outputs + struct.pack(">HH", 0, 65535) * 3
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"a\0" + bytes(78)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"desc": text, b"cprt": text, b"wtpt": white, b"A2B0": lut}
    return packed_profile(tags, 2, space).replace(b"XYZ ", b"Lab ", 1)


def grey_profile(gamma: float) -> bytes:
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"a\0" + bytes(78)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma)) + bytes(2)
    tags = {b"desc": text, b"cprt": text, b"wtpt": white, b"kTRC": curve}
    return packed_profile(tags, 2, b"GRAY")


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("space", KNOWN)
def test_colours_of_wider_spaces_are_those_that_were_photographed(space: str, version: int) -> None:
    image = Image.fromarray(np.array([KNOWN[space]], np.uint8))
    profile = matrix_profile(WIDER[space], space, version)
    read = np.asarray(decode(saved("PNG", image, icc_profile=profile), 16))[0]
    assert np.abs(read.astype(int) - SRGB_COLOURS).max() <= 4


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("space", WIDER)
def test_a_conversion_is_within_a_level_of_double_precision(space: str, version: int) -> None:
    """Noise has colours all over the space, also those that sRGB lacks."""
    profile = matrix_profile(WIDER[space], space, version)
    for photo in (saved("PNG", noise(), icc_profile=profile), stored_in(smooth(), profile)):
        exact = np.asarray(converted_exactly(photo, WIDER[space]), np.int16)
        difference = np.abs(np.asarray(decode(photo, 200), np.int16) - exact)
        assert difference.max() <= 1
        assert difference.mean() < 0.05


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("space", WIDER)
def test_a_photo_looks_the_same_in_every_space(space: str, kind: str, version: int) -> None:
    profile = matrix_profile(WIDER[space], space, version)
    source = ImageCms.createProfile("sRGB")
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    wide = ImageCms.buildTransform(source, target, "RGB", "RGB").apply(smooth())
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    read = decode(saved(kind, wide, icc_profile=profile, **options), 60)
    unconverted = decode(saved(kind, wide, **options, icc_profile=None), 60)
    wanted = np.asarray(smooth(), np.int16)
    assert np.abs(np.asarray(read, np.int16) - wanted).mean() < 2.5
    assert np.abs(np.asarray(unconverted, np.int16) - wanted).mean() > 5


@pytest.mark.parametrize("version", [2, 4])
def test_a_photo_with_the_profile_of_srgb_keeps_its_pixels(version: int) -> None:
    for profile in (
        matrix_profile(SRGB, "sRGB", version),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        data = saved("PNG", noise(), icc_profile=profile)
        assert decode(data, 16).tobytes() == noise().tobytes()


def test_transparency_stays_and_white_is_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((234, 51, 35, 255), (0, 0, 4, 8))
    for kind in ("PNG", "WEBP"):
        read = decode(saved(kind, image, icc_profile=P3, exact=True), 8)
        assert read.getpixel((6, 4)) == (255, 255, 255)
        assert np.abs(pixel(read, 1, 4) - (255, 0, 0)).max() <= 3


def test_palettes_are_converted() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([234, 51, 35])
    read = decode(saved("PNG", image, icc_profile=P3), 8)
    assert np.abs(pixel(read, 4, 4) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_photos_are_converted_by_profiles_for_grey_and_for_rgb(mode: str) -> None:
    level, image = 255 if mode == "1" else 99, Image.new("L", (8, 8), 99)
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 99 * 256, np.uint16))
    else:
        image = Image.new("L", (8, 8), level).convert(mode)
    linear = 255 if mode == "1" else round(255 * (1.055 * (99 / 255) ** (1 / 2.4) - 0.055))
    prophoto = matrix_profile(WIDER["ProPhoto"])
    wanted = 255 if mode == "1" else round(255 * (1.055 * (99 / 255) ** (1.8 / 2.4) - 0.055))
    for profile, level in ((grey_profile(1.0), linear), (prophoto, wanted)):
        read = decode(saved("PNG", image, icc_profile=profile), 8)
        assert np.abs(pixel(read, 4, 4) - level).max() <= 2


def test_cmyk_photos_are_converted_by_their_profile() -> None:
    image = Image.merge("CMYK", [*noise().split(), Image.new("L", (40, 32), 128)])
    for size in ((40, 32), (400, 320)):
        data = saved("JPEG", image.resize(size), icc_profile=lut_profile(b"CMYK", 4), quality=95)
        assert np.abs(np.asarray(decode(data, 16), np.int16) - 119).max() <= 4  # L* = 50


def damaged(seed: int) -> bytes:
    choose, profile = random.Random(seed), bytearray(P3)
    for _ in range(8):
        profile[choose.randrange(128, 300)] = choose.randrange(256)
    return bytes(profile)


def element_profile(pieces: int) -> bytes:
    """Return a profile of curves in so many pieces alone, which would take minutes to apply."""
    piece = b"parf" + bytes(8) + struct.pack(">4f", 1, 1, 0, 0)
    curve = b"curf" + bytes(4) + struct.pack(">HH", pieces, 0) + struct.pack(">f", 2) * (pieces - 1)
    curve += pieces * piece
    curves = b"cvst" + bytes(4) + struct.pack(">HH", 3, 3) + 3 * struct.pack(">II", 36, len(curve))
    size = len(curves + curve)
    head = b"mpet" + bytes(4) + struct.pack(">HHIII", 3, 3, 1, 24, size)
    return packed_profile({b"D2B0": head + curves + curve}, 4)


UNUSABLE: Final = [
    (noise(), element_profile(10)),
    (noise(), b"nonsense" * 40),
    (noise(), P3[:200]),
    (noise(), P3[:128] + b"\xff" * 400),
    (noise(), P3[:16] + b"GRAY" + P3[20:]),
    (noise(), grey_profile(1.0)),
    (noise("L"), lut_profile(b"CMYK", 4)),
    (noise(), lut_profile(b"CMYK", 4)),
    (noise(), P3.ljust(MAX_PROFILE + 1, b"\0")),
    (noise(), lut_profile(b"Lab ", 3)),
    (noise("CMYK"), P3),
    (noise("CMYK"), P3[:16] + b"CMYK" + P3[20:]),
]


@pytest.mark.parametrize(
    ("image", "profile", "kind"),
    [
        (image, profile, kind)
        for image, profile in UNUSABLE
        # Only a JPEG has four colours.
        for kind in (["JPEG"] if image.mode == "CMYK" else ["JPEG", "PNG", "WEBP"])
    ],
)
def test_a_broken_or_foreign_profile_counts_as_none(
    image: Image.Image, profile: bytes, kind: str
) -> None:
    if image.mode == "L" and kind == "WEBP":
        image = image.convert("RGB")
    read = decode(saved(kind, image, icc_profile=profile), 8)
    assert read.tobytes() == decode(saved(kind, image, icc_profile=None), 8).tobytes()


def test_elements_in_floating_point_are_not_read() -> None:
    image = noise()
    one = P3.replace(b"cprt", b"D2B0", 1)
    two = one.replace(b"desc", b"D2B1", 1)
    assert two != one != P3
    same = decode(saved("PNG", image, icc_profile=P3), 8).tobytes()
    assert same != decode(saved("PNG", image), 8).tobytes()
    for with_elements in (one, two):
        assert decode(saved("PNG", image, icc_profile=with_elements), 8).tobytes() == same


def test_whatever_is_damaged_in_a_profile_the_photo_is_read() -> None:
    for seed in range(300):
        assert decode(saved("PNG", noise(), icc_profile=damaged(seed)), 16).size == (40, 32)


def packed(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"a\0\0" + zlib.compress(profile))


@pytest.mark.parametrize(
    ("chunks", "counts"),
    [
        (packed(P3) * 990, True),
        (packed(P3) + packed(bytes(2**20)) * 900, True),
        (packed(bytes(2**26)), False),
        (chunk(b"iCCP", b"a\0\0" + zlib.compress(P3)[:-9]), False),
        (chunk(b"iCCP", b"a\0\0" + P3), False),
        (chunk(b"iCCP", b""), False),
        (chunk(b"iCCP", b"a" * 90 + b"\0\0" + zlib.compress(P3)), False),
    ],
    ids=["990", "and others", "a bomb", "cut off", "not packed", "empty", "a long name"],
)
def test_only_the_first_profile_of_a_png_is_unpacked_and_within_bounds(
    chunks: bytes, counts: bool
) -> None:
    data = saved("PNG", noise())
    place = data.index(b"IDAT") - 4
    read = decode(data[:place] + chunks + data[place:], 16)
    profile = {"icc_profile": P3} if counts else {}
    assert read.tobytes() == decode(saved("PNG", noise(), **profile), 16).tobytes()


def app2(number: int, count: int, part: bytes) -> bytes:
    content = b"ICC_PROFILE\0" + bytes([number, count]) + part
    return b"\xff\xe2" + struct.pack(">H", 2 + len(content)) + content


@pytest.mark.parametrize(
    ("segments", "counts"),
    [
        (app2(2, 2, P3[300:]) + app2(1, 2, P3[:300]), True),
        (app2(0, 2, P3[:300]) + app2(1, 2, P3[300:]), True),
        (app2(1, 1, P3) * 2, True),
        (app2(1, 3, P3[:300]) + app2(2, 3, P3[300:]), False),
        (app2(1, 2, P3), False),
        (b"\xff\xe2\0\x0eICC_PROFILE\0", False),
        (app2(1, 1, b""), False),
        (b"".join(app2(number, 200, bytes(65_000)) for number in range(1, 201)), False),
    ],
    ids=["in disorder", "from 0", "twice", "one missing", "half", "no number", "empty", "12 MB"],
)
def test_the_parts_of_a_jpegs_profile_are_joined(segments: bytes, counts: bool) -> None:
    data = saved("JPEG", noise())
    read = decode(data[:2] + segments + data[2:], 16)
    profile = {"icc_profile": P3} if counts else {}
    assert read.tobytes() == decode(saved("JPEG", noise(), **profile), 16).tobytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda: stored_in(smooth(), P3),
        lambda: saved("PNG", smooth(), icc_profile=P3),
        lambda: saved("WEBP", smooth(), icc_profile=P3),
        lambda: saved("JPEG", noise("L"), icc_profile=grey_profile(1.0)),
    ],
)
def test_an_opened_image_is_read_as_its_file(make: Callable[[], bytes]) -> None:
    preprocessing = Preprocessing(
        size=16,
        expand=4,
        interpolation="bicubic",
        resize_mode="shortest",
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    opened = load_pil(Image.open(io.BytesIO(make())), preprocessing)
    np.testing.assert_array_equal(opened, load(make(), preprocessing))


def test_a_profile_has_a_name() -> None:
    names = [profile_name(data) for data in (P3, b"", P3[:200], matrix_profile(SRGB, "a", 2))]
    assert names == ["Display P3", "broken", "broken", "a"]
