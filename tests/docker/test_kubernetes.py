"""The manifests for Kubernetes, built by kustomize and checked without a cluster."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.check_kubernetes import built, violations
from taillift.models.bundle.folder import read_manifest
from taillift.service.monitoring.counters import Metrics
from taillift.service.settings import PREFIX
from tests.support.stack import check

FOLDER = Path(__file__).parents[2] / "docker/k8s"
MISTAKES = (
    ("base/deployment.yaml", "readinessProbe", "readynessProbe", "'readynessProbe'"),
    ("base/deployment.yaml", "image: taillift:cpu", "image: nginx:1", "nginx:1 has no digest"),
    ("base/deployment.yaml", "TAILLIFT_THREADS", "TAILLIFT_THREAD", "TAILLIFT_THREAD is not a"),
    ("base/settings.env", "FORMAT=json", "FORMAT=jsn", "TAILLIFT_LOG_FORMAT=jsn: Input"),
    ("base/settings.env", "TAIL_FILE", "TAIL_FILES", "TAILLIFT_TAIL_FILES is not a setting"),
    ("base/disruption.yaml", "minAvailable", "minAvailible", "'minAvailible'"),
    ("base/network.yaml", "networking.k8s.io/v1", "networking.k8s.io/v2", "in neither Kubernetes'"),
    ("components/keda/scaled-object.yaml", '"0.5"', "0.5", "0.5 is not of type 'string'"),
    ("components/keda/scaled-object.yaml", "maxReplica", "maxReplicas", "'maxReplicasCount'"),
    ("kserve/runtime.yaml", "livenessProbe", "livelinessProbe", "'livelinessProbe'"),
    ("kserve/runtime.yaml", "autoSelect", "autoselect", "'autoselect'"),
    ("kserve/inferenceservice.yaml", "terminationGrace", "terminateGrace", "terminateGrace"),
    ("kserve/inferenceservice.yaml", "oci://taillift-bundle:1", "oci://x:1", "image x:1 has"),
)
QUERY = "max(taillift_predicted_wait_seconds and taillift_ready == 1)"


@pytest.fixture(scope="module")
def base() -> dict[str, dict[str, Any]]:
    """Return the base's documents by their kind."""
    return {one["kind"]: one for one in yaml.safe_load_all(built(FOLDER / "base"))}


@pytest.fixture(scope="module")
def pod(base: dict[str, dict[str, Any]]) -> dict[str, Any]:
    template: dict[str, Any] = base["Deployment"]["spec"]["template"]["spec"]
    return template


def test_each_mistake_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "k8s"
    shutil.copytree(FOLDER, folder)
    for overlay in (folder / "overlays").iterdir():
        shutil.rmtree(overlay)
    base = folder / "base/kustomization.yaml"
    base.write_text(base.read_text() + "components: [../components/keda]\n")
    for file, before, after, _ in MISTAKES:
        text = (folder / file).read_text()
        assert before in text
        (folder / file).write_text(text.replace(before, after))
    lines = list(violations(folder))
    for _, _, _, words in MISTAKES:
        (line,) = (line for line in lines if words in line)
        lines.remove(line)
    assert not lines


def test_what_kustomize_refuses_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "k8s"
    shutil.copytree(FOLDER, folder)
    patch = folder / "base/kustomization.yaml"
    patch.write_text(patch.read_text().replace("service.yaml", "servise.yaml"))
    (line,) = violations(folder)
    assert "base: error: " in line
    assert "servise.yaml" in line


def test_every_component_is_built_in_an_overlay() -> None:
    text = "".join(path.read_text() for path in FOLDER.glob("overlays/*/kustomization.yaml"))
    for component in (FOLDER / "components").iterdir():
        assert f"components/{component.name}" in text


def test_everything_selects_the_pods_of_the_deployment(base: dict[str, dict[str, Any]]) -> None:
    labels = base["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert base["Service"]["spec"]["selector"] == labels
    assert base["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert base["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels


def test_nothing_is_killed_while_it_answers_what_it_accepted(
    base: dict[str, dict[str, Any]], pod: dict[str, Any]
) -> None:
    settings = base["ConfigMap"]["data"]
    (container,) = pod["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = sum(float(settings[f"{PREFIX}{name}_SECONDS"]) for name in ("NOTICE", "DRAIN"))
    assert pod["terminationGracePeriodSeconds"] > pause + drain


def test_a_rollout_never_takes_a_replica_away_before_the_next_is_ready(
    base: dict[str, dict[str, Any]],
) -> None:
    spec = base["Deployment"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert spec["minReadySeconds"] > 0


def test_the_containers_are_confined(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert "cpu" not in container["resources"]["limits"]


def test_probes_and_metrics_are_on_a_port_that_only_monitoring_reaches(
    base: dict[str, dict[str, Any]], pod: dict[str, Any]
) -> None:
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert str(ports["metrics"]) == base["ConfigMap"]["data"][f"{PREFIX}METRICS_PORT"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == "metrics"
    public, private = base["NetworkPolicy"]["spec"]["ingress"]
    assert public == {"ports": [{"port": "http"}]}
    assert private["ports"] == [{"port": "metrics"}]
    assert private["from"]


def test_an_autoscaler_alone_decides_how_many_replicas_there_are() -> None:
    for name in ("keda", "hpa"):
        (deployment,) = (
            one
            for one in yaml.safe_load_all(built(FOLDER / "overlays" / name))
            if one["kind"] == "Deployment"
        )
        assert "replicas" not in deployment["spec"]


def test_replicas_are_added_by_metrics_that_the_service_exports(
    bundle: Path, tmp_path: Path
) -> None:
    exported = {one.name for one in Metrics(read_manifest(bundle), "cpu").registry.collect()}
    assert {"taillift_predicted_wait_seconds", "taillift_ready"} <= exported
    texts = [path.read_text() for path in FOLDER.rglob("*.yaml") if path.parent != FOLDER]
    queries = [line.split(": ")[1] for line in "".join(texts).splitlines() if " query: " in line]
    assert queries == [QUERY] * 2
    rules = {"groups": [{"name": "scaling", "rules": [{"record": "wait", "expr": QUERY}]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    check("promtool", "check", "rules", tmp_path / "rules.yml")
