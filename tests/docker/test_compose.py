"""The compose files, checked without a Docker engine."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from taillift.service.settings import COMPOSE_VARIABLES, Settings

ROOT = Path(__file__).parents[2]
SERVICE_PAGE = ROOT / "docs/service.md"
IMAGES = ROOT / "docker/images.yaml"
FILES = [ROOT / "compose.yaml", *sorted((ROOT / "docker").glob("compose.*.yaml")), IMAGES]


def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return services


def mounts() -> list[tuple[str, str]]:
    """Return (source, target) of each folder that `compose.yaml` mounts from the repository."""
    volumes = [volume for service in services().values() for volume in service.get("volumes", [])]
    pairs = [volume.split(":")[:2] for volume in volumes if volume.startswith("./")]
    return [(source, target) for source, target in pairs]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_compose_file_follows_the_specification(file: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run([*command, file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("source", "target"), mounts())
def test_what_is_mounted_is_in_the_repository(source: str, target: str) -> None:
    assert (ROOT / source).is_dir(), f"nothing to mount on {target}"


def test_configured_paths_are_mounted() -> None:
    prometheus, grafana = services()["prometheus"], services()["grafana"]
    configuration = prometheus["command"][0].removeprefix("--config.file=")
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    for path in map(Path, (configuration, home)):
        (source,) = (source for source, target in mounts() if Path(target) == path.parent)
        assert (ROOT / source / path.name).is_file()


def test_every_target_is_built_by_the_dockerfile() -> None:
    text = (ROOT / "docker/Dockerfile").read_text()
    files = (yaml.safe_load(file.read_text())["services"]["taillift"] for file in FILES)
    targets = [
        service["build"]["target"] for service in files if "target" in service.get("build", {})
    ]
    assert targets
    for target in targets:
        assert f" AS {target}\n" in text


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_variables_of_the_compose_files_are_not_settings_of_the_service(file: Path) -> None:
    names = re.findall(r"\$\{TAILLIFT_(\w+)", file.read_text())
    assert not {name.lower() for name in names} & set(Settings.model_fields)


def test_every_setting_reaches_the_container_from_the_shell_or_stands_in_the_file() -> None:
    given = services()["taillift"]["environment"]
    # The image sets these, or a change of them would break what is around the container.
    fixed = {"bundle", "host", "port", "metrics_port", "provider"}
    variables = [f"TAILLIFT_{name.upper()}" for name in Settings.model_fields if name not in fixed]
    assert set(given) == set(variables), "add the setting to compose.yaml"
    passed = [name for name, value in given.items() if value is None]
    assert passed == [name for name in variables if name in passed], "keep the order of Settings"
    assert given["TAILLIFT_KEYS"] is None


def test_nothing_is_killed_while_it_answers_what_it_accepted() -> None:
    grace = services()["taillift"]["stop_grace_period"]
    usual = re.fullmatch(r"\$\{TAILLIFT_STOP_GRACE:-(\d+)s\}", grace)
    assert usual
    assert float(usual[1]) > Settings.model_fields["drain_seconds"].default


def test_the_documentation_names_what_the_shell_cannot_set() -> None:
    (passage,) = re.findall(r"^The other settings of .*$", SERVICE_PAGE.read_text(), re.MULTILINE)
    for name in ("TAILLIFT_METRICS_PORT", "TAILLIFT_PROVIDER", "TAILLIFT_STOP_GRACE"):
        assert name in passage


@pytest.mark.parametrize("name", services())
def test_every_container_is_confined(name: str) -> None:
    service = services()[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]


def test_the_service_knows_every_variable_of_the_compose_files() -> None:
    names = {name for file in FILES for name in re.findall(r"\$\{(TAILLIFT_\w+)", file.read_text())}
    assert names == COMPOSE_VARIABLES


def test_everything_is_published_on_loopback_only() -> None:
    for service in services().values():
        for port in service["ports"]:
            assert port.startswith(("127.0.0.1:", "${TAILLIFT_PUBLISHED_ADDRESS:-127.0.0.1}:"))


def test_prometheus_scrapes_a_port_that_is_not_published() -> None:
    taillift = services()["taillift"]
    flag, port = taillift["command"]
    assert flag == "--metrics-port"
    assert not [published for published in taillift["ports"] if published.endswith(f":{port}")]
    scraped = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"taillift:{port}"]}]


@pytest.mark.parametrize("name", services())
def test_no_container_exhausts_the_host(name: str) -> None:
    service = services()[name]
    assert service["init"] is True
    assert service["pids_limit"] == 2048
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


def test_keys_come_as_a_secret() -> None:
    keys = yaml.safe_load((ROOT / "docker/compose.keys.yaml").read_text())
    service = keys["services"]["taillift"]
    (secret,) = service["secrets"]
    assert service["environment"]["TAILLIFT_KEYS_FILE"] == f"/run/secrets/{secret}"
    assert keys["secrets"][secret]["file"].startswith("${TAILLIFT_KEYS_SECRET:?")


def test_files_that_settings_name_are_mounted() -> None:
    assert (
        "${TAILLIFT_CONFIG_DIR:-./docker/config}:/etc/taillift:ro"
        in (services()["taillift"]["volumes"])
    )
    assert (ROOT / "docker/config").is_dir()


def pinned() -> dict[str, str]:
    """Return the image of each service in the file of images."""
    services = yaml.safe_load(IMAGES.read_text())["services"]
    return {
        name: service.get("image") or service["build"]["args"]["BASE"]
        for name, service in services.items()
    }


def test_every_image_stands_in_one_file_at_an_exact_version() -> None:
    images = pinned()
    assert set(images) == set(services())
    for name, service in services().items():
        assert service["extends"] == {"file": "docker/images.yaml", "service": name}
        assert "image" not in service or service["image"].startswith("taillift:")
    for image in images.values():
        assert re.fullmatch(r"[\w./-]+(:v?\d+\.\d+[\w.-]*|@sha256:[0-9a-f]{64})", image)


def test_the_dockerfile_has_the_same_base() -> None:
    text = (ROOT / "docker/Dockerfile").read_text()
    assert f"\nARG BASE={pinned()['taillift']}\n" in text
    bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE))
    assert bases - stages == {"${BASE}"}
