"""Tests of answers that are the same for everybody: the metrics, the description, the classes."""

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from taillift.service.http import exposition
from taillift.service.http.exposition import Exposition
from tests.support.palette import CLASSES, photo


def test_the_metrics_are_written_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "FRESH_SECONDS", 1.0)
    now = [100.0]
    monkeypatch.setattr(exposition, "monotonic", lambda: now[0])
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


def test_the_description_is_the_same_each_time(client: httpx.Client) -> None:
    first, second = client.get("/openapi.json"), client.get("/openapi.json")
    assert first.headers["content-type"] == "application/json"
    assert first.content == second.content
    assert "/classify" in first.json()["paths"]


def test_a_label_that_is_named_often_is_given_once(client: httpx.Client) -> None:
    query = {"classes": ["red", "blue"] + ["red"] * 2_000}
    answer = client.post("/confidence", params=query, content=photo(CLASSES["red"][0]))
    (result,) = answer.json()["results"]
    assert [entry["label"] for entry in result["classes"]] == ["red", "blue"]
