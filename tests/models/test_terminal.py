"""Text from elsewhere does nothing to a terminal, wherever a line is printed."""

import json
import logging
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taillift import cli
from taillift.models.errors import UserError
from taillift.models.terminal import (
    PlainConsole,
    PrintableFormatter,
    printable,
    printable_json,
    say,
)
from taillift.service.serve_cli import app
from tests.support.palette import CLASSES, photo

HOSTILE = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b2J",
    "a\rb",
    "a\x08b",
    "\u202etxt.exe",
    "\u2028next",
    "\x7f",
    "\udcff",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_every_way_to_print_shows_it_escaped(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(text)
    say(text, err=True)
    PlainConsole().print(text)
    PlainConsole(file=sys.stderr, force_terminal=True).print(text)
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "%s", (text,), None)
    print(PrintableFormatter().format(record))

    def fails() -> None:
        raise UserError(text)

    monkeypatch.setattr(cli, "commands", lambda: fails)
    monkeypatch.setattr("sys.__stderr__", sys.stderr)
    with pytest.raises(SystemExit):
        cli.main()
    out, err = capsys.readouterr()
    assert out == 3 * f"{printable(text)}\n"
    assert err == 2 * f"{printable(text)}\n" + f"error: {printable(text)}\n"
    assert all(line.isprintable() for line in (out + err).split("\n"))


def test_what_is_printed_stays_as_it_is() -> None:
    for text in ("café 猫 🐈", "[/x] :cat:", "a\\b"):
        assert printable(text) == text


@pytest.mark.parametrize("text", HOSTILE[:-1])
def test_json_keeps_its_meaning(text: str) -> None:
    document = json.dumps({text: [text, "é"]}, indent=1, ensure_ascii=False)
    assert json.loads(printable_json(document)) == {text: [text, "é"]}
    assert all(line.isprintable() for line in printable_json(document).split("\n"))


def test_file_names_in_answers_and_refusals_are_escaped(bundle: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "\x1b[2Jgood.jpg", tmp_path / "\x9b2Jbad.jpg"
    good.write_bytes(photo(CLASSES["red"][0]))
    bad.write_bytes(b"text")
    for flags in ([], ["--json"]):
        result = CliRunner(env={"COLUMNS": "300"}).invoke(
            app, ["classify", str(bundle), str(good), str(bad), *flags]
        )
        assert result.exit_code == 1
        assert "good.jpg" in result.output
        assert "bad.jpg" in result.output
        assert all(line.isprintable() for line in result.output.split("\n"))
