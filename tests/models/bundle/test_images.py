"""Tests of the way from an image file's bytes to its views."""

import io
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from taillift.models.bundle.images import (
    BrokenImageError,
    ImageError,
    ImageTooLargeError,
    ImageTooLongError,
    NotAnImageError,
    canvas,
    decode,
    load,
    offsets,
    views,
)
from taillift.models.bundle.schema import Preprocessing
from tests.support.palette import photo

SIZES = st.integers(1, 40)


def preprocessing(**changes: object) -> Preprocessing:
    values = {
        "size": 16,
        "expand": 4,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
    }
    return Preprocessing.model_validate(values | changes)


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@given(SIZES, SIZES, st.integers(1, 16))
def test_views_lie_in_the_canvas_the_centre_first_then_the_corners(
    more_height: int, more_width: int, size: int
) -> None:
    height, width = size + more_height, size + more_width
    (top, left), *corners = offsets(height, width, size)
    assert abs(2 * top - (height - size)) <= 1
    assert abs(2 * left - (width - size)) <= 1
    assert set(corners) == {(y, x) for y in (0, height - size) for x in (0, width - size)}


@given(SIZES, SIZES, st.integers(1, 5))
def test_views_are_cut_from_the_canvas(more_height: int, more_width: int, count: int) -> None:
    pixels = noise(8 + more_height, 8 + more_width)
    cut = views(pixels, 8, count)
    assert (cut.shape, cut.dtype) == ((count, 8, 8, 3), np.dtype("u1"))
    for view, (top, left) in zip(cut, offsets(pixels.shape[0], pixels.shape[1], 8), strict=False):
        np.testing.assert_array_equal(view, pixels[top : top + 8, left : left + 8])


@given(SIZES, SIZES)
def test_a_canvas_keeps_the_shape_of_the_image(height: int, width: int) -> None:
    pixels = canvas(Image.fromarray(noise(height, width)), preprocessing())
    assert min(pixels.shape[:2]) == 20
    assert pixels.shape[0] / pixels.shape[1] == pytest.approx(height / width, rel=0.06)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@given(height=st.integers(16, 60), width=st.integers(16, 60))
def test_a_canvas_whose_long_side_is_cut_has_the_pixels_of_torchvision(
    interpolation: str, height: int, width: int
) -> None:
    image = Image.fromarray(noise(height, width))
    mode = InterpolationMode(interpolation)
    wanted = np.asarray(center_crop(resize(image, [20], mode), [20, 20]))
    cut = preprocessing(size=20, expand=0, interpolation=interpolation, long_side="cut")
    np.testing.assert_array_equal(views(canvas(image, cut), 20, 1)[0], wanted)


def test_a_bundle_that_does_not_say_so_rounds_the_long_side() -> None:
    image = Image.fromarray(noise(30, 52))  # At 20 pixels, the longer side has 34.67.
    assert canvas(image, preprocessing()).shape == (20, 35, 3)
    assert canvas(image, preprocessing(long_side="cut")).shape == (20, 34, 3)


def test_a_squashed_canvas_is_square() -> None:
    pixels = canvas(Image.fromarray(noise(10, 60)), preprocessing(resize_mode="squash"))
    assert pixels.shape == (20, 20, 3)


def test_resizing_a_large_image_is_antialiased() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = load(file_of(Image.fromarray(stripes), "PNG"), preprocessing())
    assert np.abs(pixels.astype(int) - 127).max() <= 3


def test_a_large_jpeg_decoded_smaller_looks_the_same() -> None:
    smooth = Image.fromarray(noise(6, 8)).resize((480, 360), Image.Resampling.BICUBIC)
    data = file_of(smooth, "JPEG", quality=95)
    scaled = load(data, preprocessing())
    assert min(decode(data, 20).size) == 45
    whole = canvas(Image.open(io.BytesIO(data)), preprocessing())
    assert np.abs(scaled.astype(int) - whole).mean() < 1


KINDS = [
    ("RGB", {}),
    ("RGBA", {}),
    ("LA", {}),
    ("L", {}),
    ("1", {}),
    ("P", {}),
    ("P", {"transparency": 3}),
    ("RGB", {"transparency": (1, 2, 3)}),
]


@pytest.mark.parametrize(("mode", "options"), KINDS)
def test_under_four_times_the_target_every_pixel_is_kept(
    mode: str, options: dict[str, object]
) -> None:
    data = file_of(Image.fromarray(noise(63, 70, 4)).convert(mode), "PNG", **options)
    image = Image.open(io.BytesIO(data))
    layer = image.convert("RGBA" if image.has_transparency_data else "RGB").convert("RGBA")
    wanted = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode(data, 16)), np.asarray(wanted))


