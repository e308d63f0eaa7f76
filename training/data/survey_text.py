"""A survey of a set of photos as text for a terminal, 80 columns wide."""

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from taillift.models.bundle.schema import GROUPS
from taillift.training.data.photo import SPLITS
from taillift.training.data.survey import QUANTILES, Finding, Survey

WIDTH: Final = 80
# Of more classes than twice this, only so many of the most and of the least frequent are shown.
SHOWN_CLASSES: Final = 20
SHOWN_NAMES: Final = 10
LABEL_WIDTH: Final = 30
PROMPT_WIDTH: Final = 19


def survey_text(made: Survey) -> str:
    """Return everything in a survey as lines of no more than `WIDTH` columns."""
    lines = [f"{made.source}: {made.layout or 'not read'}"]
    lines += _section("Training would refuse this set", made.refusals)
    lines += _section("Not used", map(_finding, made.unused))
    lines += _section("Warnings", made.warnings)
    if made.splits:
        lines += ["", *_photos(made), *_classes(made)]
    lines += _section("The same prompt", _same_prompts(made))
    lines += _section("Prompts that are cut", _first_names(made.cut_prompts))
    lines += _section("Copies", map(_finding, made.duplicates))
    lines += _section("Photos that cannot be used", map(_finding, made.unreadable))
    if made.splits and not made.refusals:
        lines += ["", "Training would take this set."]
    return "\n".join(wrapped for line in lines for wrapped in _wrapped(_escaped(line)))


def _photos(made: Survey) -> Iterator[str]:
    yield f"{'split':12}{'photos':>9}{'readable':>10}"
    for name, split in made.splits.items():
        yield f"{name:12}{split.photos:>9,}{split.readable:>10,}"
    for one in made.added:
        yield f"{'added':12}{one.photos:>9,}{one.readable:>10,}{one.added:>10,} new: {one.source}"
    if pool := made.unlabelled:
        yield f"{'unlabelled':12}{pool.photos:>9,}{pool.readable:>10,}{pool.usable:>10,} of use"
    yield ""
    yield f"Formats: {_counted(made.formats)}"
    yield f"Colour profiles: {_counted(made.profiles)}"
    if made.short_sides:
        yield ""
        heads = "".join(f"{_quantile(one):>9}" for one in QUANTILES)
        yield f"{'sides in pixels':17}{heads}"
        for name, sides in (("shorter", made.short_sides), ("longer", made.long_sides)):
            yield f"{name:17}" + "".join(f"{side:>9,}" for side in sides)


def _classes(made: Survey) -> Iterator[str]:
    yield ""
    yield f"{'group':12}{'classes':>9}{'training photos':>17}"
    for group in GROUPS:
        size = made.groups[group]
        yield f"{group:12}{size.classes:>9,}{size.photos:>17,}"
    yield ""
    heads = "".join(f"{name:>7}" for name in SPLITS)
    yield f"{'class':{LABEL_WIDTH}} {'group':7}{heads}  prompt"
    left_out = len(made.classes) - 2 * SHOWN_CLASSES
    for place, one in enumerate(made.classes):
        if left_out > 0 and SHOWN_CLASSES <= place < SHOWN_CLASSES + left_out:
            if place == SHOWN_CLASSES:
                yield f"... {left_out:,} more classes (all with --json) ..."
            continue
        counts = "".join(f"{count:>7,}" for count in (one.train, one.val, one.test))
        label = _fitted(one.label, LABEL_WIDTH)
        prompt = _fitted(one.prompt, PROMPT_WIDTH).rstrip()
        yield f"{label} {one.group or 'none':7}{counts}  {prompt}"


def _same_prompts(made: Survey) -> Iterator[str]:
    for pair in made.same_prompts[:SHOWN_NAMES]:
        (one, other), (name, other_name) = pair.classes, pair.names
        yield f"{one!r} and {other!r} ({name!r} and {other_name!r})"
    if (more := len(made.same_prompts) - SHOWN_NAMES) > 0:
        yield f"{more:,} more pairs (all with --json)"


def _first_names(names: list[str]) -> list[str]:
    more = [f"{len(names) - SHOWN_NAMES:,} more"] if len(names) > SHOWN_NAMES else []
    return names[:SHOWN_NAMES] + more


def _section(title: str, lines: Iterable[str]) -> list[str]:
    items = [f"- {line}" for line in lines]
    return ["", f"{title}:", *items] if items else []


def _finding(one: Finding) -> str:
    where = f"{one.where}: " if one.where else ""
    return f"{where}{one.count:,} {one.words}, such as {one.example}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _quantile(percent: int) -> str:
    return {0: "smallest", 50: "median", 100: "largest"}.get(percent, f"{percent} %")


def _fitted(text: str, width: int) -> str:
    """Return the text in exactly `width` columns, cut with dots if it is longer."""
    text = _escaped(text)
    if cell_len(text) > width:
        text = set_cell_size(text, width - 3).rstrip() + "..."
    return set_cell_size(text, width)


def _escaped(text: str) -> str:
    """Return the text with control characters escaped, which could change the terminal."""
    return "".join(
        letter
        if letter.isprintable()
        else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


def _wrapped(line: str) -> list[str]:
    """Return a line in parts of no more than `WIDTH` columns; wide letters take two of them."""
    mark = "- " if line.startswith("- ") else ""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    parts = Text(line.removeprefix(mark)).wrap(console, WIDTH - len(mark))
    texts = [part.plain.rstrip() for part in parts] or [""]
    return [mark + texts[0], *(" " * len(mark) + text for text in texts[1:])]
