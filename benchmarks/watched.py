"""The costs of the tail's statistics, fed with simulated predictions."""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final, Literal

import numpy as np
from prometheus_client import generate_latest

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.manifest import (
    BackboneInfo,
    ClassInfo,
    Manifest,
    Method,
    Thresholds,
    Variant,
    classes_from,
)
from taillift.models.bundle.schema import Precision, Preprocessing
from taillift.service.http import class_report
from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.exporter import TailSeries, class_series
from taillift.service.monitoring.recorder import Monitoring
from taillift.service.settings import read_settings
from taillift.service.tail.snapshot import to_arrays

PREDICTIONS: Final = 5_000
DRAWN: Final = 500
# A usual interval of scrapes, and SAVE_SECONDS of service/monitoring/recorder.py.
SCRAPE_SECONDS: Final = 15
SAVE_SECONDS: Final = 5


@dataclass
class MonitorCosts:
    """The statistics of one service, and the seconds that they took in each round."""

    monitoring: Monitoring
    metrics: Metrics
    rows: list[Doubles]
    observe: list[float] = field(default_factory=list)
    scrape: list[float] = field(default_factory=list)
    keep: list[float] = field(default_factory=list)
    snapshots: list[float] = field(default_factory=list)
    listing: list[float] = field(default_factory=list)

    def round(self) -> None:
        self.observe.append(seconds(self._observe) / PREDICTIONS)
        self.scrape.append(seconds(self.text))
        self.keep.append(seconds(lambda: to_arrays(self.monitoring.monitor)))
        self.snapshots.append(
            seconds(
                lambda: class_report.take_snapshot(
                    self.monitoring.manifest, self.monitoring.monitor
                )
            )
        )
        self.listing.append(seconds(self._list))

    def _observe(self) -> None:
        for number in range(PREDICTIONS):
            self.monitoring.observe(self.rows[number % DRAWN])

    def _list(self) -> str:
        return class_report.classes(
            class_report.take_snapshot(self.monitoring.manifest, self.monitoring.monitor)
        ).model_dump_json()

    def text(self) -> bytes:
        return generate_latest(self.metrics.registry)

    def peak(self) -> float:
        """Return the peak memory that a scrape allocates, in MiB."""
        tracemalloc.start()
        self.text()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / 2**20

    def share(self, rate: float) -> float:
        """Return the share of a core's time at `rate` predictions per second."""
        return (
            rate * median(self.observe)
            + median(self.scrape) / SCRAPE_SECONDS
            + median(self.keep) / SAVE_SECONDS
        )


def seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def simulated_monitor(size: int, setting: Literal["auto", "on"]) -> MonitorCosts:
    """Return the monitor of a long-tailed model, and predictions that follow its counts."""
    counts = np.maximum(1_000 / np.arange(1, size + 1) ** 0.9, 1).astype(int).tolist()
    labels = [f"class-{index}" for index in range(size)]
    manifest = _manifest(classes_from(labels, labels, counts, Thresholds(), [None] * size))
    metrics = Metrics(manifest, "cpu")
    monitoring = Monitoring(Path(), manifest, read_settings(bundle=Path()), metrics)
    metrics.registry.register(TailSeries(monitoring, class_series(setting, size)))
    shares = np.array(counts) / sum(counts)
    rows = np.random.default_rng(0).dirichlet(np.ones(size), DRAWN) / 10
    top = np.random.default_rng(1).choice(size, DRAWN, p=shares)
    rows[np.arange(DRAWN), top] = 0.9
    return MonitorCosts(monitoring, metrics, list(rows))


def _manifest(classes: tuple[ClassInfo, ...]) -> Manifest:
    return Manifest(
        name="none",
        version="0",
        taillift_version="0",
        backbone=BackboneInfo(architecture="none", pretrained="none", sha256="0" * 64),
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
