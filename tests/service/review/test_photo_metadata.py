"""The photo's file that is kept: its pixels as they were encoded, and no place anywhere."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from taillift.models.bundle.images import decode
from taillift.service.review.photo_metadata import TYPES, clean_exif, photo_kind, without_place

NOISE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
KINDS = ("JPEG", "PNG", "WEBP")
GPS, DETAILS, SMALL_COPY, MAKER_NOTE = 0x8825, 0x8769, 1, 0x927C
# Bytes that are in the place, and nowhere else.
DATE = b"1999:12:31"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf exif:GPSLatitude="52,31.2N"/></x:xmpmeta>'


def with_place(turned: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", turned
    exif.get_ifd(GPS).update({1: "N", 2: (52.0, 31.0, 12.0), 29: DATE.decode()})
    exif.get_ifd(DETAILS).update({0x9003: "2024:05:06 07:08:09", MAKER_NOTE: b"SECRET"})
    return exif


def encode(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> object:
    """Return what the model sees of a photo: turned, and in sRGB."""
    return np.asarray(decode(data, 48)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_place_and_the_makers_note_go_and_the_rest_of_exif_stays(kind: str) -> None:
    data = encode(kind, exif=with_place())
    assert DATE in data
    cleaned = without_place(data)
    assert DATE not in cleaned
    assert b"SECRET" not in cleaned
    image = Image.open(io.BytesIO(cleaned))
    image.load()
    exif = image.getexif()
    assert exif.get_ifd(GPS) == {}
    assert (exif[0x010F], exif[0x0112]) == ("Maker", 6)
    assert exif.get_ifd(DETAILS) == {0x9003: "2024:05:06 07:08:09"}
    assert pixels(cleaned) == pixels(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_without_metadata_does_not_change_by_a_byte(kind: str) -> None:
    assert without_place(encode(kind)) == encode(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_in_xmp_goes_and_the_colour_profile_stays(kind: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options: dict[str, object] = {"icc_profile": profile}
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        info.add_text("Raw profile type exif", "GPSLatitude 52")
        options["pnginfo"] = info
    else:
        options["xmp"] = XMP
    data = encode(kind, **options)
    assert b"GPSLatitude" in data
    cleaned = without_place(data)
    assert b"GPSLatitude" not in cleaned
    assert Image.open(io.BytesIO(cleaned)).info["icc_profile"] == profile
    assert pixels(cleaned) == pixels(data)


def test_a_large_colour_profile_of_a_jpeg_stays_in_several_segments() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile += bytes(150_000)
    profile = struct.pack(">I", len(profile)) + profile[4:]
    cleaned = without_place(encode("JPEG", icc_profile=profile))
    assert Image.open(io.BytesIO(cleaned)).info["icc_profile"] == profile


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_photo_that_only_xmp_turns_is_turned_as_before(turned: int) -> None:
    xmp = f'<rdf:Description tiff:Orientation="{turned}"/>'.encode()
    data = encode("JPEG", xmp=xmp)
    cleaned = without_place(data)
    assert b"tiff" not in cleaned
    assert pixels(cleaned) == pixels(data)


def test_what_follows_a_jpeg_is_left_out() -> None:
    """A phone's file holds further photos or a film, each with its own place."""
    first, second = encode("JPEG"), encode("JPEG", exif=with_place())
    assert without_place(first + second + b"ftypmp42 film") == first


def test_the_small_copy_and_a_comment_are_left_out() -> None:
    small = encode("JPEG", comment=b"at home, Berlin")
    assert b"Berlin" in small
    assert b"Berlin" not in without_place(small)


@pytest.mark.parametrize(
    "raw",
    [
        b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + DATE,
        b"Exif\0\0II\x2a\0\xff\xff\xff\xff" + DATE,
        b"Exif\0\0" + DATE,
        b"",
        b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x88\x25\0\x04\0\0\0\x01\0\0\0\x08" + DATE,
        b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x08" + DATE,
        b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\xc0\x00\0\x02\xff\xff\xff\xff\0\0\0\x08" + DATE,
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_is_left_out_and_the_photo_stays_turned(raw: bytes) -> None:
    assert DATE not in clean_exif(raw, 3)
    turned = Image.Exif()
    turned.load(clean_exif(raw, 3))
    assert turned[0x0112] == 3
    assert DATE not in clean_exif(raw, 1)


def test_a_webp_with_a_place_but_no_header_for_it_and_an_animated_one_stay_readable() -> None:
    plain = encode("WEBP")
    body = plain[12:] + b"EXIF" + struct.pack("<I", 4) + b"MM\0*" + b"XMP " + bytes(4)
    data = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    assert without_place(data) == plain
    frames = [Image.fromarray(NOISE), Image.fromarray(255 - NOISE)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], exif=with_place())
    cleaned = without_place(file.getvalue())
    assert DATE not in cleaned
    assert pixels(cleaned) == pixels(file.getvalue())


def test_exif_of_a_png_has_a_valid_checksum() -> None:
    cleaned = without_place(encode("PNG", exif=with_place()))
    at = cleaned.index(b"eXIf")
    (size,) = struct.unpack_from(">I", cleaned, at - 4)
    (checksum,) = struct.unpack_from(">I", cleaned, at + 4 + size)
    assert checksum == zlib.crc32(cleaned[at : at + 4 + size])


def test_the_kind_of_a_photo_is_told_by_its_first_bytes() -> None:
    assert [photo_kind(encode(kind)) for kind in KINDS] == list(TYPES)
