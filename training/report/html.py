"""Tables, lists and figures of a page, as HTML; every text is escaped here."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Final

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.schema import Precision

UNKNOWN: Final = "\N{EN DASH}"
# As a request asks for them.
TITLES: Final[dict[Ensemble, str]] = {
    Ensemble.OFF: "off, one view",
    Ensemble.FULL: "full, five views",
    Ensemble.ADAPTIVE: "adaptive",
}


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    """The first `words` cells of a row are words, the others figures.

    Words that stand in the row above, too, are left out.
    """
    above: Sequence[str] = ()
    lines = []
    for row in rows:
        same = _shared(above[:words], row[:words])
        cells = ["" if place < same else cell for place, cell in enumerate(row)]
        lines.append(_row(cells, words, inner=same > 0))
        above = row
    head = "".join(
        f"<th{' class=n' if place >= words else ''}>{escape(name)}</th>"
        for place, name in enumerate(heads)
    )
    return (
        f"<div class=wide tabindex=0><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def facts(pairs: Mapping[str, str]) -> str:
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs.items())
    return f"<dl>{''.join(rows)}</dl>"


def bullets(lines: Iterable[str], kind: str = "note") -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul class={kind}>{items}</ul>" if items else ""


def notes(every: Mapping[Precision, Sequence[str]], kind: str = "note") -> str:
    """Of each variant; what several say is said once."""
    lines = [(note, precision) for precision, found in every.items() for note in found]
    order = {note: place for place, (note, _) in reversed([*enumerate(lines)])}
    lines.sort(key=lambda one: order[one[0]])
    said = ((note, [one for _, one in of]) for note, of in groupby(lines, key=lambda one: one[0]))
    return bullets(
        (note if len(who) == len(every) else f"{', '.join(who)}: {note}" for note, who in said),
        kind,
    )


def figure(path: Path, text: str) -> str:
    """The picture itself, in the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def number(value: float | None, digits: int = 1) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return UNKNOWN
    return f"{before:.1f} \N{RIGHTWARDS ARROW} {after:.1f}"


def _shared(above: Sequence[str], row: Sequence[str]) -> int:
    for place, (one, other) in enumerate(zip(above, row, strict=False)):
        if one != other:
            return place
    return min(len(above), len(row))


def _row(cells: Sequence[str], words: int, inner: bool) -> str:
    every = "".join(
        f"<td{' class=n' if place >= words else ''}>{escape(cell)}</td>"
        for place, cell in enumerate(cells)
    )
    return f"<tr{' class=inner' if inner else ''}>{every}</tr>"
