"""Measure how often `taillift compare-bundles` is right, and how small packed bundles are.

    python -m benchmarks.gate intervals
    python -m benchmarks.gate harm
    python -m benchmarks.gate pack OLD NEW

`intervals` draws photos from classes whose true differences are known, and counts how often the
95 % interval holds the truth: the one in use, and that of resampling photos within each class.
`harm` changes a share of the answers to 400 few-shot photos, and counts the verdicts. `pack` packs
one bundle as changes to another, with the usual and with the large tables of zstd.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import zstandard
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from taillift.models.bundle.arrays import Counts, Doubles
from taillift.models.bundle.folder import MODEL
from taillift.models.errors import UserError
from taillift.models.release.archive import LEVEL, compressed, pack, raw_dictionary, unpack
from taillift.models.release.paired import PairedCounts

RESAMPLED: Final = 1_000


class Scenario(NamedTuple):
    """Classes with between `least` and `most` photos; the mean share of photos that change.

    Of those that change, the share `lost` is lost. `spread` is the variance of the shares over
    the classes, divided by the square of their mean.
    """

    name: str
    classes: int
    least: int
    most: int
    changed: float
    lost: float
    spread: float


SCENARIOS: Final = (
    Scenario("wardrobe-lt, int8", 6, 13, 21, 0.10, 0.5, 0.5),
    Scenario("wardrobe-lt, few changes", 6, 13, 21, 0.02, 0.5, 0.5),
    Scenario("wardrobe-lt, harm", 6, 13, 21, 0.10, 0.8, 0.5),
    Scenario("places50-lt", 21, 20, 20, 0.10, 0.6, 0.5),
    Scenario("harm alone", 20, 20, 20, 0.05, 0.9, 1.0),
    Scenario("2 to 6 photos a class", 20, 2, 6, 0.20, 0.5, 0.5),
    Scenario("1 to 6 photos a class", 20, 1, 6, 0.10, 0.6, 1.0),
    Scenario("4 to 40 photos a class", 50, 4, 40, 0.10, 0.6, 0.5),
    Scenario("another training", 6, 13, 21, 0.30, 0.5, 0.5),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    intervals = commands.add_parser("intervals")
    intervals.add_argument("--draws", type=int, default=4000)
    harm = commands.add_parser("harm")
    harm.add_argument("--draws", type=int, default=1000)
    packed = commands.add_parser("pack")
    packed.add_argument("old", type=Path)
    packed.add_argument("new", type=Path)
    options = parser.parse_args()
    match options.command:
        case "intervals":
            show_intervals(options.draws)
        case "harm":
            show_harm(options.draws)
        case "pack":
            show_packed(options.old, options.new)


def show_intervals(draws: int) -> None:
    """Print for each scenario how often the intervals hold the truth, and their mean length."""
    random = np.random.default_rng(0)
    grid = table("scenario", "in use, %", "points long", "resampling, %", "points long")
    for scenario in SCENARIOS:
        held, lengths = np.zeros(2), np.zeros(2)
        for _ in range(draws):
            counts, truth = draw(scenario, random)
            for index, (low, high) in enumerate((counts.interval, resampled(counts, random))):
                held[index] += low <= truth <= high
                lengths[index] += high - low
        cells = [
            f"{100 * value / draws:.1f}"
            for pair in zip(held, lengths, strict=True)
            for value in pair
        ]
        grid.add_row(scenario.name, *cells)
    Console(width=100).print(grid)


def draw(scenario: Scenario, random: np.random.Generator) -> tuple[PairedCounts, float]:
    """Draw photos of a scenario, and return their counts and the true difference."""
    sizes = random.integers(scenario.least, scenario.most + 1, scenario.classes)
    shape = 1 / scenario.spread
    shares = scenario.changed * random.gamma(shape, 1 / shape, scenario.classes)
    changed = np.minimum(shares, 0.9)
    lost = changed * scenario.lost
    chances: Doubles = np.stack([changed - lost, lost, 1 - changed], axis=1)
    gained, away, _ = random.multinomial(sizes, chances).T
    return PairedCounts(sizes, gained, away), float((changed - 2 * lost).mean())


def resampled(counts: PairedCounts, random: np.random.Generator) -> tuple[float, float]:
    """Return the percentiles of the difference over photos drawn anew within each class."""
    same = counts.photos - counts.gained - counts.lost
    shares = np.stack([counts.gained, counts.lost, same], axis=1) / counts.photos[:, None]
    drawn: Counts = random.multinomial(counts.photos, shares, (RESAMPLED, len(shares)))
    differences = ((drawn[..., 0] - drawn[..., 1]) / counts.photos).mean(axis=1)
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


def show_harm(draws: int) -> None:
    """Print how often changed answers to 400 photos of 20 few-shot classes are called harm."""
    random = np.random.default_rng(0)
    grid = table("answers changed at random, %", "called harm, %", "mean lost", "mean gained")
    labels = np.repeat(np.arange(20), 20)
    for share in (0.0, 0.01, 0.02, 0.03, 0.05, 0.1):
        called, lost, gained = 0, 0, 0
        for _ in range(draws):
            # The few-shot accuracy of the demo bundle, and 17 classes to answer with.
            old = random.random(400) < 0.57
            rows = random.choice(400, round(400 * share), replace=False)
            new = old.copy()
            new[rows] = ~old[rows] & (random.random(len(rows)) < 1 / 16)
            counts = PairedCounts.of(labels, old, new)
            called += counts.interval.high < 0
            lost, gained = lost + int(counts.lost.sum()), gained + int(counts.gained.sum())
        grid.add_row(
            f"{100 * share:.0f}",
            f"{100 * called / draws:.1f}",
            f"{lost / draws:.1f}",
            f"{gained / draws:.1f}",
        )
    Console(width=100).print(grid)


def show_packed(old: Path, new: Path) -> None:
    """Print the size of a packed bundle, and how the tables of zstd change that of its graph."""
    before, after = (old / MODEL).read_bytes(), (new / MODEL).read_bytes()
    usual = zstandard.ZstdCompressor(level=LEVEL, dict_data=raw_dictionary(before))
    grid = table("of the fp32 graph", "bytes", "seconds")
    grid.add_row("as it is", f"{len(after):,}", "")
    ways: dict[str, Callable[[], bytes]] = {
        "zstd": lambda: compressed(after, None),
        "zstd with the old graph, usual tables": lambda: usual.compress(after),
        "zstd with the old graph, tables of its size": lambda: compressed(after, old / MODEL),
    }
    for name, run in ways.items():
        start = time.monotonic()
        size = len(run())
        grid.add_row(name, f"{size:,}", f"{time.monotonic() - start:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "new.taillift"
        start = time.monotonic()
        index = pack(new, file, old)
        middle = time.monotonic()
        unpack(file, Path(folder) / "new", old)
        whole = sum(entry.size for entry in index.files)
        grid.add_row("the bundle as it is", f"{whole:,}", "")
        grid.add_row("the bundle packed", f"{file.stat().st_size:,}", f"{middle - start:.1f}")
        grid.add_row("  and unpacked", f"{whole:,}", f"{time.monotonic() - middle:.1f}")
    Console(width=100).print(grid)


def table(*titles: str) -> Table:
    grid = Table(box=SIMPLE_HEAD)
    for index, title in enumerate(titles):
        grid.add_column(title, justify="right" if index else "left")
    return grid


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
