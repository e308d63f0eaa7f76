"""Measure how fast many photos are classified from a folder to a file.

    python -m benchmarks.folders BUNDLE [--turns 3] [--photos 200]

Writes JPEGs of 500 x 375 pixels, and classifies them with five views each, into a CSV file, in
turns with a bare ONNX Runtime loop: the same session in batches of the same size over the same
views, decoded in advance. Prints photos per second of both, and their ratio in each turn.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import numpy as np
from PIL import Image

from benchmarks.tables import markdown
from taillift.models.bundle.classifier import BATCH_VIEWS, Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.images import VIEWS, views
from taillift.service.inference.folder_run import Asked, classify_photos
from taillift.service.inference.photo_parts import photo_list

SIZE: Final = (500, 375)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--photos", type=int, default=200)
    options = parser.parse_args()
    classifier = Classifier.open(options.bundle)
    with photos_of_noise(options.photos) as photos:
        turns = []
        for turn in range(options.turns):
            bare = bare_speed(classifier, photos)
            out = photos[0].with_name(f"{turn}.csv")
            start = perf_counter()
            classify_photos(classifier, photo_list(photos), out, Asked(Ensemble.FULL, top_k=3))
            turns.append((bare, len(photos) / (perf_counter() - start)))
    rows = [[f"{bare:.1f}", f"{ours:.1f}", f"{ours / bare:.2f}"] for bare, ours in turns]
    print(markdown(["bare loop, photos/s", "classify --out, photos/s", "ratio"], rows))
    print(f"\nmedian ratio {median(ours / bare for bare, ours in turns):.2f}")


@contextmanager
def photos_of_noise(count: int) -> Iterator[list[Path]]:
    """Write smooth noise, which compresses as photos do."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(count)]
        for path in paths:
            coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
            coarse.resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
        yield paths


def bare_speed(classifier: Classifier, photos: list[Path]) -> float:
    """Return the photos per second of the graph alone."""
    size, step = classifier.manifest.preprocessing.size, BATCH_VIEWS // VIEWS
    batches = [
        np.concatenate([views(classifier.canvas(photo), size) for photo in photos[start:][:step]])
        for start in range(0, len(photos), step)
    ]
    start = perf_counter()
    for batch in batches:
        classifier.session.run(batch)
    return len(photos) / (perf_counter() - start)


if __name__ == "__main__":
    main()
