"""The program behind `scripts/chaos`: two storms of requests, and the service after them."""

import argparse
import asyncio
import json
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from time import monotonic
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from taillift.models.bundle.classifier import Classifier
from taillift.service.monitoring.exporter import FRESH_SECONDS
from tests.chaos.judge import ON_THE_WAY, Judge
from tests.chaos.kinds import BODY_SECONDS, MAX_BODY_BYTES, MAX_IMAGES, many, slow
from tests.chaos.photos import Photos, colourful, prepare
from tests.chaos.process import Service, Weight
from tests.chaos.requests import image
from tests.chaos.storm import Storm
from tests.support.palette import write_bundle

REQUESTS: Final = 10_000
PHOTOS: Final = 200
GROWTH: Final = 1.05
# The share of the first storm after which the service is started again. It takes up to 40 seconds
# of storm until its memory stays as it is.
RESTART: Final = 0.2
SETTLE_SECONDS: Final = 15
DRAIN_SECONDS: Final = 30
LONG: Final = 12
SHOWN: Final = 3
# The log has these only after a failure that nobody foresaw.
UNFORESEEN: Final = ("Exception in ASGI", "never retrieved", "was lost", "cannot start")

FLAGS: Final = {
    "--max-images": MAX_IMAGES,
    "--max-body-bytes": MAX_BODY_BYTES,
    "--body-seconds": BODY_SECONDS,
    "--drain-seconds": DRAIN_SECONDS,
    "--batch-views": 10,
    "--precision": "fp32",
    "--log-format": "json",
    "--access-log": "all",
}

console = Console(markup=False, highlight=False)


class Check(NamedTuple):
    what: str
    found: str
    holds: bool


