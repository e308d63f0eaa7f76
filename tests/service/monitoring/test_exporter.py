"""Tests of the metrics as Prometheus scrapes them."""

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from taillift.service.monitoring import exporter
from taillift.service.monitoring.exporter import Exposition


def test_the_metrics_are_written_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "FRESH_SECONDS", 1.0)
    now = [100.0]
    monkeypatch.setattr(exporter, "monotonic", lambda: now[0])
    registry = CollectorRegistry()
    counter = Counter("asked", "Times", registry=registry)
    page = Exposition(registry)
    assert b"asked_total 0.0" in page.render("")[0]
    counter.inc()
    now[0] = 100.9
    assert b"asked_total 0.0" in page.render("")[0]
    openmetrics, kind = page.render("application/openmetrics-text; version=1.0.0")
    assert b"asked_total 1.0" in openmetrics
    assert "openmetrics" in kind
    now[0] = 101.0
    assert b"asked_total 1.0" in page.render("")[0]


@pytest.mark.parametrize("accept", ["text/plain; version=x", "*/*", "application/openmetrics-text"])
def test_any_accept_header_gets_the_metrics(client: httpx.Client, accept: str) -> None:
    answer = client.get("/metrics", headers={"accept": accept})
    assert answer.status_code == 200
    assert "taillift_ready 1.0" in answer.text
