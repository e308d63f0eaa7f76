"""What watching the tail costs: `python -m benchmarks.monitoring`.

First through HTTP: one service that watches and one that does not, over the embedded backbone with
a random head, share the machine under clients that send one photo after the other, and are scraped
as Prometheus does; side by side, because the machine's speed changes by more than watching costs.
Then in process, where no model runs: the cost of `observe` for each prediction, of a scrape of
/metrics and of what is kept in the file, in rounds that alternate between 100 and 8,142 classes,
set against the time that a core has where it makes so many predictions a second.
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
from benchmarks.watched import SCRAPE_SECONDS, Watched, watched
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.errors import UserError

SIZES: Final = (100, 8_142)
RATES: Final = (10, 100, 1_000)
UNWATCHED: Final = "benchmarks.unwatched"


class Window(NamedTuple):
    """`images` a second, and the milliseconds of processor time that each took."""

    images: float
    processor: float


class Turn(NamedTuple):
    on: Window
    off: Window


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the median counts.")] = 7,
    turns: Annotated[int, typer.Option(min=1, help="Measurements of the two services.")] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="Of one measurement.")] = 30,
) -> None:
    """Print what watching costs, and write it to benchmarks/results/monitoring.md."""
    photos = read_photos(None)
    by_size = {size: throughput(size, photos, turns, seconds) for size in SIZES}
    cases = {
        "100 classes": watched(100, "auto"),
        "8,142 classes": watched(8_142, "auto"),
        "8,142 classes, class_metrics=on": watched(8_142, "on"),
    }
    for _ in range(rounds):
        for one in cases.values():
            one.round()
    parts = [_throughput(by_size), _costs(cases), _shares(cases)]
    write_result(RESULTS / "monitoring.md", parts)


def throughput(size: int, photos: Sequence[bytes], turns: int, seconds: float) -> list[Turn]:
    """Of a service with `size` classes that watches, and of one that does not."""
    from benchmarks.bundles import random_bundle  # Needs torch.
    from taillift.models.lift.backbone import DEFAULT_FOLDER

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bundle = random_bundle(f"local-dir:{DEFAULT_FOLDER}", Path(folder) / "random", size)
        on = stack.enter_context(taillift(bundle))
        off = stack.enter_context(taillift(bundle, module=UNWATCHED))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        found = []
        for _ in range(turns):
            both = pool.map(lambda one: window(one, photos, seconds), (on, off))
            found.append(Turn(*both))
        return found


def window(service: Served, photos: Sequence[bytes], seconds: float) -> Window:
    images = service.metric("taillift_views_used_count")
    before = service.processor_seconds
    with scraped(service):
        rate = capacity(service, photos, Ensemble.OFF, seconds)
    taken = service.processor_seconds - before
    return Window(rate, 1_000 * taken / (service.metric("taillift_views_used_count") - images))


@contextmanager
def scraped(service: Served) -> Iterator[None]:
    """At once, and then as often as Prometheus does it."""
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


def _costs(cases: Mapping[str, Watched]) -> str:
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
                f"{1e6 * median(one.observe):.1f}",
                f"{1e3 * median(one.scrape):.0f}",
                f"{len(one.text()) / 2**10:,.0f}",
                f"{one.peak():.1f}",
                f"{1e3 * median(one.keep):.1f}",
                f"{1e3 * median(one.listing):.0f}",
                f"{1e3 * median(one.looks):.1f}",
            ]
            for name, one in cases.items()
        ],
    )


def _shares(cases: Mapping[str, Watched]) -> str:
    titles = ["share of one core at", *(f"{rate:,} predictions/s" for rate in RATES)]
    return markdown(
        titles,
        [[name, *(f"{one.share(rate):.2%}" for rate in RATES)] for name, one in cases.items()],
    )


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
