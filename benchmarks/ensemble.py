"""The throughput of adaptive ensembling through HTTP, compared with five views and one.

    python -m benchmarks.ensemble BUNDLE --photos FOLDER

The ensembles take turns in one running service, with clients that send one photo after the other.
Ratios are taken within a turn, so that other load on the machine slows down both sides.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.load import capacity
from benchmarks.photos import read_photos
from benchmarks.served import Served, taillift
from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.errors import UserError

BASE: Final = Ensemble.FULL


class Throughput(NamedTuple):
    """The number of images a second, and the mean number of views that each took."""

    images: float
    views: float


Turn = Mapping[Ensemble, Throughput]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs; default: the sample photos")
    parser.add_argument("--ensembles", default="adaptive,full,off")
    parser.add_argument("--seconds", type=float, default=20, help="length of every measurement")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "ensemble.md")
    options = parser.parse_args()
    ensembles = [Ensemble(name) for name in options.ensembles.split(",")]
    if BASE not in ensembles:
        parser.error(f"--ensembles needs {BASE}, to compare with")
    photos = read_photos(options.photos)
    with taillift(options.bundle) as service:
        turns = [
            {
                ensemble: measure(service, photos, ensemble, options.seconds)
                # No ensemble comes first in every turn.
                for ensemble in ensembles[turn % len(ensembles) :]
                + ensembles[: turn % len(ensembles)]
            }
            for turn in range(options.turns)
        ]
    write_result(options.out, [table(turns, ensembles)])


def measure(
    service: Served, photos: Sequence[bytes], ensemble: Ensemble, seconds: float
) -> Throughput:
    """Return what the service does for `seconds` at capacity."""
    views, images = (service.metric(f"taillift_views_used_{part}") for part in ("sum", "count"))
    rate = capacity(service, photos, ensemble, seconds)
    more_views = service.metric("taillift_views_used_sum") - views
    more_images = service.metric("taillift_views_used_count") - images
    return Throughput(rate, more_views / more_images)


def table(turns: Sequence[Turn], ensembles: Sequence[Ensemble]) -> str:
    """Return a row for each ensemble: medians over the turns, and ratios to `BASE`."""
    rows = []
    for ensemble in ensembles:
        ratios = [turn[ensemble].images / turn[BASE].images for turn in turns]
        rows.append(
            [
                ensemble,
                f"{median(turn[ensemble].images for turn in turns):.2f}",
                f"{median(turn[ensemble].views for turn in turns):.2f}",
                f"{median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
            ]
        )
    titles = ["ensemble", "images/s", "views an image", f"ratio to {BASE}", "range of the ratio"]
    return markdown(titles, rows) + f"\n\nMedians of {len(turns)} turns."


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
