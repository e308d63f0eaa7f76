"""The configuration of Prometheus and Grafana, checked against what the service exports."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from taillift.models.bundle.schema import GROUPS
from taillift.service.feedback.prediction_id import PredictionId, Signer
from taillift.service.http.app import create_app
from taillift.service.inference.engine import Engine
from taillift.service.settings import read_settings
from tests.support.palette import CLASSES, new_photo, write_bundle, write_confusion
from tests.support.serving import form, running, until
from tests.support.stack import DOCKER, RULES, check, prometheus, values

KEY = "the key that signs the ids"
GRAFANA = DOCKER / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards/taillift.json").read_text())
EMPTY_WHEN_ALL_IS_WELL = {"Silent classes", "Top drifting classes", "Alerts"}
EMPTY_WITHOUT_LABELS = {"Live recall by group"}

# Values that Grafana substitutes for its variables.
VARIABLES = {"$__rate_interval": "20s"}


def expressions(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


EXPRESSIONS = [expression for panel in DASHBOARD["panels"] for expression in expressions(panel)]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a bundle with held-out photos that were all recognised."""
    bundle = write_bundle(tmp_path_factory.mktemp("known") / "palette")
    write_confusion(bundle, {})
    return bundle


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


def test_the_service_exports_every_metric_of_the_dashboard_and_the_alerts(bundle: Path) -> None:
    families = list(Engine(read_settings(bundle=bundle)).metrics.registry.collect())
    exported = {sample.name for family in families for sample in family.samples}
    # Some families have no samples while all is well.
    exported |= {family.name for family in families}
    asked = [*EXPRESSIONS, *(file.read_text() for file in RULES.glob("*.yml"))]
    # Names with colons come from recording rules, not from the service.
    shown = {name for text in asked for name in re.findall(r"(?<!:)\btaillift_\w+(?!:)\b", text)}
    assert shown
    assert shown <= exported


def test_every_metric_and_endpoint_is_on_the_page_of_the_monitoring(bundle: Path) -> None:
    page = (DOCKER.parent / "docs/monitoring.md").read_text()
    engine = Engine(read_settings(bundle=bundle))
    families = engine.metrics.registry.collect()
    described = set(re.findall(r"`(taillift_\w+?)(?:_total)?(?:\{[^`]*)?`", page))
    names = {family.name.removesuffix("_total") for family in families}
    named = {name for name in names if name.startswith("taillift")}
    assert {name.removesuffix("_info") for name in described} >= named
    for path, operations in create_app(engine).openapi()["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in page


def test_every_expression_has_an_answer_while_all_is_well(known: Path, tmp_path: Path) -> None:
    with watched(known, tmp_path) as (service, client):
        send(service, [*CLASSES] * 10)
        until(lambda: values(client, "sum(taillift_predictions_total)") == [10 * len(CLASSES)])
        for panel in DASHBOARD["panels"]:
            for expression in expressions(panel):
                empty = panel["title"] in EMPTY_WHEN_ALL_IS_WELL | EMPTY_WITHOUT_LABELS
                assert is_answered(client, expression) != empty, expression


def test_every_expression_has_an_answer_once_a_class_is_lost(known: Path, tmp_path: Path) -> None:
    with watched(known, tmp_path) as (service, client):
        send(service, [label for label in CLASSES if label != "black"] * 300)
        send_labels(service)
        recall = 'taillift_live_recall{bound="low"}'
        until(lambda: len(values(client, recall)) == len(GROUPS))
        firing = 'ALERTS{alertname="TailliftClassSilent", class="black", alertstate="firing"}'
        until(lambda: values(client, firing) == [1])
        for panel in DASHBOARD["panels"]:
            for expression in expressions(panel):
                # A scrape that comes too late on a busy machine leaves a gap.
                until(partial(is_answered, client, expression))


@contextmanager
def watched(bundle: Path, folder: Path) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Run a service and a Prometheus that scrapes it, with the rules of this repository."""
    rules = {"rule_files": [str(RULES / "*.yml")]}
    with (
        running(bundle, reference="uniform", feedback_key=KEY) as service,
        prometheus(service.base_url.netloc.decode(), folder, rules) as client,
    ):
        until(lambda: bool(values(client, "taillift_ready")))
        yield service, client


def send(service: httpx.Client, labels: list[str]) -> None:
    for start in range(0, len(labels), 60):
        files = form(
            *((label, new_photo(CLASSES[label][0])) for label in labels[start : start + 60])
        )
        service.post("/classify", files=files).raise_for_status()


def send_labels(service: httpx.Client) -> None:
    """Send right labels of photos of every class, which were all chosen for labelling."""
    signer = Signer([KEY.encode()])
    answer = service.post("/classify", content=new_photo(CLASSES["red"][0])).json()
    version = signer.read(answer["results"][0]["id"]).version
    labels = [
        {"id": signer.sign(PredictionId(version, index, 0.9, "few", None, 1.0)), "label": label}
        for index, label in enumerate(CLASSES)
        for _ in range(12)
    ]
    service.post("/feedback", json={"labels": labels}).raise_for_status()


def is_answered(client: httpx.Client, expression: str) -> bool:
    answer = values(client, without_variables(expression))
    assert all(map(isfinite, answer)), expression
    return bool(answer)


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"]
    assert panel["targets"]
    assert all(target["expr"] for target in panel["targets"])


def test_every_panel_asks_the_provisioned_datasource() -> None:
    text = (GRAFANA / "provisioning/datasources/prometheus.yaml").read_text()
    (source,) = yaml.safe_load(text)["datasources"]
    panels = DASHBOARD["panels"]
    queries = [*panels, *(target for panel in panels for target in panel["targets"])]
    assert {query["datasource"]["uid"] for query in queries} == {source["uid"]}


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    text = (GRAFANA / "provisioning/datasources/prometheus.yaml").read_text()
    (source,) = yaml.safe_load(text)["datasources"]
    scraping = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        position = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
