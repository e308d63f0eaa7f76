"""A real Prometheus and Alertmanager, for the tests of what they are provisioned with."""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serving import until

DOCKER = Path(__file__).parents[2] / "docker"
RULES = DOCKER / "prometheus" / "rules"
PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
}


def installed(command: str) -> str:
    path = shutil.which(command)
    if path is None:
        pytest.skip(f"{command} is not installed (apt-get install {PACKAGES[command]})")
    return path


def check(command: str, *arguments: str | Path) -> None:
    """Run it; fails where it finds fault."""
    result = subprocess.run(
        [installed(command), *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@contextmanager
def prometheus(
    target: str, folder: Path, configuration: Mapping[str, object] | None = None
) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes `target` (host:port) five times a second."""
    scrape = {"job_name": "taillift", "static_configs": [{"targets": [target]}]}
    base: dict[str, object] = {
        "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yml").write_text(json.dumps(base | dict(configuration or {})))
    address = f"127.0.0.1:{free_port()}"
    command = [
        installed("prometheus"),
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={address}",
    ]
    with _running(command, folder / "prometheus.log", address) as client:
        yield client


@contextmanager
def alertmanager(configuration: Mapping[str, object], folder: Path) -> Iterator[httpx.Client]:
    (folder / "alertmanager.yml").write_text(json.dumps(configuration))
    address = f"127.0.0.1:{free_port()}"
    command = [
        installed("prometheus-alertmanager"),
        "--config.file=alertmanager.yml",
        "--storage.path=alerts",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    with _running(command, folder / "alertmanager.log", address) as client:
        yield client


@contextmanager
def _running(command: list[str], log: Path, address: str) -> Iterator[httpx.Client]:
    with (
        log.open("w") as file,
        subprocess.Popen(command, cwd=log.parent, stdout=file, stderr=file) as process,
        httpx.Client(base_url=f"http://{address}", trust_env=False) as client,
    ):
        try:
            until(lambda: _is_ready(client))
            yield client
        finally:
            process.terminate()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").is_success
    except httpx.ConnectError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def rows(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """Prometheus' answer now: rows with a `metric` of labels and a `value`."""
    answer = client.get("/api/v1/query", params={"query": expression}).raise_for_status()
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def values(client: httpx.Client, expression: str) -> list[float]:
    return [float(row["value"][1]) for row in rows(client, expression)]
