"""Images whose right answers are known before any request: computed through `models.bundle`."""

import io
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from taillift.models.bundle.arrays import Doubles, Pixels
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble, margin, mean_over_views
from taillift.models.bundle.images import ImageError, views
from taillift.models.bundle.schema import MAX_ASPECT
from taillift.service.problems import InferenceError, image_problem
from tests.support.palette import CLASSES, POISON, SLOW, photo

# Between batches of other sizes; what two photos must differ by is more.
TOLERANCE: Final = 2e-3
KINDS: Final = ("JPEG", "PNG", "WEBP")
BLOCK: Final = 40
FAR: Final = 60


class Right(NamedTuple):
    """Probabilities [C], and the views that they take."""

    probabilities: Doubles
    views: int


@dataclass(frozen=True)
class Photo:
    """An image file with its right answer for each ensemble, or a problem."""

    data: bytes = field(repr=False)
    right: Mapping[Ensemble, Right] = field(default_factory=dict, repr=False)
    status: int = 200
    problem: str | None = None


@dataclass(frozen=True)
class Photos:
    """`good` differ from each other in their answers; `poison` and `slow` need the palette."""

    good: Sequence[Photo]
    damaged: Sequence[Photo]
    foreign: Sequence[Photo]
    bombs: Sequence[Photo]
    poison: Sequence[Photo]
    slow: Sequence[Photo]


def prepare(classifier: Classifier, files: Iterable[bytes], palette: bool, seed: int) -> Photos:
    """Look at every file offline, and at what chance makes of it."""
    choose = random.Random(seed)
    good = distinct(looked_at(classifier, data) for data in files if clear(classifier, data))
    damaged = [
        looked_at(classifier, damage(one.data, choose))
        for one in good
        for damage in (cut, overwritten)
    ]
    return Photos(
        good=good,
        damaged=damaged,
        foreign=[looked_at(classifier, data) for data in foreign()],
        bombs=[looked_at(classifier, data) for data in bombs()],
        poison=[_poison(kind) for kind in KINDS] if palette else [],
        slow=[looked_at(classifier, photo(SLOW))] if palette else [],
    )


def looked_at(classifier: Classifier, data: bytes) -> Photo:
    try:
        canvas = classifier.canvas(data)
    except ImageError as error:
        problem = image_problem(error)
        return Photo(data, {}, problem.status, problem.document().type)
    return Photo(data, {ensemble: _right(classifier, canvas, ensemble) for ensemble in Ensemble})


def _right(classifier: Classifier, canvas: Pixels, ensemble: Ensemble) -> Right:
    (outputs,) = classifier.outputs([canvas], ensemble)
    return Right(classifier.predictor.predict(outputs, ensemble).uniform, outputs.views)


def _poison(kind: str) -> Photo:
    problem = InferenceError("")
    return Photo(photo(POISON, kind), {}, problem.status, problem.document().type)


def clear(classifier: Classifier, data: bytes) -> bool:
    """Whether another order of adding cannot change after how many views the image stops."""
    rule = classifier.predictor.stages(Ensemble.ADAPTIVE)
    pixels = views(classifier.canvas(data), classifier.manifest.preprocessing.size)
    rows = classifier.run(pixels).logits
    leads = [float(margin(mean_over_views(rows[:stage], stage))[0]) for stage in rule.stages[:-1]]
    return all(abs(one - least) > TOLERANCE for one, least in zip(leads, rule.leads, strict=True))


def distinct(photos: Iterable[Photo]) -> list[Photo]:
    """Those whose answers, by every ensemble, differ from those of all before them."""
    kept: list[Photo] = []
    for one in photos:
        if one.right and not any(_alike(one, other) for other in kept):
            kept.append(one)
    return kept


def _alike(one: Photo, other: Photo) -> bool:
    return any(
        np.abs(right.probabilities - other.right[ensemble].probabilities).max() < 4 * TOLERANCE
        for ensemble, right in one.right.items()
    )


def colourful(count: int, seed: int) -> list[bytes]:
    """Image files of coloured blocks, none of them near to a colour that makes trouble."""
    choose = np.random.default_rng(seed)
    files: list[bytes] = []
    centres = [colour for colour, _ in CLASSES.values()]
    while len(files) < count:
        base = np.array(centres[len(files) % len(centres)]) * choose.uniform(0.2, 1, 3)
        blocks = (base + choose.integers(-BLOCK, BLOCK, (4, 4, 3))).clip(0, 255).astype(np.uint8)
        mean = blocks.mean((0, 1))
        if min(np.abs(mean - colour).max() for colour in (SLOW, POISON)) < FAR:
            continue
        image = Image.fromarray(blocks).resize((64, 48), Image.Resampling.NEAREST)
        file = io.BytesIO()
        image.save(file, KINDS[len(files) % len(KINDS)])
        files.append(file.getvalue())
    return files


def cut(data: bytes, choose: random.Random) -> bytes:
    """The first part of a file."""
    return data[: choose.randrange(1, len(data))]


def overwritten(data: bytes, choose: random.Random) -> bytes:
    """A file with some bytes of noise."""
    noisy = bytearray(data)
    for _ in range(choose.randint(1, 30)):
        noisy[choose.randrange(len(noisy))] = choose.randrange(256)
    return bytes(noisy)


def foreign() -> list[bytes]:
    """No images, or none of a type that is taken."""
    saved = []
    for kind in ("GIF", "BMP", "TIFF"):
        file = io.BytesIO()
        Image.new("RGB", (20, 16)).save(file, kind)
        saved.append(file.getvalue())
    return [*saved, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\0" * 5_000]


def bombs() -> list[bytes]:
    """Small files of many pixels, one that is longer than allowed, and one of many scans."""
    sides: Sequence[tuple[int, int]] = (
        (30_000, 30_000),
        (8_000, 7_000),
        (100, 100 * MAX_ASPECT + 1),
    )
    return [*(_png(width, height) for width, height in sides), _many_scans()]


def _png(width: int, height: int) -> bytes:
    """A black PNG of one bit a pixel."""
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    header = width.to_bytes(4) + height.to_bytes(4) + b"\x01\0\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, (b"IHDR" + header, b"IDAT" + rows, b"IEND")))


def _many_scans() -> bytes:
    """A progressive JPEG whose last scan, a pass over all pixels, comes 2,000 times."""
    file = io.BytesIO()
    Image.new("L", (3_000, 3_000), 90).save(file, "JPEG", progressive=True)
    data, end = file.getvalue(), b"\xff\xd9"
    scan = data[data.rindex(b"\xff\xda") : -len(end)]
    return data[: -len(end)] + 2_000 * scan + end


def _chunk(content: bytes) -> bytes:
    return (len(content) - 4).to_bytes(4) + content + zlib.crc32(content).to_bytes(4)
