"""Prometheus' and Grafana's provisioning, against what the service exports."""

import json
import re
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import yaml
from palette import CLASSES, photo
from serving import running, until
from stack import DOCKER, check, prometheus, values

from models.bundle.folder import read_manifest
from service.metrics import Metrics

GRAFANA = DOCKER / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards/taillift.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]

# What Grafana puts in the place of its variables.
VARIABLES = {"$__range": "1h", "$__rate_interval": "20s", "$reference": "train"}


def without_variables(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def test_prometheus_accepts_its_configuration() -> None:
    check("promtool", "check", "config", DOCKER / "prometheus/prometheus.yml")


def test_prometheus_accepts_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": without_variables(expression)}
        for number, expression in enumerate(EXPRESSIONS)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    check("promtool", "check", "rules", file)


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
