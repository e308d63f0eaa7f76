"""The command itself: its version, and which commands it has."""

import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taillift.cli import app


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-m", "taillift"], [str(Path(sysconfig.get_path("scripts")) / "taillift")]],
    ids=["python -m taillift", "taillift"],
)
def test_version_is_that_of_the_package(command: list[str]) -> None:
    run = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"taillift {version('taillift')}\n"


def test_help_lists_the_commands_of_training_and_of_the_service() -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    for command in ("train", "export", "compare", "serve", "classify", "embed", "watch", "extend"):
        assert f" {command} " in output
