"""Stand-in photos for a rehearsal of a large job: shards with a long tail, of any size.

    python -m benchmarks.stand_ins FOLDER --photos 500000 --classes 2000

Each class has a colour of its own, to which noise is added, so that no two photos are equal and a
class can be learned. The number of photos of a class falls exponentially from the first class to
the last, which has 5.
"""

import argparse
import io
import tarfile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE: Final = 48
LEAST: Final = 5
IN_SHARD: Final = 10_000
HELD_OUT: Final = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=500_000)
    parser.add_argument("--classes", type=int, default=2_000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (options.classes, 3))
    counts = long_tail(options.photos, options.classes)
    names = [f"part {number:04}" for number in range(options.classes)]
    (options.folder / "classnames.txt").write_text("\n".join(names) + "\n")
    for split, labels in {
        "train": np.repeat(np.arange(options.classes), counts),
        "val": np.repeat(np.arange(options.classes), HELD_OUT),
        "test": np.repeat(np.arange(options.classes), HELD_OUT),
    }.items():
        rng.shuffle(labels)
        for start in range(0, len(labels), IN_SHARD):
            shard = options.folder / f"{split}-{start // IN_SHARD:03}.tar"
            write_shard(shard, labels[start : start + IN_SHARD], colours, rng)
    print(f"{counts.sum():,} training photos, {counts.max():,} to {counts.min()} a class")


def long_tail(photos: int, classes: int) -> NDArray[np.int64]:
    """Return the photos of each class, int64 [classes]: exponential, from the most to `LEAST`."""
    falls = np.linspace(0, 1, classes)
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        if (LEAST * np.exp(middle * (1 - falls))).sum() < photos:
            low = middle
        else:
            high = middle
    return np.round(LEAST * np.exp(low * (1 - falls))).astype(np.int64)


def write_shard(
    path: Path,
    labels: NDArray[np.int64],
    colours: NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    """Write photos with `labels` [N] as a tar shard; `colours` is [classes, 3]."""
    with tarfile.open(path, "w") as shard:
        for number, label in enumerate(labels):
            noise = rng.integers(-40, 41, (SIDE // 4, SIDE // 4, 3))
            pixels = np.clip(colours[label] + noise, 0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).resize((SIDE, SIDE)).save(file, "JPEG")
            for name, data in (("jpg", file.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{path.stem}-{number:05}.{name}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
