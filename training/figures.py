"""Figures for reports and for the README."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.bundle.manifest import GROUPS, Accuracy, Group, Scores, Thresholds

COLOURS: Final[dict[Group, str]] = {"many": "#4477aa", "medium": "#228833", "few": "#ee6677"}
GREY: Final = "#bbbbbb"
WIDEST: Final = 24.0
MOST_NAMES: Final = 70

mpl.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "figure.dpi": 150,
        # A dollar sign in a class's name is one.
        "text.parse_math": False,
    }
)


def draw_class_accuracies(
    path: Path,
    classes: Sequence[str],
    counts: Sequence[int],
    accuracies: Sequence[Accuracy | None],
) -> None:
    """Accuracy of each class with five views, in frequency order, over its training photos."""
    width = min(WIDEST, max(6, 0.35 * len(classes)))
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.4])
    groups = [Thresholds().group(count) for count in counts]
    colours = [COLOURS[group] for group in groups]
    above.bar(range(len(classes)), counts, color=colours)
    above.set(yscale="log", title="training photos")
    above.yaxis.set_major_formatter("{x:g}")
    heights = [accuracy.full if accuracy else math.nan for accuracy in accuracies]
    below.bar(range(len(classes)), heights, color=colours)
    below.set(ylim=(0, 100), title="accuracy with five views, %")
    _name_classes(below, classes)
    _legend(above)
    figure.savefig(path)


def draw_comparison(
    path: Path,
    results: Mapping[str, Scores],
    classes: Mapping[str, Sequence[float]],
    names: Sequence[str],
    counts: Sequence[int],
) -> None:
    """Left: accuracy of each method by group. Right: by class, most training photos first."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.5])
    _draw_groups(left, results)
    _draw_classes(right, classes, names, counts)
    figure.savefig(path)


def _draw_groups(axes: Axes, results: Mapping[str, Scores]) -> None:
    width = 0.8 / len(GROUPS)
    for place, group in enumerate(GROUPS):
        heights = [_or_nan(getattr(one, group)) for one in results.values()]
        spots = [index + (place - 1) * width for index in range(len(results))]
        bars = axes.bar(spots, heights, width * 0.92, color=COLOURS[group])
        axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
    for index, one in enumerate(results.values()):
        axes.plot([index - 0.42, index + 0.42], [one.mean_class] * 2, color="black", lw=1.2)
    axes.set(ylim=(0, 100), title="accuracy by group, %  (black: mean over classes)")
    axes.set_xticks(range(len(results)), list(results))
    _legend(axes)


def _draw_classes(
    axes: Axes,
    classes: Mapping[str, Sequence[float]],
    names: Sequence[str],
    counts: Sequence[int],
) -> None:
    shades = [GREY, "#ccbb44", "#aa3377", "#222222"]
    for shade, (method, rates) in zip(shades[-len(classes) :], classes.items(), strict=True):
        axes.plot(range(len(names)), rates, "o-", color=shade, lw=1.2, ms=4, label=method)
    labels = [f"{name} ({count})" for name, count in zip(names, counts, strict=True)]
    # Room above 100 for the legend.
    axes.set(ylim=(0, 116), yticks=range(0, 101, 20))
    axes.set_title("accuracy by class, %  (training photos)")
    _name_classes(axes, labels)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper right")


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    """One tick a class, as far as a reader can tell them apart."""
    step = -(-len(names) // MOST_NAMES)
    places = range(0, len(names), step)
    axes.set_xticks(places, names[::step], rotation=60, ha="right", rotation_mode="anchor")


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _legend(axes: Axes) -> None:
    handles = [mpl.patches.Patch(color=colour, label=group) for group, colour in COLOURS.items()]
    axes.legend(handles=handles, frameon=False, fontsize=8, ncols=3, loc="upper right")
