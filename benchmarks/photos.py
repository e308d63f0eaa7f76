"""The photos that are sent."""

from pathlib import Path
from typing import Final

from taillift.models.errors import UserError
from taillift.training.data.dataset import load_dataset

SAMPLE: Final = "wardrobe-lt"
# Neighbours are of one class.
STEP: Final = 17


def read_photos(folder: Path | None) -> list[bytes]:
    """The JPEGs under `folder`, by default the sample's test photos; raises `UserError`."""
    if folder is None:
        test = load_dataset(SAMPLE).test
        assert test is not None
        # From every class, in an order that mixes them.
        photos = [photo.read() for photo in test.photos]
        return [photo for start in range(STEP) for photo in photos[start::STEP]]
    paths = sorted(folder.rglob("*.jp*g"))
    if not paths:
        raise UserError(f"{folder} holds no JPEG")
    return [path.read_bytes() for path in paths]
