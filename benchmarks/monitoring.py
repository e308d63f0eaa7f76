"""What watching the tail costs: `python -m benchmarks.monitoring`.

No model runs. The cost of `observe` for each prediction, of a scrape of /metrics and of what is
kept in the file is measured in process, at 100 and 8,142 classes, in rounds that alternate between
them, and set against the time that a core has where it makes so many predictions a second.
"""

import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Final, Literal

import numpy as np
import typer
from prometheus_client import generate_latest

from benchmarks.tables import RESULTS, markdown, write_result
from models.bundle.manifest import (
    Backbone,
    ClassInfo,
    Manifest,
    Method,
    Thresholds,
    Variant,
    classes_from,
)
from models.bundle.posterior import Doubles
from models.bundle.precision import Precision
from models.bundle.preprocessing import Preprocessing
from service.live import classes as live_classes
from service.metrics import Metrics
from service.monitoring import Monitoring
from service.series import TailSeries, class_series
from service.settings import read_settings
from service.tail.memory import remember

PREDICTIONS: Final = 5_000
DRAWN: Final = 500
# As docker/prometheus/prometheus.yml has it, and service/monitoring.py.
SCRAPE_SECONDS: Final = 15
SAVE_SECONDS: Final = 5
RATES: Final = (10, 100, 1_000)


@dataclass
class Watched:
    """One service's statistics and what they took; seconds, one entry a round."""

    monitoring: Monitoring
    metrics: Metrics
    rows: list[Doubles]
    observe: list[float] = field(default_factory=list)
    scrape: list[float] = field(default_factory=list)
    keep: list[float] = field(default_factory=list)
    listing: list[float] = field(default_factory=list)

    def round(self) -> None:
        self.observe.append(seconds(self._observe) / PREDICTIONS)
        self.scrape.append(seconds(self.text))
        self.keep.append(seconds(lambda: remember(self.monitoring.monitor)))
        self.listing.append(seconds(lambda: live_classes(self.monitoring).model_dump_json()))

    def _observe(self) -> None:
        for number in range(PREDICTIONS):
            self.monitoring.observe(self.rows[number % DRAWN])

    def text(self) -> bytes:
        return generate_latest(self.metrics.registry)

    def share(self, rate: float) -> float:
        """Of a core's time, at `rate` predictions a second."""
        return (
            rate * median(self.observe)
            + median(self.scrape) / SCRAPE_SECONDS
            + median(self.keep) / SAVE_SECONDS
        )


def seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def watched(size: int, setting: Literal["auto", "on"]) -> Watched:
    """Counts fall as in long-tailed data; predictions are drawn from them."""
    counts = np.maximum(1_000 / np.arange(1, size + 1) ** 0.9, 1).astype(int).tolist()
    labels = [f"class-{place}" for place in range(size)]
    manifest = _manifest(classes_from(labels, labels, counts, Thresholds(), [None] * size))
    metrics = Metrics(manifest, "cpu")
    monitoring = Monitoring(manifest, read_settings(bundle=Path()), metrics)
    metrics.registry.register(TailSeries(monitoring, class_series(setting, size)))
    shares = np.array(counts) / sum(counts)
    rows = np.random.default_rng(0).dirichlet(np.ones(size), DRAWN) / 10
    for row, place in zip(
        rows, np.random.default_rng(1).choice(size, DRAWN, p=shares), strict=True
    ):
        row[place] = 0.9
    return Watched(monitoring, metrics, list(rows))


def _manifest(classes: tuple[ClassInfo, ...]) -> Manifest:
    return Manifest(
        name="none",
        version="0",
        taillift_version="0",
        backbone=Backbone(architecture="none", pretrained="none", sha256="0" * 64),
        method=Method(name="none", trainable_parameters=0, loss="none"),
        classes=classes,
        thresholds=Thresholds(),
        preprocessing=Preprocessing(
            size=224,
            expand=24,
            interpolation="bicubic",
            resize_mode="shortest",
            mean=(0, 0, 0),
            std=(1, 1, 1),
        ),
        variants={Precision.FP32: Variant()},
        files={},
    )


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the median counts.")] = 7,
) -> None:
    """Print what watching costs, and write it to benchmarks/results/monitoring.md."""
    cases = {
        "100 classes": watched(100, "auto"),
        "8,142 classes": watched(8_142, "auto"),
        "8,142 classes, class_metrics=on": watched(8_142, "on"),
    }
    for _ in range(rounds):
        for one in cases.values():
            one.round()
    write_result(RESULTS / "monitoring.md", [_costs(cases), _shares(cases)])


def _costs(cases: Mapping[str, Watched]) -> str:
    titles = [
        "",
        "a prediction, us",
        "a scrape, ms",
        "its KiB",
        "its peak memory, MiB",
        "copy to keep, ms",
        "GET /classes, ms",
    ]
    return markdown(
        titles,
        [
            [
                name,
                f"{1e6 * median(one.observe):.1f}",
                f"{1e3 * median(one.scrape):.0f}",
                f"{len(one.text()) / 2**10:,.0f}",
                f"{_peak(one):.1f}",
                f"{1e3 * median(one.keep):.1f}",
                f"{1e3 * median(one.listing):.0f}",
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


def _peak(one: Watched) -> float:
    """MiB that a scrape allocates at once."""
    tracemalloc.start()
    one.text()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


if __name__ == "__main__":
    typer.run(main)
