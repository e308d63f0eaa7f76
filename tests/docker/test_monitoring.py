"""Prometheus' and Grafana's provisioning, against what the service exports."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.bundle.folder import read_manifest
from service.metrics import Metrics

DOCKER = Path(__file__).parents[2] / "docker"
GRAFANA = DOCKER / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards/taillift.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]

# What Grafana puts in the place of its variables.
VARIABLES = {"$__range": "1h", "$__rate_interval": "20s", "$reference": "train"}


def promtool(*arguments: str | Path) -> None:
    """Run it; fails where it finds fault."""
    command = shutil.which("promtool")
    if command is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    result = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


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
