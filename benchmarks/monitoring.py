"""The cost of watching the tail: `python -m benchmarks.monitoring`.

First through HTTP: a service that watches and one that does not run side by side, because the speed
of the machine changes by more than watching costs. Both serve the embedded backbone with a random
head, to clients that send one photo after the other, and both are scraped as by Prometheus.
Then in process, without a model: the cost of `observe` per prediction, of a scrape of /metrics, and
of a copy for the tail file, in rounds that alternate between 100 and 8,142 classes. These costs
are also given as a share of one core at several rates of predictions.
"""

import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Final, NamedTuple

import typer

from benchmarks.load import capacity
from benchmarks.photos import read_photos
from benchmarks.served import Served, taillift
from benchmarks.tables import RESULTS, markdown, write_result
from benchmarks.watched import SCRAPE_SECONDS, MonitorCosts, simulated_monitor
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.errors import UserError

SIZES: Final = (100, 8_142)
RATES: Final = (10, 100, 1_000)
UNWATCHED: Final = "benchmarks.unwatched"


class Measurement(NamedTuple):
    """`images` per second, and the milliseconds of processor time per image."""

    images: float
    processor: float


class Turn(NamedTuple):
    """One measurement of both services at the same time."""

    on: Measurement
    off: Measurement


def main(
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds in process; the median is reported.")
    ] = 7,
    turns: Annotated[int, typer.Option(min=1, help="Measurements of the two services.")] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="Length of one measurement.")] = 30,
) -> None:
    """Print what watching costs, and write it to benchmarks/results/monitoring.md."""
    photos = read_photos(None)
    by_size = {size: throughput(size, photos, turns, seconds) for size in SIZES}
    cases = {
        "100 classes": simulated_monitor(100, "auto"),
        "8,142 classes": simulated_monitor(8_142, "auto"),
        "8,142 classes, class_metrics=on": simulated_monitor(8_142, "on"),
    }
    for _ in range(rounds):
        for case in cases.values():
            case.round()
    parts = [_throughput(by_size), _costs(cases), _shares(cases)]
    write_result(RESULTS / "monitoring.md", parts)


def throughput(size: int, photos: Sequence[bytes], turns: int, seconds: float) -> list[Turn]:
    """Measure a service with `size` classes that watches, and one that does not."""
    from benchmarks.bundles import random_bundle  # Needs torch.
    from taillift.models.lift.backbone import DEFAULT_FOLDER

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bundle = random_bundle(f"local-dir:{DEFAULT_FOLDER}", Path(folder) / "random", size)
        on = stack.enter_context(taillift(bundle))
        off = stack.enter_context(taillift(bundle, module=UNWATCHED))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        results = []
        for _ in range(turns):
            both = pool.map(lambda service: measure(service, photos, seconds), (on, off))
            results.append(Turn(*both))
        return results


def measure(service: Served, photos: Sequence[bytes], seconds: float) -> Measurement:
    """Measure one service under load."""
    images = service.metric("taillift_views_used_count")
    before = service.processor_seconds
    with scraped(service):
        rate = capacity(service, photos, Ensemble.OFF, seconds)
    taken = service.processor_seconds - before
    return Measurement(rate, 1_000 * taken / (service.metric("taillift_views_used_count") - images))


@contextmanager
def scraped(service: Served) -> Iterator[None]:
    """Scrape the service at once, and then as often as Prometheus does."""
    ended = threading.Event()

    def scrape() -> None:
        while True:
            service.metric("taillift_views_used_count")
            if ended.wait(SCRAPE_SECONDS):
                return

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _throughput(by_size: Mapping[int, Sequence[Turn]]) -> str:
    titles = [
        "one view, through HTTP",
        "images/s",
        "not watching",
        "cost",
        "its range",
        "processor ms an image",
        "not watching",
        "cost",
        "its range",
    ]
    rows = []
    for size, turns in by_size.items():
        cells = [f"{size:,} classes"]
        slower = [turn.off.images / turn.on.images - 1 for turn in turns]
        dearer = [turn.on.processor / turn.off.processor - 1 for turn in turns]
        for field, costs in (("images", slower), ("processor", dearer)):
            for side in ("on", "off"):
                middle = median(getattr(getattr(turn, side), field) for turn in turns)
                cells.append(f"{middle:.2f}")
            cells += [f"{median(costs):.1%}", f"{min(costs):.1%} to {max(costs):.1%}"]
        rows.append(cells)
    return markdown(titles, rows)


def _costs(cases: Mapping[str, MonitorCosts]) -> str:
    titles = [
        "",
        "a prediction, us",
        "a scrape, ms",
        "its KiB",
        "its peak memory, MiB",
        "copy to keep, ms",
        "GET /classes, ms",
        "of which in the way of requests",
    ]
    return markdown(
        titles,
        [
            [
                name,
                f"{1e6 * median(case.observe):.1f}",
                f"{1e3 * median(case.scrape):.0f}",
                f"{len(case.text()) / 2**10:,.0f}",
                f"{case.peak():.1f}",
                f"{1e3 * median(case.keep):.1f}",
                f"{1e3 * median(case.listing):.0f}",
                f"{1e3 * median(case.snapshots):.1f}",
            ]
            for name, case in cases.items()
        ],
    )


def _shares(cases: Mapping[str, MonitorCosts]) -> str:
    titles = ["share of one core at", *(f"{rate:,} predictions/s" for rate in RATES)]
    return markdown(
        titles,
        [[name, *(f"{case.share(rate):.2%}" for rate in RATES)] for name, case in cases.items()],
    )


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
