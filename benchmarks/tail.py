"""The statistics of the tail on simulated streams: error rates, delays and costs.

    python -m benchmarks.tail errors | delays | bursts | detections | shares | costs

`errors`: the share of bundles with expected traffic in which anything was ever found.
`delays`: predictions until a change is found, and the delay that was promised. `bursts`: streams at
the expected rates of the demo bundle in which things are sent several times, and in how many of
them a class is ever found. `detections`: predictions until a change in the demo bundle's stream is
found, by the monitor and by its tests alone, which know nothing of dependence. `shares`: errors of
the group shares, by the method of correction. `costs`: time by the number of classes.
"""

import argparse
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.bursts import detections, false_findings
from benchmarks.streams import SimulatedBundle, batches, few_shot_bundle, simulate
from taillift.models.bundle.schema import GROUPS
from taillift.service.tail.distributions import Doubles
from taillift.service.tail.drift import Drift
from taillift.service.tail.monitor import ModelProfile, Rules, TailMonitor
from taillift.service.tail.prevalence import Prevalence
from taillift.service.tail.reference import Source, expect, reference_from
from taillift.service.tail.silence import Silence
from taillift.service.tail.state import class_state, tail_state

LOOK: Final = 100
Row = list[str]


class Stream:
    """The drift test and the silence test of one bundle, fed in batches of `LOOK`."""

    def __init__(self, bundle: SimulatedBundle, source: Source, seed: int) -> None:
        confusion = bundle.confusion
        reference = reference_from(source, bundle.counts, confusion)
        expected = expect(reference, confusion)
        self.mix = reference.prior.copy()
        self.drift = Drift(expected.classes)
        few = np.array([group == "few" for group in bundle.groups])
        self.silence = Silence(expected, few, self.drift)
        self._matrix = bundle.matrix
        self._random = np.random.default_rng(seed)

    def run(self, looks: int) -> Iterator[int]:
        """Yield the number of predictions so far, after each look."""
        rates = self.rates()
        for look, counts in enumerate(batches(self._random, rates, LOOK, looks), 1):
            self.silence.update(counts, LOOK)
            self.drift.update(counts, LOOK)
            yield look * LOOK

    def rates(self) -> Doubles:
        """Return the true prediction rates [C] of the current mix."""
        rates: Doubles = self.mix / self.mix.sum() @ self._matrix
        return rates


def errors(runs: int) -> tuple[Row, list[Row]]:
    """Return how often expected traffic was ever found to drift or to be silent."""
    rows = []
    for source in (Source.UNIFORM, Source.TRAIN):
        for held_out in (1, 5, 20):
            drifted = silenced = 0
            for seed in range(runs):
                stream = Stream(simulate(seed, held_out), source, seed)
                found = [
                    (stream.drift.found.any(), stream.silence.found.any()) for _ in stream.run(200)
                ]
                drifted += any(drift for drift, _ in found)
                silenced += any(silent for _, silent in found)
            rows.append([source, str(held_out), f"{drifted / runs:.1%}", f"{silenced / runs:.1%}"])
    return ["reference", "held out a class", "ever drift", "ever silent"], rows


def lose(mix: Doubles) -> None:
    mix[0] = 0


def double(mix: Doubles) -> None:
    mix[0] *= 2


def swap(mix: Doubles) -> None:
    mix[[0, 1]] = mix[[1, 0]]


# Name, change of the mix of true classes, and the test that has to find it.
CHANGES: Final[list[tuple[str, Callable[[Doubles], None], str]]] = [
    ("lost", lose, "silence"),
    ("lost", lose, "drift"),
    ("doubled", double, "drift"),
    ("swapped, 1 to 4", swap, "drift"),
]


