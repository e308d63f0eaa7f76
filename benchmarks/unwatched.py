"""`python -m benchmarks.unwatched serve BUNDLE ...`: taillift without the tail's statistics."""

from collections.abc import Iterator
from unittest.mock import patch

from prometheus_client import Metric

from taillift.cli import main
from taillift.service.monitoring.exporter import TailSeries
from taillift.service.monitoring.recorder import Monitoring


def observe(*_: object) -> None:
    """Count nothing."""


def collect(_: TailSeries) -> Iterator[Metric]:
    """Export no series of the tail."""
    return iter(())


if __name__ == "__main__":
    with patch.object(Monitoring, "observe", observe), patch.object(TailSeries, "collect", collect):
        main()
