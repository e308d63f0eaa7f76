"""Prometheus' and Grafana's provisioning, against what the service exports."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from palette import CLASSES, photo
from serving import running, until

from models.bundle.folder import read_manifest
from service.metrics import Metrics

DOCKER = Path(__file__).parents[2] / "docker"
GRAFANA = DOCKER / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards/taillift.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]

# What Grafana puts in the place of its variables.
VARIABLES = {"$__range": "1h", "$__rate_interval": "20s", "$reference": "train"}


def installed(command: str) -> str:
    path = shutil.which(command)
    if path is None:
        pytest.skip(f"{command} is not installed (apt-get install prometheus)")
    return path


def promtool(*arguments: str | Path) -> None:
    """Run it; fails where it finds fault."""
    command = [installed("promtool"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[httpx.Client]:
    """A real Prometheus that scrapes `target` (host:port) five times a second."""
    scrape = {"job_name": "taillift", "static_configs": [{"targets": [target]}]}
    configuration = {"global": {"scrape_interval": "200ms"}, "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(json.dumps(configuration))
    address = f"127.0.0.1:{free_port()}"
    command = [
        installed("prometheus"),
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={address}",
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process,
        httpx.Client(base_url=f"http://{address}", trust_env=False) as client,
    ):
        try:
            until(lambda: is_ready(client))
            yield client
        finally:
            process.terminate()


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").is_success
    except httpx.ConnectError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def values(client: httpx.Client, expression: str) -> list[float]:
    answer = client.get("/api/v1/query", params={"query": expression}).raise_for_status()
    rows = answer.json()["data"]["result"]
    return [float(row["value"][1]) for row in rows]


def without_variables(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def test_prometheus_accepts_its_configuration() -> None:
    promtool("check", "config", DOCKER / "prometheus/prometheus.yml")


def test_prometheus_accepts_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": without_variables(expression)}
        for number, expression in enumerate(EXPRESSIONS)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


def test_the_service_exports_every_metric_of_the_dashboard(bundle: Path) -> None:
    registry = Metrics(read_manifest(bundle), "cpu", by_class=True).registry
    exported = {sample.name for family in registry.collect() for sample in family.samples}
    shown = {name for one in EXPRESSIONS for name in re.findall(r"\btaillift_\w+", one)}
    assert shown
    assert shown <= exported


def test_every_expression_has_an_answer_once_photos_are_classified(
    bundle: Path, tmp_path: Path
) -> None:
    with (
        running(bundle) as service,
        prometheus(service.base_url.netloc.decode(), tmp_path) as client,
    ):
        until(lambda: bool(values(client, "taillift_ready")))
        for colour, _ in CLASSES.values():
            service.post("/classify", content=photo(colour)).raise_for_status()
        until(lambda: values(client, "sum(taillift_predictions_total)") == [len(CLASSES)])
        for expression in EXPRESSIONS:
            answer = values(client, without_variables(expression))
            assert answer, expression
            assert all(map(isfinite, answer)), expression


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"]
    assert panel["targets"]
    assert all(target["expr"] for target in panel["targets"])


def test_every_panel_asks_the_provisioned_datasource() -> None:
    text = (GRAFANA / "provisioning/datasources/prometheus.yaml").read_text()
    (source,) = yaml.safe_load(text)["datasources"]
    places = [
        *DASHBOARD["panels"],
        *(one for panel in DASHBOARD["panels"] for one in panel["targets"]),
    ]
    assert {place["datasource"]["uid"] for place in places} == {source["uid"]}


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    text = (GRAFANA / "provisioning/datasources/prometheus.yaml").read_text()
    (source,) = yaml.safe_load(text)["datasources"]
    scraping = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
