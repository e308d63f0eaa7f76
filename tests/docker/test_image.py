"""The Dockerfile, checked without a Docker engine; `scripts/test-docker` builds and runs it."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.serving import running

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker/Dockerfile"


def copied() -> list[str]:
    """Return the paths that the Dockerfile copies from the repository."""
    lines = re.findall(r"^(?:COPY|ADD) (?!--from)(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    return sorted({path for line in lines for path in line.split()[:-1]})


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.bundle"])
def test_hadolint_finds_nothing(name: str) -> None:
    command = [str(Path(sysconfig.get_path("scripts")) / "hadolint"), str(ROOT / "docker" / name)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", copied())
def test_what_is_copied_is_in_the_repository_and_in_the_build_context(path: str) -> None:
    assert list(ROOT.glob(path))
    allowed = (ROOT / ".dockerignore").read_text().split()
    assert f"!{path}" in allowed


# Imports every module that is there, and so everything that they import.
IMPORT_ALL = """
import importlib, pkgutil, taillift
for module in pkgutil.walk_packages(taillift.__path__, "taillift."):
    if module.name != "taillift.__main__":
        importlib.import_module(module.name)
        print(module.name)
"""


def test_the_code_that_is_copied_needs_no_other_code_of_the_repository(tmp_path: Path) -> None:
    for source in (source for path in copied() for source in ROOT.glob(path)):
        target = tmp_path / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy(source, target)
    (tmp_path / "taillift/training").unlink()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", IMPORT_ALL]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "taillift.service.http.app" in result.stdout.split()


def test_the_health_check_asks_the_port_of_the_service(bundle: Path) -> None:
    (text,) = re.findall(r"^HEALTHCHECK .*\\\n *CMD (.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    command = [sys.executable, *json.loads(text)[1:]]

    def check(port: int | None) -> int:
        environment = {**os.environ, "TAILLIFT_PORT": str(port)}
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    with running(bundle) as client:
        port = client.base_url.port
        assert check(port) == 0
    assert check(port) == 1


def test_the_build_context_is_closed_to_everything_else() -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == set(copied())
