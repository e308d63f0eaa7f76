"""Starts a real Prometheus, Alertmanager or nginx with the configuration that is given to it."""

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
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
# One process in the foreground, which writes to `folder` alone.
NGINX_CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  proxy_http_version 1.1;
  {http}
}}
"""
PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
}


def installed(command: str) -> str:
    """Return the path of a command, or skip the test if it is not installed."""
    path = shutil.which(command)
    if path is None:
        pytest.skip(f"{command} is not installed (apt-get install {PACKAGES[command]})")
    return path


def check(command: str, *arguments: str | Path) -> None:
    """Run a command that checks files, and fail with its output if it finds a fault."""
    result = subprocess.run(
        [installed(command), *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@contextmanager
def nginx(folder: Path, http: str, *ports: int) -> Iterator[None]:
    """Run nginx with the lines `http`, which listen on `ports`, until the block ends."""
    assert NGINX is not None
    folder.chmod(0o755)
    (folder / "nginx.conf").write_text(NGINX_CONFIGURATION.format(folder=folder, http=http))
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as proxy:
        try:
            until(lambda: all(is_open(port) for port in ports))
            yield
        finally:
            proxy.terminate()


def is_open(port: int) -> bool:
    """Return whether something listens on this port of the machine."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def prometheus(
    target: str, folder: Path, configuration: Mapping[str, object] | None = None
) -> Iterator[httpx.Client]:
    """Run a Prometheus that scrapes `target` (host:port) five times a second; yield a client."""
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
    """Run an Alertmanager until the block ends; yield a client of it."""
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
    """Return a TCP port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def rows(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """Ask Prometheus for an expression's value: rows with a `metric` of labels and a `value`."""
    answer = client.get("/api/v1/query", params={"query": expression}).raise_for_status()
    result: list[dict[str, Any]] = answer.json()["data"]["result"]
    return result


def values(client: httpx.Client, expression: str) -> list[float]:
    """Ask Prometheus for an expression's value, without the labels."""
    return [float(row["value"][1]) for row in rows(client, expression)]
