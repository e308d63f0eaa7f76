"""Text from elsewhere on a terminal or in a log: labels, file names, messages of libraries.

It may hold line ends that forge a line, or escape sequences that change the terminal. The options
that commands of training and of the service share are here, too.
"""

import json
import logging
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

MaxPixels = Annotated[
    int, typer.Option(min=1, help="Number of pixels beyond which a photo is not used.")
]


def printable(text: str) -> str:
    """Return `text` with every character escaped that is not printed as itself."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def printable_lines(text: str) -> str:
    """Return `text` with every character escaped but those that are printed and line feeds."""
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    """Return a JSON document with the same meaning in which every character can be printed."""
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in text
    )


def say(text: str, err: bool = False) -> None:
    """Print lines on standard output, or with `err` on standard error."""
    typer.echo(printable_lines(text), err=err)


class PrintableFormatter(logging.Formatter):
    """Formatter of one printable line per record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


class PlainConsole(Console):
    """rich's console, for which "[/x]" is not markup, ":x:" no emoji, and an escape no command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable_lines(text), **options)
