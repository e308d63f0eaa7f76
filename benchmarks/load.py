"""The service under load that does not wait for answers, and what HTTP costs.

    python -m benchmarks.load BUNDLE
    python -m benchmarks.load --architecture ViT-B-16 --ensembles full,off --deadline 20

For each ensemble the capacity is measured first, by clients that send one photo after the other.
Then photos come at 0.5, 0.9 and 1.5 of it, evenly, whether or not there are answers. A request
asks to be answered within the deadline; goodput are the answers a second that were. Afterwards
the service with five views takes turns with a bare loop: the same session over the same views,
already decoded. The load comes from k6, on the same cores.

With --architecture the bundle is one of open_clip's towers with random weights.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Final, NamedTuple

import numpy as np

from benchmarks.k6 import Load, Target, as_fast_as_answered, at_rate
from benchmarks.photos import read_photos
from benchmarks.served import Served, taillift
from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.images import VIEWS, views
from taillift.models.errors import UserError
from taillift.service.settings import Settings, read_settings

SHARES: Final = (0.5, 0.9, 1.5)
# Enough that a batch is full while the one before it is answered.
CLIENTS: Final = 32
BARE_PHOTOS: Final = 32


class Row(NamedTuple):
    ensemble: Ensemble
    capacity: float
    share: float
    load: Load
    memory: float


class Turn(NamedTuple):
    """Images a second."""

    bare: float
    served: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--architecture", help="of open_clip, instead of a bundle")
    parser.add_argument("--photos", type=Path, help="folder of JPEGs; by default the sample's")
    parser.add_argument("--ensembles", default="off,adaptive,full")
    parser.add_argument("--seconds", type=float, default=30, help="of every measurement")
    parser.add_argument("--deadline", type=float, default=2, help="seconds")
    parser.add_argument("--turns", type=int, default=3, help="of the bare loop and the service")
    parser.add_argument("--out", type=Path, default=RESULTS / "load.md")
    options = parser.parse_args()
    if (options.bundle is None) == (options.architecture is None):
        parser.error("name a bundle, or --architecture")
    ensembles = [Ensemble(name) for name in options.ensembles.split(",")]
    photos = read_photos(options.photos)
    with bundle_of(options) as bundle, taillift(bundle) as service:
        settings = read_settings(bundle=bundle)
        rows = [
            row
            for ensemble in ensembles
            for row in under_load(service, photos, ensemble, options.seconds, options.deadline)
        ]
        bare = BareLoop(settings, photos)
        turns = [
            Turn(
                bare.run(options.seconds), capacity(service, photos, Ensemble.FULL, options.seconds)
            )
            for _ in range(options.turns)
        ]
    loads = load_table(rows, options.deadline, settings.queue_views)
    write_result(options.out, [loads, bare_table(turns)])


@contextmanager
def bundle_of(options: argparse.Namespace) -> Iterator[Path]:
    if options.bundle is not None:
        yield options.bundle
        return
    from benchmarks.bundles import random_bundle  # Needs torch.

    with tempfile.TemporaryDirectory() as folder:
        yield random_bundle(options.architecture, Path(folder) / "random")


def under_load(
    service: Served,
    photos: Sequence[bytes],
    ensemble: Ensemble,
    seconds: float,
    deadline: float,
) -> Iterator[Row]:
    most = capacity(service, photos, ensemble, seconds)
    headers = {"X-Request-Timeout": f"{deadline:g}"}
    for share in SHARES:
        service.forget_peak()
        target = Target(f"{service.url}/classify?ensemble={ensemble}", headers)
        load = at_rate(target, photos, share * most, seconds, deadline)
        yield Row(ensemble, most, share, load, service.peak_memory)


def capacity(service: Served, photos: Sequence[bytes], ensemble: Ensemble, seconds: float) -> float:
    """Images a second."""
    target = Target(f"{service.url}/classify?ensemble={ensemble}")
    return as_fast_as_answered(target, photos, CLIENTS, seconds).answered


class BareLoop:
    """ONNX Runtime over views that are there already: no HTTP, no decoding, no queue."""

    def __init__(self, settings: Settings, photos: Sequence[bytes]) -> None:
        self._classifier = Classifier.open(settings.folder, settings.device)
        size = self._classifier.manifest.preprocessing.size
        rows = [
            views(self._classifier.canvas(photo), size, VIEWS) for photo in photos[:BARE_PHOTOS]
        ]
        step = settings.batch_views // VIEWS
        self._batches: list[Pixels] = [
            np.concatenate(rows[start : start + step]) for start in range(0, len(rows), step)
        ]

    def run(self, seconds: float) -> float:
        """Images a second, of five views each."""
        self._classifier.session.run(self._batches[0])
        count, start = 0, monotonic()
        while monotonic() - start < seconds:
            for batch in self._batches:
                self._classifier.session.run(batch)
                count += len(batch)
        return count / VIEWS / (monotonic() - start)


def load_table(rows: Sequence[Row], deadline: float, queue_views: int) -> str:
    """The queue's bound is what a full queue takes at capacity."""
    titles = [
        "ensemble",
        "capacity, images/s",
        "offered",
        "answered, /s",
        f"goodput within {deadline:g} s, /s",
        "goodput of capacity",
        "429, /s",
        "late, /s",
        "failed, /s",
        "p50, s",
        "p99, s",
        "queue's bound, s",
        "peak memory, MiB",
        "unsent, /s",
        "k6, cores",
    ]
    cells = [
        [
            row.ensemble,
            f"{row.capacity:.2f}",
            f"{row.share:g} x",
            f"{row.load.answered:.2f}",
            f"{row.load.in_time:.2f}",
            f"{row.load.in_time / row.capacity:.0%}",
            f"{row.load.overloaded:.2f}",
            f"{row.load.late:.2f}",
            f"{row.load.failed:.2f}",
            f"{row.load.p50:.3f}",
            f"{row.load.p99:.3f}",
            f"{queue_views / row.ensemble.views / row.capacity:.1f}",
            f"{row.memory:.0f}",
            f"{row.load.unsent:.2f}",
            f"{row.load.generator:.2f}",
        ]
        for row in rows
    ]
    return markdown(titles, cells)


def bare_table(turns: Sequence[Turn]) -> str:
    rows = [
        [f"{place}", f"{turn.bare:.2f}", f"{turn.served:.2f}", f"{turn.served / turn.bare:.1%}"]
        for place, turn in enumerate(turns, 1)
    ]
    ratio = median(turn.served / turn.bare for turn in turns)
    return "\n\n".join(
        [
            markdown(["turn", "bare loop, images/s", "served, five views", "share"], rows),
            f"Median share: {ratio:.1%}.",
        ]
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