def delays(runs: int) -> tuple[Row, list[Row]]:
    """Return the predictions needed to find a change, and the promised delay."""
    rows = []
    for before in (0, 5_000, 40_000):
        for name, change, test in CHANGES:
            needed, promised = [], []
            for seed in range(runs):
                if change is swap:
                    # Class 1 is four times as frequent as each of the others.
                    bundle = few_shot_bundle(20)
                    counts = [40 if index == 1 else 10 for index in range(20)]
                    unequal = SimulatedBundle(bundle.groups, counts, bundle.matrix, bundle.pairs)
                    stream = Stream(unequal, Source.TRAIN, seed)
                else:
                    stream = Stream(few_shot_bundle(20), Source.UNIFORM, seed)
                for _ in stream.run(before // LOOK):
                    pass
                change(stream.mix)
                delay = (
                    stream.silence.delay()
                    if test == "silence"
                    else stream.drift.delay(stream.rates())
                )
                promised.append(float(delay[0]))
                detector = stream.silence if test == "silence" else stream.drift
                needed.append(next((n for n in stream.run(200) if detector.found[0]), np.inf))
            low, middle, high = np.quantile(needed, [0.1, 0.5, 0.9], method="inverted_cdf")
            rows.append(
                [f"{before:,}", name, test]
                + [f"{delay:,.0f}" for delay in (low, middle, high, np.median(promised))]
            )
    return ["before", "change", "test", "10 %", "median", "90 %", "promised"], rows


def shares(runs: int) -> tuple[Row, list[Row]]:
    """Return the errors of the group shares in points, and the coverage of their intervals."""
    rows = []
    for held_out in (5, 20):
        for total in (30, 100, 1_000, 10_000):
            squares, inside = [], []
            for seed in range(runs):
                bundle = simulate(seed, held_out)
                confusion = bundle.confusion
                reference = reference_from(Source.TRAIN, bundle.counts, confusion)
                group = confusion.group
                random = np.random.default_rng(seed)
                truth = 0.05 + 0.85 * random.dirichlet([2, 2, 2])
                mix = reference.prior * random.gamma(4, 0.25, len(group))
                mix *= (truth / np.bincount(group, mix))[group]
                counts = np.bincount(group, random.multinomial(total, mix @ bundle.matrix), 3)
                prevalence = Prevalence(confusion, reference)
                corrected = prevalence.estimate(counts.astype(np.int64))
                inverse = np.linalg.solve(prevalence.matrix.T, counts / total).clip(0)
                estimates = np.stack([counts / total, inverse / inverse.sum(), corrected.share])
                squares.append(((estimates - truth) ** 2).mean(1))
                inside.append(np.mean((corrected.low <= truth) & (truth <= corrected.high)))
            points = 100 * np.sqrt(np.mean(squares, 0))
            coverage = f"{np.mean(inside):.0%}"
            rows.append(
                [str(held_out), f"{total:,}", *(f"{error:.1f}" for error in points), coverage]
            )
    header = ["held out a class", "predictions", "as predicted", "inverted", "likeliest"]
    return [*header, "within 95 % interval"], rows


def costs(runs: int) -> tuple[Row, list[Row]]:
    """Return the costs over `runs` thousand predictions for each number of classes."""
    rows = [_cost(size, 1_000 * runs) for size in (100, 1_000, 8_142)]
    return ["classes", "start", "a prediction", "state", "one class"], rows


def _cost(size: int, predictions: int) -> Row:
    random = np.random.default_rng(0)
    start = perf_counter()
    monitor = TailMonitor(_profile(size, random), Rules(Source.UNIFORM), lambda: 0.0)
    started = perf_counter() - start
    drawn = random.integers(size, size=predictions).tolist()
    start = perf_counter()
    for label in drawn:
        monitor.observe(label, 0.5)
    monitor.refresh()
    observed = (perf_counter() - start) / predictions
    state = min(_timed(monitor, lambda: tail_state(monitor)) for _ in range(5))
    single = min(_timed(monitor, lambda: class_state(monitor, 3)) for _ in range(5))
    return [
        f"{size:,}",
        f"{started:.2f} s",
        f"{1e6 * observed:.1f} us",
        f"{1e3 * state:.0f} ms",
        f"{1e3 * single:.0f} ms",
    ]


def _profile(size: int, random: np.random.Generator) -> ModelProfile:
    """Return a profile with five held-out photos per class, one of them classified wrongly."""
    groups = tuple(GROUPS[min(2, 6 * index // size)] for index in range(size))
    wrong = enumerate(random.integers(size, size=size).tolist())
    pairs = [(index, index, 4) for index in range(size)]
    pairs += [(true, predicted, 1) for true, predicted in wrong]
    labels = tuple(str(index) for index in range(size))
    return ModelProfile("v", labels, groups, (10,) * size, tuple(pairs))


def _timed(monitor: TailMonitor, work: Callable[[], object]) -> float:
    for label in range(100):
        monitor.observe(label, 0.5)
    start = perf_counter()
    work()
    return perf_counter() - start


TABLES: Final = {
    "errors": errors,
    "delays": delays,
    "bursts": false_findings,
    "detections": detections,
    "shares": shares,
    "costs": costs,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The tail's statistics, on simulated streams.")
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--runs", type=int, default=20, help="simulations a row")
    given = parser.parse_args()
    header, rows = TABLES[given.table](given.runs)
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
