"""Alert rules and Alertmanager's configuration, checked by Prometheus' own tools."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.stack import DOCKER, RULES, check

FILES = sorted(RULES.glob("*.yml"))
TESTS = Path(__file__).parent / "alerts"
ALERTMANAGER = DOCKER / "alertmanager"
DOCS = DOCKER.parent / "docs" / "monitoring.md"


def alerts() -> dict[str, dict[str, Any]]:
    rules = [
        rule
        for file in FILES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
    return {rule["alert"]: rule for rule in rules if "alert" in rule}


def unit_tests() -> list[dict[str, Any]]:
    return [
        test for file in TESTS.glob("*.yml") for test in yaml.safe_load(file.read_text())["tests"]
    ]


def alertmanager_configuration(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ALERTMANAGER / f"{name}.yml").read_text())
    return content


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_rules_are_valid(file: Path) -> None:
    check("promtool", "check", "rules", file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_rules_fire_when_they_should_and_only_then(file: Path) -> None:
    check("promtool", "test", "rules", TESTS / file.name)


@pytest.mark.parametrize("name", alerts())
def test_an_alert_has_a_case_that_fires_and_one_that_does_not(name: str) -> None:
    fires = [case for case in cases(name) if case]
    assert fires
    assert len(fires) < len(cases(name))


def cases(name: str) -> list[bool]:
    """Return whether the alert fires, for each moment at which the unit tests check it."""
    looks = [look for test in unit_tests() for look in test.get("alert_rule_test", [])]
    return [bool(look["exp_alerts"]) for look in looks if look["alertname"] == name]


@pytest.mark.parametrize("name", alerts())
def test_an_alert_has_a_severity_and_says_what_to_do(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert "\n" not in alert["annotations"]["summary"]
    assert alert["annotations"]["description"]
    assert alert["annotations"]["runbook"] == f"docs/monitoring.md#{name.lower()}"


def test_every_alert_is_described_and_no_other() -> None:
    assert set(re.findall(r"^#+ (Taillift\w+)$", DOCS.read_text(), re.M)) == set(alerts())


@pytest.mark.parametrize("name", ["nobody", "webhook"])
def test_alertmanager_accepts_its_configuration(name: str, tmp_path: Path) -> None:
    content = alertmanager_configuration(name)
    for receiver in content["receivers"]:
        for webhook in receiver.get("webhook_configs", []):
            # Alertmanager reads a URL from a file since 0.26; Debian's version is older.
            assert webhook.pop("url_file") == "/etc/alertmanager/webhook-url"
            webhook["url"] = "http://127.0.0.1/"
    file = tmp_path / "alertmanager.yml"
    file.write_text(json.dumps(content))
    check("amtool", "check-config", file)


def test_the_two_configurations_of_alertmanager_differ_in_the_receiver_only() -> None:
    nobody, webhook = map(alertmanager_configuration, ("nobody", "webhook"))
    assert nobody.pop("receivers") == [{"name": "operator"}]
    assert [receiver["name"] for receiver in webhook.pop("receivers")] == ["operator"]
    assert nobody == webhook


def test_alerts_are_silenced_by_alerts_that_exist() -> None:
    rules = alertmanager_configuration("nobody")["inhibit_rules"]
    named = {
        name
        for rule in rules
        for matcher in (*rule["source_matchers"], *rule["target_matchers"])
        for name in re.findall(r"Taillift\w+", matcher)
    }
    assert named
    assert named <= set(alerts())
