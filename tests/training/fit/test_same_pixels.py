"""Training and the service read the same pixels, whatever a photo is like."""

import asyncio
import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np
import pytest
from PIL import Image

from benchmarks.colours import SRGB, WIDER, matrix_profile
from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.images import VIEWS, ImageError, decode, pixel_count
from taillift.models.bundle.schema import MAX_PIXELS, Preprocessing
from taillift.models.errors import UserError
from taillift.service.inference.decoder import Decoder
from taillift.training.data.photo import Split, StoredPhoto
from taillift.training.fit.inputs import evaluation_photos, training_photos
from taillift.training.recipe.recipe import Augmentation
from tests.support.simulated_device import new_metrics

PREPROCESSING: Final = Preprocessing(
    size=32,
    expand=12,
    interpolation="bicubic",
    resize_mode="shortest",
    long_side="cut",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
PROFILES: Final = [
    None,
    b"broken",
    *(
        matrix_profile(space, name, version)
        for name, space in {"sRGB": SRGB, **WIDER}.items()
        for version in (2, 4)
    ),
]
SIZES: Final = ((60, 60), (97, 64), (64, 97), (400, 301))
MODES: Final = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "I;16"),
    "WEBP": ("RGB", "RGBA"),
}
# An odd resolution, which Pillow cannot write, next to the orientation.
ODD: Final = struct.pack("<HHI", 0x011A, 2, 3) + b"72\0\0"


def image_of(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 4), np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def photos_of_all_kinds() -> Iterator[bytes]:
    """Yield photos of each format, mode, size and profile, some of them turned, cut or padded."""
    choose = random.Random(0)
    text = b"parameters\0\0" + zlib.compress(os.urandom(600_000).hex().encode())
    for number, (kind, profile) in enumerate(product(MODES, PROFILES * 6)):
        mode, size = choose.choice(MODES[kind]), choose.choice(SIZES)
        entry = struct.pack("<HHIHH", 0x0112, 3, 1, choose.randrange(9), 0)
        exif = struct.pack("<2sHIH", b"II", 42, 8, 2) + entry + ODD + bytes(4)
        file = io.BytesIO()
        image = image_of(mode, size, number)
        image.save(file, kind, exif=b"Exif\0\0" + exif, icc_profile=profile)
        data = file.getvalue()
        if kind == "JPEG" and number % 3 == 0:
            data = data[:-2]
        if kind == "PNG" and number % 3 == 0:
            place = data.index(b"IDAT") - 4
            chunk = struct.pack(">I", len(text)) + b"zTXt" + text + b"sum?"
            data = data[:place] + chunk + data[place:]
        yield data


class Owner:
    """A request, as the decoder knows it."""


def served(photos: list[bytes]) -> list[Pixels]:
    async def views(decoder: Decoder, data: bytes) -> Pixels:
        pixels = pixel_count(data)
        return await decoder.views(
            data, pixels, VIEWS, MAX_PIXELS, PREPROCESSING, Owner(), perf_counter()
        )

    async def main() -> list[Pixels]:
        decoder = Decoder(2, MAX_PIXELS, new_metrics())
        found = await asyncio.gather(*(views(decoder, data) for data in photos))
        await decoder.close()
        return found

    return asyncio.run(main())


def written(folder: Path, photos: list[bytes]) -> Split:
    stored = []
    for number, data in enumerate(photos):
        (folder / str(number)).write_bytes(data)
        stored.append(StoredPhoto(folder, str(number), len(data), 0))
    return Split(tuple(stored), (0,) * len(stored))


def test_training_and_service_read_the_same_pixels_of_200_photos(tmp_path: Path) -> None:
    photos = list(islice(photos_of_all_kinds(), 210))
    assert len(photos) > 200
    split = written(tmp_path, photos)
    trained = evaluation_photos(split, PREPROCESSING)
    for number, views in enumerate(served(photos)):
        np.testing.assert_array_equal(trained.crop(number, 0), views)


def test_training_crops_the_pixels_that_are_served(tmp_path: Path) -> None:
    photos = [data for data in photos_of_all_kinds() if decode(data, 44).size == (60, 60)]
    whole = Augmentation(name="minimalist", schedule="max", flip=False)
    crops = training_photos(written(tmp_path, photos), PREPROCESSING, whole, 2, 0)
    assert len(photos) > 20
    for number, data in enumerate(photos):
        wanted = decode(data, 44).resize((32, 32), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(crops.crop(number, 0)[0], np.asarray(wanted))


def test_both_refuse_the_same_photos(tmp_path: Path) -> None:
    whole = next(photos_of_all_kinds())
    photos = [whole[:200], whole[: len(whole) // 2], b"\0\0\0\x18ftypheic", b"", b"text"]
    trained = evaluation_photos(written(tmp_path, photos), PREPROCESSING)
    for number, data in enumerate(photos):
        with pytest.raises(UserError) as in_training:
            trained.crop(number, 0)
        with pytest.raises(ImageError) as in_service:
            served([data])
        assert str(in_service.value) in str(in_training.value)


def test_photos_above_the_limit_of_their_split_are_refused_and_others_are_read(
    tmp_path: Path,
) -> None:
    photos = [data for data in photos_of_all_kinds() if pixel_count(data) == 97 * 64]
    split = replace(written(tmp_path, photos), max_pixels=97 * 64 - 1)
    for inputs in (
        evaluation_photos(split, PREPROCESSING),
        training_photos(split, PREPROCESSING, Augmentation(), 2, 0),
    ):
        with pytest.raises(UserError, match=r"0: the image has .* more than the 6,207 allowed"):
            inputs.crop(0, 0)
    enough = replace(split, max_pixels=97 * 64).only([0])
    assert evaluation_photos(enough, PREPROCESSING).crop(0, 0).shape == (5, 32, 32, 3)
