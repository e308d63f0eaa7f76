"""A comparison of two models as a table, with the sentence under it."""

from collections.abc import Callable, Iterator
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from taillift.models.release.bundle_comparison import BundleComparison, ComparedGroup, SetScores
from taillift.models.terminal import PlainConsole, say

Cell = Callable[[ComparedGroup], str]

ROWS: Final[tuple[tuple[str, Cell], ...]] = (
    ("photos", lambda group: f"{group.photos:,}"),
    ("classes with photos", lambda group: f"{group.classes:,} of {group.of_classes:,}"),
    ("accuracy, old", lambda group: f"{group.old.accuracy:.1f}"),
    ("accuracy, new", lambda group: f"{group.new.accuracy:.1f}"),
    ("difference", lambda group: f"{group.difference:+.1f}"),
    ("  95 %", lambda group: interval(group)),
    ("gained, lost", lambda group: f"{group.gained:,}, {group.lost:,}"),
    ("  p (McNemar)", lambda group: f"{group.p_value:.2g}"),
    ("same answer, %", lambda group: f"{group.kept:.1f}"),
    ("error of confidence, old", lambda group: optional(group.old.confidence_error)),
    ("  new", lambda group: optional(group.new.confidence_error)),
    ("  new, old's temperatures", lambda group: optional(group.new_error_at_old_temperatures)),
    ("in 90 % sets; size, old", lambda group: sets(group.old.sets)),
    ("  new", lambda group: sets(group.new.sets)),
    ("  new, old's thresholds", lambda group: sets(group.new_sets_at_old_thresholds)),
    ("sent to review, %, old", lambda group: optional(group.old.review)),
    ("  new", lambda group: optional(group.new.review)),
    ("views, old, new", lambda group: f"{group.old.views:.2f}, {group.new.views:.2f}"),
)


def print_comparison(comparison: BundleComparison) -> None:
    """Print which models on which photos, the table, and the lines under it."""
    say(f"{comparison.old} -> {comparison.new}, on {comparison.data}")
    PlainConsole().print(comparison_table(comparison))
    for line in comparison_lines(comparison):
        say(line)


def comparison_table(comparison: BundleComparison) -> Table:
    """Return a table with a column for all photos and for each group that has photos."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("", no_wrap=True)
    for name in comparison.groups:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in comparison_rows(comparison):
        grid.add_row(*row)
    return grid


def comparison_rows(comparison: BundleComparison) -> list[list[str]]:
    """Return the rows of the table as text: a title, and a cell for each group."""
    return [[title, *map(cell, comparison.groups.values())] for title, cell in ROWS]


def comparison_lines(comparison: BundleComparison) -> Iterator[str]:
    """Yield the lines under the table: the classes that lose most, the cost, the verdict."""
    old, new = comparison.old, comparison.new
    yield from loss_lines(comparison)
    yield (
        f"size: {old.megabytes:.1f} -> {new.megabytes:.1f} MB; processor time of a view on one "
        f"thread: {old.milliseconds:.1f} -> {new.milliseconds:.1f} ms"
    )
    if comparison.copies:
        yield f"{comparison.copies:,} photos are copies of others and do not count"
    if comparison.unusable:
        yield f"{comparison.unusable:,} photos could not be used and do not count"
    yield comparison.sentence


def loss_lines(comparison: BundleComparison) -> Iterator[str]:
    """Yield the classes that lose most, if any do, and how many change beyond noise."""
    if comparison.losses:
        losses = ", ".join(
            f"{loss.label} ({loss.group}): {loss.gained} gained, {loss.lost} lost of {loss.photos}"
            for loss in comparison.losses
        )
        yield f"largest losses: {losses}"
    yield f"classes that change beyond noise (Holm): {comparison.changed_classes}"


def interval(group: ComparedGroup) -> str:
    """Write the 95 % interval of the difference, or that the photos are too few for one."""
    if group.low is None or group.high is None:
        return "too few"
    return f"{group.low:+.1f}, {group.high:+.1f}"


def optional(value: float | None) -> str:
    """Write a figure that may be absent."""
    return "-" if value is None else f"{value:.1f}"


def sets(scores: SetScores | None) -> str:
    """Write the coverage and mean size of prediction sets, if the bundle has any."""
    return "-" if scores is None else f"{scores.coverage:.1f}, {scores.size:.2f}"
