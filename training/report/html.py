"""HTML pages from the templates, and the formats of their tables, notes and numbers."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from taillift.models.bundle.schema import Precision

UNKNOWN: Final = "\N{EN DASH}"
# Labels and titles are anybody's text, so that every value is escaped.
TEMPLATES: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["thousands"] = "{:,}".format


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `words` columns hold words, the others figures."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int


def render(template: str, **values: object) -> str:
    """Return the page that a template makes from `values`."""
    return TEMPLATES.get_template(template).render(values) + "\n"


def embedded(path: Path) -> str:
    """Return a PNG file as a URL that holds the picture itself."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def without_repeats(rows: Iterable[Sequence[str]], words: int) -> list[list[str]]:
    """Blank the words at the start of each row that are those of the row above."""
    shown: list[list[str]] = []
    above: Sequence[str] | None = None
    for row in rows:
        same = 0
        while above and same < words and row[same] == above[same]:
            same += 1
        shown.append([*[""] * same, *row[same:]])
        above = row
    return shown


def merged_notes(notes: Mapping[Precision, Sequence[str]]) -> list[str]:
    """Return each note once, with the variants' names in front unless all of them have it."""
    variants: dict[str, list[Precision]] = {}
    for precision, lines in notes.items():
        for line in lines:
            variants.setdefault(line, []).append(precision)
    return [
        line if len(having) == len(notes) else f"{', '.join(having)}: {line}"
        for line, having in variants.items()
    ]


def number(value: float | None, digits: int = 1) -> str:
    """Format a figure; a dash stands for one that is not known."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def change(before: float | None, after: float | None) -> str:
    """Format a figure before and after calibration; once, if calibration leaves it as it is."""
    if before is None or after is None:
        return UNKNOWN
    if before == after:
        return number(before)
    return f"{before:.1f} \N{RIGHTWARDS ARROW} {after:.1f}"
