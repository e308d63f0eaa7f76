"""Streams in which one thing is predicted several times, and what the tail finds in them.

`false_findings`: streams at exactly the expected rates. `detections`: predictions from a change to
its finding, in streams of independent predictions, with the monitor and with its tests alone, which
take every prediction for independent.
"""

import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.folder import read_manifest
from taillift.service.monitoring.recorder import model_profile
from taillift.service.tail.distributions import Doubles, Flags, Indices
from taillift.service.tail.monitor import Findings, ModelProfile, Rules, TailMonitor

DEMO: Final = Path(__file__).parents[1] / "docker" / "demo-bundle.tar.gz"
LOOK: Final = 100
LENGTH: Final = 20_000
# Independent predictions before a change, and those after it within which it has to be found.
BEFORE, AFTER = 5_000, 30_000
CHANGES: Final = {"lost": 0.0, "doubled": 2.0}
Row = list[str]


def always(times: int, _: np.random.Generator) -> int:
    return times


def geometric(mean: int, random: np.random.Generator) -> int:
    return int(random.geometric(1 / mean))


def seldom(times: int, random: np.random.Generator) -> int:
    """Return `times` once in 20, else 1."""
    return times if random.random() < 0.05 else 1


@dataclass(frozen=True)
class Bursts:
    """A kind of stream: how often each thing is sent, from how many sources, and how alike.

    `others` is the share of the shots that are predicted independently of the rest.
    """

    times: Callable[[np.random.Generator], int]
    sources: int = 1
    others: float = 0.0

    def draw(self, random: np.random.Generator, rates: Doubles, length: int) -> Indices:
        """Return the predictions [length]; a random source speaks next."""
        turns = random.integers(self.sources, size=length)
        labels = np.empty(length, np.int64)
        for source in range(self.sources):
            mine = turns == source
            labels[mine] = self._source(random, rates, int(mine.sum()))
        return labels

    def _source(self, random: np.random.Generator, rates: Doubles, length: int) -> Indices:
        times: list[int] = []
        while sum(times) < length:
            times += [self.times(random) for _ in range(1 + length // 10)]
        things = random.choice(len(rates), len(times), p=rates)
        labels = np.repeat(things, times)[:length]
        other = random.random(length) < self.others
        labels[other] = random.choice(len(rates), int(other.sum()), p=rates)
        return labels


KINDS: Final[Mapping[str, Bursts]] = {
    "once": Bursts(partial(always, 1)),
    **{
        f"{times} times{', 30 % differ' * bool(others)}{f', {sources} sources' * (sources > 1)}": (
            Bursts(partial(always, times), sources, others)
        )
        for times in (3, 10, 30)
        for others in (0.0, 0.3)
        for sources in (1, 8)
    },
    "geometric, mean 5": Bursts(partial(geometric, 5)),
    "60 times (1 in 20), else once": Bursts(partial(seldom, 60)),
    "100 times, 8 sources": Bursts(partial(always, 100), sources=8),
}


def demo_profile() -> ModelProfile:
    """Return what the tail's statistics need of the demo bundle."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(DEMO) as archive:
        archive.extractall(folder, filter="data")
        manifest = next(Path(folder).rglob("manifest.json"))
        return model_profile(manifest.parent, read_manifest(manifest.parent))


def false_findings(runs: int) -> tuple[Row, list[Row]]:
    """Return for each kind of stream in how many a class was ever drifting, or ever silent."""
    profile = demo_profile()
    rows = []
    with ProcessPoolExecutor() as pool:
        for name, kind in KINDS.items():
            work = partial(_findings, profile, kind)
            drifting, silent, effects = np.array(list(pool.map(work, range(runs)))).T
            effect = f"{np.median(effects):.1f}"
            rows.append([name, f"{drifting.sum():.0f}", f"{silent.sum():.0f}", effect])
    return ["each thing is sent", "ever drifting", "ever silent", "design effect"], rows


def _findings(profile: ModelProfile, kind: Bursts, seed: int) -> tuple[bool, bool, float]:
    monitor = TailMonitor(profile, Rules(), lambda: 0.0)
    labels = kind.draw(np.random.default_rng(seed), _expected_rates(monitor), LENGTH)
    drifting = silent = False
    for found, silenced in _watch(monitor, labels):
        drifting |= bool(found.any())
        silent |= bool(silenced.any())
    return drifting, silent, monitor.dependence.design_effect


def _watch(monitor: TailMonitor, labels: Indices) -> Iterator[tuple[Flags, Flags]]:
    """Yield at each look which classes are drifting and which are silent."""
    for start in range(0, len(labels), LOOK):
        for label in labels[start : start + LOOK].tolist():
            monitor.observe(label, 0.8)
        monitor.refresh()
        yield monitor.drift.found, monitor.silence.found


def _expected_rates(monitor: TailMonitor) -> Doubles:
    rates: Doubles = monitor.expected.classes.mean / monitor.expected.classes.mean.sum()
    return rates


def detections(runs: int) -> tuple[Row, list[Row]]:
    """Return the quartiles of the predictions needed to find a change of one few-shot class."""
    profile = demo_profile()
    rows = []
    with ProcessPoolExecutor() as pool:
        for change in CHANGES:
            both = np.array(list(pool.map(partial(_needed, profile, change), range(runs))))
            for name, needed in zip(("tests alone", "monitor"), both.T, strict=True):
                quartiles = np.quantile(needed, [0.25, 0.5, 0.75], method="inverted_cdf")
                cells = [f"{one:,.0f}" if np.isfinite(one) else "-" for one in quartiles]
                mean = f"{np.minimum(needed, AFTER).mean():,.0f}"
                rows.append([change, name, *cells, f"{np.isfinite(needed).mean():.0%}", mean])
    header = ["change", "by", "25 %", "median", "75 %", "found"]
    return [*header, f"mean, at most {AFTER:,}"], rows


def _needed(profile: ModelProfile, change: str, seed: int) -> tuple[float, float]:
    """Return the predictions needed by the tests alone, and by the monitor."""
    monitor = TailMonitor(profile, Rules(), lambda: 0.0)
    alone = Findings(monitor.expected, monitor.group, Rules())
    random, rates = np.random.default_rng(1_000 + seed), _expected_rates(monitor)
    few: Sequence[int] = alone.silence.indices.tolist()
    changed = few[seed % len(few)]
    before = KINDS["once"].draw(random, rates, BEFORE)
    rates[changed] *= CHANGES[change]
    labels = np.concatenate([before, KINDS["once"].draw(random, rates / rates.sum(), AFTER)])
    needed = [np.inf, np.inf]
    for look, (found, silent) in enumerate(_watch(monitor, labels)):
        alone.update(labels[look * LOOK : (look + 1) * LOOK], 1.0, np.ones(len(rates)))
        after = (look + 1) * LOOK - BEFORE
        if after <= 0:
            continue
        if alone.drift.found[changed] or alone.silence.found[changed]:
            needed[0] = min(needed[0], after)
        if found[changed] or silent[changed]:
            needed[1] = min(needed[1], after)
        if np.isfinite(needed).all():
            break
    return needed[0], needed[1]