def main() -> None:
    parser = argparse.ArgumentParser(description="Good, bad and vanishing requests at random.")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="in each of two storms")
    parser.add_argument("--minutes", type=float, help="how long, instead of how many requests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, help="by default a tiny one, which can fail, too")
    parser.add_argument("--photos", type=Path, help="folder of JPEGs to send to --bundle")
    options = parser.parse_args()
    if (options.bundle is None) != (options.photos is None):
        parser.error("--bundle and --photos go together")
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(asyncio.run(run(options, Path(folder))))


async def run(options: argparse.Namespace, folder: Path) -> int:
    """Run the storms and return the exit status: 0 if every check holds."""
    bundle = options.bundle or write_bundle(folder / "palette")
    classifier = Classifier.open(bundle)
    photos = prepare(classifier, files(options), options.bundle is None, options.seed)
    judge = Judge(classifier.manifest.labels)
    flags = {**FLAGS, "--review-dir": folder / "review"}
    service = Service(bundle, free_port(), folder / "log", flags)
    console.print(f"{len(photos.good)} good photos with known answers")
    try:
        storms, checks = await weather(options, photos, judge, service)
        checks += [await still_classifies(storms[0]), await queue_is_empty(service)]
    finally:
        service.kill()
    checks += [nothing_unforeseen(service.log), all_json(service.log)]
    report(storms, checks)
    return 0 if all(check.holds for check in checks) else 1


def files(options: argparse.Namespace) -> list[bytes]:
    if options.photos is None:
        return colourful(PHOTOS, options.seed)
    paths = sorted(options.photos.rglob("*.jp*g"))
    return [
        path.read_bytes() for path in Random(options.seed).sample(paths, min(len(paths), PHOTOS))
    ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def weather(
    options: argparse.Namespace, photos: Photos, judge: Judge, service: Service
) -> tuple[list[Storm], list[Check]]:
    """Run two storms of the same length, and restart the service early in the first."""
    first, second = (
        Storm(photos, service.port, judge, f"{options.seed}-{name}") for name in ("first", "second")
    )
    await service.start()
    await service.get("/metrics")
    fresh = service.weight()
    restarting = asyncio.create_task(restart_amid(first, service, lasting(options, RESTART)))
    await first.blow(lasting(options))
    code, seconds = await restarting
    middle = await settled(service, fresh)
    await second.blow(lasting(options))
    end = await settled(service, fresh)
    wrong = first.wrong + second.wrong
    return [first, second], [
        Check("requests judged", f"{first.count + second.count:,}", True),
        Check("lost or wrong", str(wrong), wrong == 0),
        Check("stopped amid work", f"exit status {code} after {seconds:.1f} s", code == 0),
        Check(
            "files open",
            f"{fresh.files}, then {middle.files} and {end.files}",
            end.files <= fresh.files,
        ),
        Check(
            "memory, MiB",
            f"{fresh.memory:.0f}, then {middle.memory:.0f} and {end.memory:.0f} "
            f"({end.memory / middle.memory - 1:+.1%})",
            end.memory <= GROWTH * middle.memory,
        ),
    ]


def lasting(options: argparse.Namespace, share: float = 1.0) -> Callable[[int], bool]:
    """Return a function that says, for the number of the next request, whether a storm goes on."""
    if options.minutes is None:
        return lambda number: number < share * options.requests
    end = monotonic() + share * options.minutes * 60 / 2
    return lambda _: monotonic() < end


async def restart_amid(
    storm: Storm, service: Service, before: Callable[[int], bool]
) -> tuple[int, float]:
    """Stop the service while it has much to do, and start it again.

    Returns the exit status, and the seconds that the end took.
    """
    while before(storm.count):
        await asyncio.sleep(0.02)
    choose = Random(storm.seed)
    kind = slow if storm.photos.slow else many
    requests = [kind(storm.photos, choose) for _ in range(LONG)]
    async with asyncio.TaskGroup() as clients:
        for place, request in enumerate(requests):
            clients.create_task(storm.send("long, amid the stop", request, str(place)))
        await asyncio.sleep(2 * ON_THE_WAY)
        storm.judge.stopped = began = monotonic()
        code = await service.stop()
        seconds = monotonic() - began
        await service.start()
        storm.judge.back = monotonic()
    return code, seconds


async def settled(service: Service, fresh: Weight) -> Weight:
    """Return the service's weight once it has closed the connections that clients left open."""
    end = monotonic() + SETTLE_SECONDS
    while (weight := service.weight()).files > fresh.files and monotonic() < end:
        await asyncio.sleep(0.1)
    return weight


async def still_classifies(storm: Storm) -> Check:
    """Send every good photo once more, alone."""
    last = Storm(storm.photos, storm.port, storm.judge, "afterwards")
    for place, photo in enumerate(last.photos.good):
        await last.send("good", image(photo, Random(place)), str(place))
    right = last.tallies["good"].statuses[200] - last.wrong
    count = len(last.photos.good)
    return Check("classified afterwards", f"{right} of {count} photos", right == count)


async def queue_is_empty(service: Service) -> Check:
    # Until then, the page may be one that was made amid the storm.
    await asyncio.sleep(FRESH_SECONDS)
    reply = await service.get("/metrics")
    lines = reply.body.decode().splitlines() if reply else []
    (value,) = [line.split()[1] for line in lines if line.startswith("taillift_queue_views ")]
    return Check("views that still wait", value, float(value) == 0)


def nothing_unforeseen(log: Path) -> Check:
    lines = [
        line for line in log.read_text().splitlines() if any(one in line for one in UNFORESEEN)
    ]
    return Check("unforeseen failures in the log", "; ".join(lines[:3]) or "none", not lines)


def all_json(log: Path) -> Check:
    """Whatever clients sent, each line is an object of its own, with the members of every line."""
    # On some machines ONNX Runtime warns of their devices when it is imported: before any log.
    lines = [line for line in log.read_text().splitlines() if "[W:onnxruntime:" not in line]
    wrong = []
    for line in lines:
        try:
            is_record = json.loads(line).keys() >= {"time", "level", "message", "request_id"}
        except (AttributeError, ValueError):
            is_record = False
        if not is_record:
            wrong.append(line[:500])
    found = f"{len(lines):,}, of which {len(wrong)} are not JSON {'; '.join(wrong[:3])}".strip()
    return Check("lines of the log", found, not wrong and bool(lines))


def report(storms: Sequence[Storm], checks: Sequence[Check]) -> None:
    grid = Table(title="requests and their statuses (0: the client left)", title_justify="left")
    grid.add_column("kind")
    for title in ("requests", "turned away", "wrong"):
        grid.add_column(title, justify="right")
    grid.add_column("statuses")
    for name in sorted({name for storm in storms for name in storm.tallies}):
        tallies = [storm.tallies[name] for storm in storms if name in storm.tallies]
        statuses = sum((tally.statuses for tally in tallies), Counter[int]())
        grid.add_row(
            name.replace("_", " "),
            f"{statuses.total():,}",
            f"{sum(tally.turned_away for tally in tallies):,}",
            str(sum(len(tally.wrong) for tally in tallies)),
            ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items())),
        )
    console.print(grid)
    for check in checks:
        console.print(f"{'ok   ' if check.holds else 'WRONG'} {check.what}: {check.found}")
    for storm in storms:
        for tally in storm.tallies.values():
            for line in tally.wrong[:SHOWN]:
                console.print(line, soft_wrap=True)


if __name__ == "__main__":
    main()
