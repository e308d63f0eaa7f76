"""The same graph, decoding and photos behind other servers, in turns with taillift.

    python -m benchmarks.peers BUNDLE

In every turn one server is started, asked for labels that are known, loaded by clients that send
one photo after the other (its capacity), and then offered 0.9 of that, evenly; right after it,
taillift is started and does the same with five views and with as many as it takes (adaptive), at
the other's rate. All of them give the graph the same threads and at most as many views at once.
Each server has a virtual environment of its own, made on the first run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.k6 import Load, Target, as_fast_as_answered, at_rate
from benchmarks.peers.servers import SERVERS, install, label, running
from benchmarks.photos import read_photos
from benchmarks.served import taillift
from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.errors import UserError
from taillift.service.settings import Settings, read_settings

CLIENTS: Final = 32
SHARE: Final = 0.9
CHECKED: Final = 8
DEADLINE: Final = 5


class Side(NamedTuple):
    """`capacity` in images a second, and what came of `SHARE` of the peer's."""

    capacity: float
    load: Load


class Turn(NamedTuple):
    peer: Side
    ours: dict[Ensemble, Side]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs; by default the sample's")
    parser.add_argument("--peers", default=",".join(SERVERS), help="some of these")
    parser.add_argument("--ensembles", default="full,adaptive", help="taillift's")
    parser.add_argument("--seconds", type=float, default=20, help="of every measurement")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.md")
    options = parser.parse_args()
    names = options.peers.split(",")
    if unknown := set(names) - set(SERVERS):
        parser.error(f"unknown: {', '.join(unknown)}")
    ensembles = [Ensemble(name) for name in options.ensembles.split(",")]
    photos = read_photos(options.photos)
    settings = read_settings(bundle=options.bundle)
    right = known_labels(settings, photos[:CHECKED])
    for name in names:
        install(SERVERS[name])
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for _ in range(options.turns):
        for name in names:
            peer = peer_side(name, settings, photos, right, options.seconds)
            ours = our_sides(settings, ensembles, photos, peer.capacity, options.seconds)
            turns[name].append(Turn(peer, ours))
    write_result(options.out, [throughput(turns, ensembles), latency(turns, ensembles)])


def known_labels(settings: Settings, photos: Sequence[bytes]) -> list[str]:
    """The surest class of each photo, from five views, without a server."""
    classifier = Classifier.open(settings.folder, settings.device)
    logits = classifier.mean_logits(map(classifier.canvas, photos)).logits
    return [classifier.manifest.labels[index] for index in logits.argmax(1)]


def peer_side(
    name: str, settings: Settings, photos: Sequence[bytes], right: Sequence[str], seconds: float
) -> Side:
    """Measure a peer. Raises `UserError` if a label differs from the one without a server."""
    with running(SERVERS[name], settings, photos[0]) as target:
        found = [label(target, photo) for photo in photos[: len(right)]]
        if found != list(right):
            raise UserError(f"{name} gives other labels than the bundle: {found}, not {right}")
        capacity = as_fast_as_answered(target, photos, CLIENTS, seconds).answered
        return Side(capacity, at_rate(target, photos, SHARE * capacity, seconds, DEADLINE))


def our_sides(
    settings: Settings,
    ensembles: Sequence[Ensemble],
    photos: Sequence[bytes],
    peer_capacity: float,
    seconds: float,
) -> dict[Ensemble, Side]:
    with taillift(settings.folder) as service:
        sides = {}
        for one in ensembles:
            target = Target(f"{service.url}/classify?ensemble={one}")
            capacity = as_fast_as_answered(target, photos, CLIENTS, seconds).answered
            load = at_rate(target, photos, SHARE * peer_capacity, seconds, DEADLINE)
            sides[one] = Side(capacity, load)
    return sides


def throughput(turns: dict[str, list[Turn]], ensembles: Sequence[Ensemble]) -> str:
    titles = ["server", "its capacity, images/s"]
    for one in ensembles:
        titles += [f"taillift, {one}", "ratio (range)"]
    rows = []
    for name, each in turns.items():
        row = [SERVERS[name].pin, f"{median(turn.peer.capacity for turn in each):.2f}"]
        for one in ensembles:
            ratios = [turn.ours[one].capacity / turn.peer.capacity for turn in each]
            row.append(f"{median(turn.ours[one].capacity for turn in each):.2f}")
            row.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append(row)
    return markdown(titles, rows)


def latency(turns: dict[str, list[Turn]], ensembles: Sequence[Ensemble]) -> str:
    titles = ["server", f"offered ({SHARE} of its capacity), images/s", "its p50 / p99, s"]
    titles += [f"taillift, {one}" for one in ensembles]
    rows = []
    for name, each in turns.items():
        offered = median(SHARE * turn.peer.capacity for turn in each)
        sides = [[turn.peer.load for turn in each]]
        sides += [[turn.ours[one].load for turn in each] for one in ensembles]
        rows.append([SERVERS[name].pin, f"{offered:.2f}", *map(_percentiles, sides)])
    return markdown(titles, rows)


def _percentiles(loads: Sequence[Load]) -> str:
    p50, p99 = median(load.p50 for load in loads), median(load.p99 for load in loads)
    return f"{p50:.3f} / {p99:.3f}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