@pytest.mark.parametrize(("mode", "options"), KINDS)
def test_a_large_image_is_reduced_and_looks_the_same(mode: str, options: dict[str, object]) -> None:
    smooth = Image.fromarray(noise(3, 4, 4)).resize((324, 240), Image.Resampling.BICUBIC)
    data = file_of(smooth.convert(mode), "PNG", **options)
    assert decode(data, 20).size == (54, 40)
    reduced = load(data, preprocessing()).astype(int)
    whole = canvas(decode(data, 1_000), preprocessing())
    assert np.abs(reduced - whole).mean() < 2


def test_a_large_image_is_turned_and_reduced() -> None:
    upright = Image.new("RGB", (100, 300), "blue")
    upright.paste((255, 0, 0), (0, 0, 100, 150))
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    image = decode(file_of(lying, "PNG", exif=exif()), 10)
    assert image.size == (20, 60)
    assert (image.getpixel((10, 10)), image.getpixel((10, 50))) == ((255, 0, 0), (0, 0, 255))


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "RGB"])
def test_a_large_image_takes_few_bytes_a_pixel(mode: str, tmp_path: Path) -> None:
    side = 4_000
    path = tmp_path / "large.png"
    Image.new(mode, (side, side)).save(path, compress_level=1)
    code = (
        "import sys; from pathlib import Path; from resource import RUSAGE_SELF, getrusage\n"
        "from taillift.models.bundle.images import decode\n"
        "data = Path(sys.argv[1]).read_bytes()\n"
        "before = getrusage(RUSAGE_SELF).ru_maxrss; decode(data, 248)\n"
        "print(getrusage(RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1_024 < 10 * side**2


def test_16_bit_grey_is_brought_to_8_bits() -> None:
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    image = decode(file_of(Image.fromarray(ramp), "PNG"), 16)
    np.testing.assert_array_equal(np.asarray(image)[..., 0], ramp >> 8)


def test_transparency_of_each_kind_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (9, 9), (255, 0, 0, 0))
    palette = Image.new("P", (9, 9), 0)
    palette.putpalette([10, 20, 30])
    for data in (
        file_of(rgba, "PNG"),
        file_of(rgba, "WEBP", lossless=True),
        file_of(palette, "PNG", transparency=0),
        file_of(Image.new("LA", (9, 9), (0, 0)), "PNG"),
    ):
        assert decode(data, 9).getpixel((4, 4)) == (255, 255, 255)


def test_too_many_pixels_are_seen_before_decoding() -> None:
    data = photo((0, 0, 0), size=(100, 100))[:60]
    with pytest.raises(ImageTooLargeError, match="100 x 100 pixels, more than the 9,999 allowed"):
        decode(data, 16, max_pixels=9_999)


def test_a_very_long_image_is_refused() -> None:
    assert decode(photo((0, 0, 0), size=(320, 10)), 16).size == (320, 10)
    with pytest.raises(ImageTooLongError, match="330 x 10 pixels: one side is more than 32 times"):
        decode(photo((0, 0, 0), size=(330, 10)), 16)


@pytest.mark.parametrize("data", [b"", b"text", b"GIF89a", photo((0, 0, 0), "BMP")])
def test_an_unsupported_format_differs_from_a_damaged_image(data: bytes) -> None:
    with pytest.raises(NotAnImageError):
        decode(data, 16)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_beginning_of_an_image_is_a_damaged_image(kind: str) -> None:
    data = file_of(Image.fromarray(noise(12, 12)), kind)
    for end in range(8, len(data) // 2):
        with pytest.raises(BrokenImageError):
            decode(data[:end], 16)


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


@pytest.mark.parametrize(
    "make",
    [
        lambda: file_of(Image.fromarray(noise(30, 30)), "JPEG", exif=exif()),
        lambda: file_of(Image.fromarray(noise(30, 30)).convert("CMYK"), "JPEG"),
        lambda: file_of(Image.fromarray(noise(30, 30, 4)), "PNG", exif=exif()),
        lambda: file_of(Image.fromarray(noise(30, 30)).convert("P"), "PNG", transparency=3),
        lambda: file_of(Image.fromarray(noise(30, 30, 4)), "WEBP", exif=exif()),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of some kinds of damage.
def test_whatever_is_damaged_ends_in_an_image_error(make: Callable[[], bytes]) -> None:
    data = make()
    choose = random.Random(0)
    damaged = 0
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(choose.choice([1, 3, 9])):
            broken[choose.randrange(len(broken))] = choose.randrange(256)
        try:
            image = decode(bytes(broken), 16)
        except ImageError:
            damaged += 1
        else:
            assert image.mode == "RGB"
    assert damaged > 0


def test_an_image_may_be_read_from_any_file(tmp_path: Path) -> None:
    path = tmp_path / "no-extension"
    path.write_bytes(photo((0, 0, 255), "JPEG"))
    assert load(path.read_bytes(), preprocessing())[0, 0, 2] > 250
