"""The command itself: its version, and which commands it has."""

import re
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from taillift.cli import PANELS, commands


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-m", "taillift"], [str(Path(sysconfig.get_path("scripts")) / "taillift")]],
    ids=["python -m taillift", "taillift"],
)
def test_version_is_that_of_the_package(command: list[str]) -> None:
    run = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"taillift {version('taillift')}\n"


def test_help_shows_each_command_in_the_panel_of_its_use(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        commands()(["--help"])
    shown = re.findall(r"^(?:╭─|│) (\S.*?)(?:  | ─)", capsys.readouterr().out, re.MULTILINE)
    shown = shown[shown.index("Train") :]
    assert shown == [word for panel, names in PANELS.items() for word in (panel, *names)]


def test_every_command_has_a_panel() -> None:
    assert commands().commands.keys() == {name for names in PANELS.values() for name in names}


@pytest.mark.parametrize("command", ["classify", "export", "serve"])
def test_what_the_system_refuses_is_one_line(command: str) -> None:
    name = "a" * 300
    arguments = [name] if command == "serve" else [name, name]
    line = [sys.executable, "-m", "taillift", command, *arguments]
    run = subprocess.run(line, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert "File name too long" in run.stderr
    assert run.stderr.count("\n") == 1
