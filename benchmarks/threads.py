"""Measure how decoding and inference share the CPU cores.

    python -m benchmarks.threads BUNDLE PHOTO [--rounds 3] [--seconds 3]

Decodes PHOTO again and again in one thread a core while the bundle's graph runs the views in
batches of eight photos, as the service does, and prints photos per second for each number of
compute threads, with and without threads that spin while they wait. The settings take turns, so
that what else the machine does falls on all of them alike.
"""

import argparse
import queue
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.device import SESSION_ENTRIES, Device
from taillift.models.bundle.folder import MODEL, read_manifest
from taillift.models.bundle.images import VIEWS, load, views
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.session import Session
from taillift.service.settings import cores

BATCH: Final = 8
SPINNING: Final = "session.intra_op.allow_spinning"
Setting = tuple[int, bool]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    manifest, photo = read_manifest(options.bundle), options.photo.read_bytes()
    sessions = {
        (threads, spinning): open_session(options.bundle, threads, spinning)
        for threads in sorted({1, cores()})
        for spinning in (False, True)
    }
    speeds: dict[Setting, list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for setting, session in sessions.items():
            speeds[setting].append(speed(session, photo, manifest, options.seconds))
    Console().print(table(speeds))


def open_session(bundle: Path, threads: int, spinning: bool) -> Session:
    with patch.dict(SESSION_ENTRIES, {SPINNING: str(int(spinning))}):
        return Session(bundle / MODEL, Device(threads=threads))


def speed(session: Session, photo: bytes, manifest: Manifest, seconds: float) -> float:
    """Photos per second, five views each."""
    with decoded(photo, manifest) as photos:
        start, count = perf_counter(), 0
        while perf_counter() - start < seconds:
            batch = [photos.get()]
            while len(batch) < BATCH and not photos.empty():
                batch.append(photos.get())
            session.run(np.concatenate(batch))
            count += len(batch)
        return count / (perf_counter() - start)


@contextmanager
def decoded(photo: bytes, manifest: Manifest) -> Iterator["queue.Queue[Pixels]"]:
    """The views of the photo, from one thread a core that are never more than a batch ahead."""
    photos: queue.Queue[Pixels] = queue.Queue(BATCH)
    stop = threading.Event()
    preprocessing = manifest.preprocessing

    def decode() -> None:
        while not stop.is_set():
            pixels = views(load(photo, preprocessing), preprocessing.size, VIEWS)
            while not stop.is_set():
                try:
                    photos.put(pixels, timeout=0.1)
                    break
                except queue.Full:
                    continue

    threads = [threading.Thread(target=decode) for _ in range(cores())]
    for thread in threads:
        thread.start()
    try:
        yield photos
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def table(speeds: dict[Setting, list[float]]) -> Table:
    result = Table("compute threads", "spinning", "photos/s (median)", "each round")
    for (threads, spinning), found in speeds.items():
        rounds = " ".join(f"{one:.1f}" for one in found)
        result.add_row(str(threads), "yes" if spinning else "no", f"{median(found):.1f}", rounds)
    return result


if __name__ == "__main__":
    main()
