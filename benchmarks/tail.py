"""How seldom the tail's statistics err, how soon they find, and what they cost.

    python -m benchmarks.tail errors | delays | shares | costs

`errors`: of bundles whose traffic is as expected, the share in which anything was ever found.
`delays`: predictions until a change is found, and those that were promised. `shares`: errors of
group shares, by how they are corrected. `costs`: time by the number of classes.
"""

import argparse
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.streams import Simulated, batches, sharp, simulate
from taillift.models.bundle.schema import GROUPS
from taillift.service.tail.distributions import Doubles, Flags
from taillift.service.tail.drift import Drift
from taillift.service.tail.monitor import ModelProfile, Rules, TailMonitor
from taillift.service.tail.prevalence import Prevalence
from taillift.service.tail.reference import Source, expect, reference_from
from taillift.service.tail.silence import Silence
from taillift.service.tail.state import class_state, tail_state

LOOK: Final = 100
Row = list[str]


class Stream:
    """One bundle's drift and silence, fed in batches of `LOOK`."""

    def __init__(self, bundle: Simulated, source: Source, seed: int) -> None:
        confusion = bundle.confusion
        reference = reference_from(source, bundle.counts, confusion)
        expected = expect(reference, confusion)
        self.mix = reference.prior.copy()
        self.drift = Drift(expected.classes)
        few = np.array([group == "few" for group in bundle.groups])
        self.silence = Silence(expected, few, self.drift)
        self._matrix = bundle.matrix
        self._random = np.random.default_rng(seed)

    def go_on(self, looks: int) -> Iterator[int]:
        """Predictions so far, after each look."""
        rates = self.rates()
        for look, counts in enumerate(batches(self._random, rates, LOOK, looks), 1):
            self.silence.update(counts, LOOK)
            self.drift.update(counts, LOOK)
            yield look * LOOK

    def rates(self) -> Doubles:
        rates: Doubles = self.mix / self.mix.sum() @ self._matrix
        return rates


def errors(runs: int) -> tuple[Row, list[Row]]:
    rows = []
    for source in (Source.UNIFORM, Source.TRAIN):
        for held_out in (1, 5, 20):
            drifted = silenced = 0
            for seed in range(runs):
                stream = Stream(simulate(seed, held_out), source, seed)
                found = [
                    (stream.drift.found.any(), stream.silence.found.any())
                    for _ in stream.go_on(200)
                ]
                drifted += any(drift for drift, _ in found)
                silenced += any(silent for _, silent in found)
            rows.append([source, str(held_out), f"{drifted / runs:.1%}", f"{silenced / runs:.1%}"])
    return ["reference", "held out a class", "ever drift", "ever silent"], rows


def delays(runs: int) -> tuple[Row, list[Row]]:
    rows = []
    for before in (0, 5_000, 40_000):
        for name, change, test in _changes():
            needed, promised = [], []
            for seed in range(runs):
                stream = _stream(name, seed)
                for _ in stream.go_on(before // LOOK):
                    pass
                change(stream.mix)
                promised.append(_promise(stream, test))
                needed.append(
                    next(
                        (n for n in stream.go_on(200) if _found(stream, test)[0]),
                        np.inf,
                    )
                )
            low, middle, high = np.quantile(needed, [0.1, 0.5, 0.9], method="inverted_cdf")
            rows.append(
                [f"{before:,}", name, test]
                + [f"{one:,.0f}" for one in (low, middle, high, np.median(promised))]
            )
    return ["before", "change", "test", "10 %", "median", "90 %", "promised"], rows


def _changes() -> list[tuple[str, Callable[[Doubles], None], str]]:
    def lost(mix: Doubles) -> None:
        mix[0] = 0

    def doubled(mix: Doubles) -> None:
        mix[0] *= 2

    def swapped(mix: Doubles) -> None:
        mix[[0, 1]] = mix[[1, 0]]

    return [
        ("lost", lost, "silence"),
        ("lost", lost, "drift"),
        ("doubled", doubled, "drift"),
        ("swapped, 1 to 4", swapped, "drift"),
    ]


def _stream(change: str, seed: int) -> Stream:
    """All classes equally often; to be swapped, class 1 four times as often as the others."""
    bundle = sharp(20)
    if not change.startswith("swapped"):
        return Stream(bundle, Source.UNIFORM, seed)
    counts = [40 if place == 1 else 10 for place in range(20)]
    unequal = Simulated(bundle.groups, counts, bundle.matrix, bundle.pairs)
    return Stream(unequal, Source.TRAIN, seed)


def _promise(stream: Stream, test: str) -> float:
    if test == "silence":
        return float(stream.silence.delay()[0])
    return float(stream.drift.delay(stream.rates())[0])


def _found(stream: Stream, test: str) -> Flags:
    return stream.silence.found if test == "silence" else stream.drift.found


def shares(runs: int) -> tuple[Row, list[Row]]:
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
                one = Prevalence(confusion, reference)
                found = one.estimate(counts.astype(np.int64))
                inverse = np.linalg.solve(one.matrix.T, counts / total).clip(0)
                estimates = np.stack([counts / total, inverse / inverse.sum(), found.share])
                squares.append(((estimates - truth) ** 2).mean(1))
                inside.append(np.mean((found.low <= truth) & (truth <= found.high)))
            points = 100 * np.sqrt(np.mean(squares, 0))
            coverage = f"{np.mean(inside):.0%}"
            rows.append([str(held_out), f"{total:,}", *(f"{one:.1f}" for one in points), coverage])
    header = ["held out a class", "predictions", "as predicted", "inverted", "likeliest"]
    return [*header, "within 95 % interval"], rows


def costs(runs: int) -> tuple[Row, list[Row]]:
    """`runs` thousand predictions each."""
    rows = [_cost(size, 1_000 * runs) for size in (100, 1_000, 8_142)]
    return ["classes", "start", "a prediction", "state", "one class"], rows


def _cost(size: int, predictions: int) -> Row:
    random = np.random.default_rng(0)
    start = perf_counter()
    monitor = TailMonitor(_profile(size, random), Rules(Source.UNIFORM), lambda: 0.0)
    begun = perf_counter() - start
    drawn = random.integers(size, size=predictions).tolist()
    start = perf_counter()
    for place in drawn:
        monitor.observe(place, 0.5)
    monitor.refresh()
    observed = (perf_counter() - start) / predictions
    looked = min(_timed(monitor, lambda: tail_state(monitor)) for _ in range(5))
    single = min(_timed(monitor, lambda: class_state(monitor, 3)) for _ in range(5))
    return [
        f"{size:,}",
        f"{begun:.2f} s",
        f"{1e6 * observed:.1f} us",
        f"{1e3 * looked:.0f} ms",
        f"{1e3 * single:.0f} ms",
    ]


def _profile(size: int, random: np.random.Generator) -> ModelProfile:
    """Five held-out photos a class, one of them mistaken."""
    groups = tuple(GROUPS[min(2, 6 * place // size)] for place in range(size))
    wrong = enumerate(random.integers(size, size=size).tolist())
    pairs = [(place, place, 4) for place in range(size)] + [(true, one, 1) for true, one in wrong]
    labels = tuple(str(place) for place in range(size))
    return ModelProfile("v", labels, groups, (10,) * size, tuple(pairs))


def _timed(monitor: TailMonitor, work: Callable[[], object]) -> float:
    for place in range(100):
        monitor.observe(place, 0.5)
    start = perf_counter()
    work()
    return perf_counter() - start


TABLES: Final = {"errors": errors, "delays": delays, "shares": shares, "costs": costs}


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
