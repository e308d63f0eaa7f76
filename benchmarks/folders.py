"""Measure how fast many photos are classified from a folder to a file.

    python -m benchmarks.folders BUNDLE [--turns 3] [--photos 200]
    python -m benchmarks.folders BUNDLE --memory 10000

Writes JPEGs of 500 x 375 pixels, and classifies them with five views each, into a CSV file, in
turns with a bare ONNX Runtime loop: the same session in batches of the same size over the same
views, decoded in advance. Prints photos per second of both, and their ratio in each turn.

With --memory, so many photos, and one that is broken, are classified with one view: into a CSV
file, and into a folder of Parquet files. They come from a folder, from tar shards, and from tables
of paths and of files. A table is one row group, as pandas and pyarrow write it. Prints the most
memory that the command and its processes took together in each quarter of its time, from the first
row on.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
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
# Seconds between two looks at the memory.
LOOK: Final = 0.2
SHARDS: Final = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--memory", type=int, metavar="PHOTOS")
    options = parser.parse_args()
    if options.memory:
        with photos_of_noise(200) as photos:
            print(memory_table(options.bundle, photos, options.memory))
        return
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


def memory_table(bundle: Path, photos: Sequence[Path], count: int) -> str:
    """Return the memory in each quarter of each way to classify `count` photos, as a table."""
    import pyarrow as pa
    from pyarrow import parquet

    with tempfile.TemporaryDirectory() as name:
        many, shards = Path(name) / "many", Path(name) / "shards"
        many.mkdir()
        shards.mkdir()
        for number in range(count):
            os.link(photos[number % len(photos)], many / f"{number:06}.jpg")
        (many / "broken.jpg").write_bytes(b"no photo")
        for shard in range(SHARDS):
            with tarfile.open(shards / f"{shard}.tar", "w") as tar:
                for number in range(shard, count, SHARDS):
                    tar.add(photos[number % len(photos)], f"{number:06}.jpg")
        paths = [str(many / f"{number:06}.jpg") for number in range(count)]
        files = [photos[number % len(photos)].read_bytes() for number in range(count)]
        for column, cells in {"path": paths, "bytes": files}.items():
            table = pa.table({column: cells})
            parquet.write_table(table, Path(name) / f"{column}.parquet", use_dictionary=False)
        ways = {
            "a folder to a CSV file": (many, Path(name) / "rows.csv"),
            "a folder to Parquet files": (many, Path(name) / "rows"),
            "tar shards to Parquet files": (shards, Path(name) / "sharded"),
            "a table of paths to Parquet files": (Path(name) / "path.parquet", Path(name) / "p"),
            "a table of files to Parquet files": (Path(name) / "bytes.parquet", Path(name) / "b"),
        }
        rows = []
        for title, (source, out) in ways.items():
            memory = memory_of_run(bundle, source, out)
            part = len(memory) / 4
            quarters = [max(memory[round(i * part) : round((i + 1) * part)]) for i in range(4)]
            rows.append([title, *(f"{most:.0f}" for most in quarters)])
    titles = ["MiB", "first quarter", "second", "third", "last"]
    return markdown(titles, rows)


def memory_of_run(bundle: Path, source: Path, out: Path) -> list[float]:
    """Return the MiB that `taillift classify` took, at each look from its first row on."""
    command = [sys.executable, "-m", "taillift", "classify", str(bundle), str(source)]
    command += ["--out", str(out), "--ensemble", "off"]
    memory = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while run.poll() is None:
            if out.exists():
                memory.append(tree_memory(run.pid))
            sleep(LOOK)
    if run.returncode:
        raise SystemExit(f"classify ended with {run.returncode}")
    return memory


def tree_memory(pid: int) -> float:
    """Return the MiB that a process and its children have to themselves or share, each once."""
    total = 0.0
    with suppress(OSError):  # It has just ended.
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**10
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(map(tree_memory, map(int, (task / "children").read_text().split())))
    return total


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
