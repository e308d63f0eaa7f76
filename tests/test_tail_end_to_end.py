"""Real requests to a real service, watched by a real Prometheus and Alertmanager, for weeks.

Simulated time runs by what is sent: so many photos are a day. Rules on the tail and on answers are
compressed, the others stay as they are: the machine that they watch has its own time.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import ceil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from taillift.service.inference.engine import Engine
from taillift.service.settings import read_settings
from tests.support.compression import compressed, seconds
from tests.support.palette import Colour, new_photo
from tests.support.serving import form, sample, serving, until
from tests.support.stack import DOCKER, RULES, alertmanager, free_port, prometheus, rows
from tests.support.wardrobe import colours, draw, read_predictions, write_wardrobe

DAY = 86_400.0
PHOTOS_A_DAY = 512
PHOTOS_A_REQUEST = 64
LOST = "blazer"

# Ten days pass in about twenty seconds; a range holds a few scrapes.
FACTOR = 40_000
LEAST = 4.0
COMPRESSED = {"tail.yml", "answers.yml"}


@dataclass
class Clock:
    now: float = 1.8e9

    def __call__(self) -> float:
        return self.now


@dataclass
class Camera:
    """Sends photos as they are drawn, while the clock runs."""

    service: httpx.Client
    clock: Clock
    colours: dict[str, Colour] = field(default_factory=colours)

    def send(self, labels: list[str]) -> None:
        for start in range(0, len(labels), PHOTOS_A_REQUEST):
            part = labels[start : start + PHOTOS_A_REQUEST]
            files = form(*((label, new_photo(self.colours[label])) for label in part))
            answer = self.service.post("/classify?ensemble=off", files=files).raise_for_status()
            results = answer.json()["results"]
            assert [one["predictions"][0]["label"] for one in results] == part
            self.clock.now += DAY * len(part) / PHOTOS_A_DAY


@contextmanager
def pager() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a webhook, and the alerts that it is sent."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.extend(json.loads(body)["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", received
        finally:
            server.shutdown()
            thread.join()


def paging(url: str) -> dict[str, Any]:
    """Alertmanager's shipped configuration for a webhook, at once and to `url`."""
    shipped: dict[str, Any] = yaml.safe_load((DOCKER / "alertmanager/webhook.yml").read_text())
    shipped["route"] |= {"group_wait": "200ms", "group_interval": "1s"}
    shipped["receivers"][0]["webhook_configs"] = [{"url": url}]
    return shipped


def alerting(folder: Path, alerts: httpx.Client) -> dict[str, object]:
    """Prometheus' configuration of the shipped rules, compressed where they are about the tail."""
    for file in RULES.glob("*.yml"):
        content = yaml.safe_load(file.read_text())
        if file.name in COMPRESSED:
            content = compressed(content, FACTOR, LEAST)
        (folder / file.name).write_text(json.dumps(content))
    target = {"static_configs": [{"targets": [alerts.base_url.netloc.decode()]}]}
    return {
        "rule_files": [file.name for file in RULES.glob("*.yml")],
        "alerting": {"alertmanagers": [target]},
    }


def fired(watch: httpx.Client) -> set[str]:
    """Alerts that fired at any time."""
    found = rows(watch, 'count_over_time(ALERTS{alertstate="firing"}[1h])')
    return {row["metric"]["alertname"] for row in found}


def test_a_lost_class_reaches_the_pager_within_the_promised_delay_and_nothing_before(
    tmp_path: Path,
) -> None:
    bundle, predictions = write_wardrobe(tmp_path / "bundle"), read_predictions()
    clock, rng, port = Clock(), np.random.default_rng(6), free_port()
    settings = read_settings(
        bundle=bundle, reference="uniform", tail_file=tmp_path / "tail.sqlite", port=port
    )
    with (
        pager() as (url, received),
        alertmanager(paging(url), tmp_path) as alerts,
        prometheus(f"127.0.0.1:{port}", tmp_path, alerting(tmp_path, alerts)) as watch,
    ):
        with serving(Engine(settings, clock), port) as service:
            until(lambda: service.get("/readyz").is_success)
            until(lambda: bool(rows(watch, "taillift_ready == 1")))
            camera = Camera(service, clock)

            camera.send(draw(rng, 10 * PHOTOS_A_DAY, predictions))
            until(lambda: bool(rows(watch, f"taillift_window_predictions == {week(service)}")))
            assert fired(watch) == set()
            assert received == []

            delay = service.get(f"/classes/{LOST}").json()["details"]["silence_delay"]
            camera.send(draw(rng, ceil(delay), predictions, without=LOST))
            until(lambda: bool(received))

        named = {(one["labels"]["alertname"], one["labels"].get("class")) for one in received}
        assert ("TailliftClassSilent", LOST) in named
        assert {name for alert, name in named if alert == "TailliftClassSilent"} == {LOST}
        open_ = alerts.get("/api/v2/alerts", params={"filter": f'class="{LOST}"'}).json()
        assert "TailliftClassSilent" in {one["labels"]["alertname"] for one in open_}

        with serving(Engine(settings, clock), port) as service:
            until(lambda: service.get("/readyz").is_success)
            silent = "taillift_class_silent"
            assert sample(service, silent, class_=LOST, group="few") == 1


def week(service: httpx.Client) -> float:
    return sample(service, "taillift_window_predictions")


def test_durations_are_divided_down_to_the_least() -> None:
    rules = {
        "groups": [
            {
                "name": "one",
                "interval": "1m",
                "rules": [
                    {"record": "a:mean6h", "expr": "x[6h] + y offset 1d30m"},
                    {"alert": "A", "expr": "a:mean6h offset 6h > 1", "for": "15m"},
                ],
            }
        ]
    }
    (group,) = compressed(rules, factor=3600, least=2)["groups"]
    assert "interval" not in group
    assert group["rules"] == [
        {"record": "a:mean6h", "expr": "x[6000ms] + y offset 24500ms"},
        {"alert": "A", "expr": "a:mean6h offset 6000ms > 1", "for": "2000ms"},
    ]
    assert seconds("1h30m") == 5400
