"""Figures for reports and for the README."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from taillift.models.bundle.arrays import Indices
from taillift.models.bundle.calibration_error import QUANTILE_95, ScoredPredictions, bins
from taillift.models.bundle.manifest import Accuracy
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.reliability import change
from taillift.training.calibration.temperature import BeforeAndAfter
from taillift.training.report.html import change as format_change

# Those of the service's page; white figures on them have a contrast of at least 4.5.
COLOURS: Final[dict[Group, str]] = {"many": "#2f6cb8", "medium": "#1f7f74", "few": "#a9560b"}
# Of the reliability diagram.
BEFORE: Final = "#777777"
OVERALL: Final = "black"
# In inches.
WIDEST: Final = 24.0
MOST_NAMES: Final = 70
# A longer name is cut, so that the names leave room for the figure.
LONGEST_NAME: Final = 28
# Classes in the confusion picture, and up to how many of them its cells have figures.
MOST_CONFUSED, MOST_FIGURES = 40, 22
# Axis labels need so much of a logarithmic axis' length between them.
LABEL_GAP: Final = 0.09
# The least accuracy in per cent whose bar has room for its figure.
SHORT_BAR: Final = 8.0
# Up to this number of classes each has a mark of its own along the tail; more are averaged.
MOST_MARKS: Final = 32
# From a point to the middle of its label's left edge.
LEADER_LINE: Final = {"arrowstyle": "-", "lw": 0.4, "alpha": 0.6, "relpos": (0, 0.5), "shrinkA": 0}

mpl.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "figure.dpi": 150,
        # A dollar sign in a class's name does not start a formula.
        "text.parse_math": False,
    }
)


@dataclass(frozen=True)
class Bar:
    """Mean and standard deviation over seeds of an accuracy in per cent; NaN if unknown."""

    mean: float
    deviation: float = 0.0


@dataclass(frozen=True)
class Style:
    """The colour and the shape of a mark, as matplotlib names them."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Point:
    """A recipe in the plane of trainable parameters and accuracy in per cent."""

    label: str
    parameters: int
    accuracy: float
    deviation: float
    style: Style


@dataclass(frozen=True)
class Tail:
    """The accuracies in per cent of a recipe by class, NaN for a class without photos."""

    label: str
    rates: Sequence[float]
    style: Style


@dataclass(frozen=True)
class TauCurve:
    """The few-shot and mean-class accuracies in per cent of one model, by tau."""

    label: str
    taus: Sequence[float]
    few: Sequence[float]
    mean_class: Sequence[float]


def draw_class_accuracies(
    path: Path,
    classes: Sequence[str],
    counts: Sequence[int],
    groups: Sequence[Group],
    accuracies: Sequence[Accuracy | None],
) -> None:
    """Draw each class's accuracy with five views below its number of training photos.

    The classes are in order of frequency.
    """
    width = min(WIDEST, max(6, 0.35 * len(classes)))
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.4])
    draw_counts(above, counts, groups)
    heights = [accuracy.full if accuracy else math.nan for accuracy in accuracies]
    draw_class_bars(below, heights, groups)
    below.set(ylim=(0, 100), title="accuracy with five views, %")
    name_classes(below, classes)
    figure.savefig(path, format="png")


def draw_tau(path: Path, curves: Sequence[TauCurve]) -> None:
    """Draw mean-class against few-shot accuracy, a curve for each model along which tau moves.

    Small marks are the taus that were measured, and a large one is tau = 1. A single curve has its
    taus written next to them.
    """
    alone = len(curves) == 1
    figure = Figure(figsize=(6 if alone else 8, 4.4), layout="constrained")
    axes = figure.subplots()
    colours = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for number, curve in enumerate(curves):
        # After ten curves the colours come again, with dashes.
        style = {"color": colours[number % len(colours)], "lw": 1.2}
        style["ls"] = ("-", "--", ":")[number // len(colours) % 3]
        axes.plot(curve.few, curve.mean_class, marker=".", ms=5, label=curve.label, **style)
        for tau, few, accuracy in zip(curve.taus, curve.few, curve.mean_class, strict=True):
            if tau == 1:
                axes.plot(few, accuracy, "o", ms=8, color=style["color"])
            if alone:
                text = f"{tau:g}"
                axes.annotate(text, (few, accuracy), (5, 5), textcoords="offset points", fontsize=7)
    axes.set(xlabel="accuracy of few-shot classes, %", title="mean-class accuracy, %")
    axes.margins(0.08)
    axes.grid(alpha=0.25, lw=0.6)
    if not alone:
        figure.legend(loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, format="png")


def draw_groups(
    path: Path, recipes: Mapping[str, Mapping[Group, Bar]], overall: Mapping[str, float]
) -> None:
    """Draw each recipe's accuracy by group as a block of bars, with a black tick for `overall`."""
    groups = [
        group
        for group in GROUPS
        if any(not math.isnan(bars[group].mean) for bars in recipes.values())
    ]
    figure = Figure(figsize=(8, 0.9 + (0.19 * len(groups) + 0.13) * len(recipes)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    height = 0.82 / len(groups)
    for index, group in enumerate(groups):
        bars = [by_group[group] for by_group in recipes.values()]
        offset = (index - (len(groups) - 1) / 2) * height
        spots = [block + offset for block in range(len(bars))]
        axes.barh(spots, [bar.mean for bar in bars], height * 0.9, color=COLOURS[group])
        for spot, bar in zip(spots, bars, strict=True):
            if not math.isnan(bar.mean):
                write_bar(axes, bar, spot)
    for index, value in enumerate(overall.values()):
        axes.plot([value] * 2, [index - 0.43, index + 0.43], color="black", lw=1.4)
    axes.set(xlim=(0, 100), ylim=(len(recipes) - 0.45, -0.55))
    axes.set_yticks(range(len(recipes)), list(recipes))
    axes.tick_params(axis="y", length=0)
    axes.set_title("accuracy by group with five views, %")
    handles: list[Artist] = [
        mpl.patches.Patch(color=COLOURS[group], label=group) for group in groups
    ]
    handles.append(Line2D([], [], color="black", lw=1.4, label="mean over all classes"))
    # Below the axes, so that no bar can reach it.
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8
    )
    figure.savefig(path, format="png")


def write_bar(axes: Axes, bar: Bar, spot: float) -> None:
    """Draw the deviation at a bar's end, and write its figure where the bar begins.

    A bar too short for its figure has it behind its end, in front of whatever else is there.
    """
    if bar.deviation:
        axes.plot([bar.mean - bar.deviation, bar.mean + bar.deviation], [spot] * 2, "k-", lw=0.8)
    long = bar.mean - bar.deviation > SHORT_BAR
    axes.annotate(
        f"{bar.mean:.1f}",
        (0 if long else bar.mean + bar.deviation, spot),
        (4, -0.5),
        textcoords="offset points",
        color="white" if long else "black",
        fontsize=7,
        va="center",
        bbox=None if long else {"fc": "white", "ec": "none", "pad": 0.6},
        zorder=5,
    )


def draw_parameters(path: Path, panels: Mapping[str, Sequence[Point]]) -> None:
    """Draw accuracy against trainable parameters, one panel for each measure.

    Recipes that train nothing are at the left edge. The labels are in a column at the right.
    """
    most = max(len(points) for points in panels.values())
    figure = Figure(figsize=(6 * len(panels), max(4.4, 1 + 0.16 * most)), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, points) in zip(row, panels.items(), strict=True):
        trained = [point.parameters for point in points if point.parameters]
        left = min(trained, default=10) / 6
        points = sorted(points, key=lambda point: point.accuracy)
        spots = [(point.parameters or left, point.accuracy) for point in points]
        for spot, point in zip(spots, points, strict=True):
            style = {"fmt": point.style.shape, "color": point.style.colour, "ms": 6}
            axes.errorbar(*spot, point.deviation, elinewidth=1, **style)
        axes.set(xscale="log", title=title, xlabel="trainable parameters")
        axes.set_xlim(left / 2, max(trained, default=10) * 2)
        axes.margins(y=0.12)
        start, end = np.log10(axes.get_xlim())
        gap = LABEL_GAP * (end - start)
        step = max(1, math.ceil(gap))
        powers = range(math.ceil(math.log10(left) + gap), math.floor(end) + 1, step)
        axes.set_xticks([left, *(10.0**power for power in powers)])
        axes.set_xticklabels(["none", *(f"$10^{power}$" for power in powers)], parse_math=True)
        axes.minorticks_off()
        axes.grid(alpha=0.25, lw=0.6)
        low, high = axes.get_ylim()
        heights = spread([(point.accuracy - low) / (high - low) for point in points])
        for spot, point, height in zip(spots, points, heights, strict=True):
            axes.annotate(
                point.label,
                spot,
                (1.02, height),
                textcoords="axes fraction",
                fontsize=7.5,
                va="center",
                arrowprops={**LEADER_LINE, "color": point.style.colour},
            )
    figure.savefig(path, format="png")


def spread(heights: Sequence[float], gap: float = 0.05) -> list[float]:
    """Move rising heights, as shares of an axis, apart until `gap` is between all of them."""
    gap = min(gap, 1 / len(heights))
    apart: list[float] = []
    for height in heights:
        apart.append(max([height, *(below + gap for below in apart[-1:])]))
    for index in range(len(apart) - 1, -1, -1):
        room = 1 - gap * (len(apart) - 1 - index)
        apart[index] = min(apart[index], room)
    return apart


def draw_tail(
    path: Path,
    recipes: Sequence[Tail],
    names: Sequence[str],
    counts: Sequence[int],
    groups: Sequence[Group],
) -> None:
    """Draw each recipe's accuracy by class below the number of training photos.

    The classes are in order of frequency. If there are many, the means of neighbours in one group
    are drawn. Classes are unrelated to each other, so no line joins them.
    """
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3.2])
    draw_counts(above, counts, groups)
    bins = list(neighbours(groups))
    centres = [float(np.mean(indices)) for indices in bins]
    distance = len(names) / len(bins)
    for number, recipe in enumerate(recipes):
        heights = []
        for indices in bins:
            known = [rate for rate in (recipe.rates[i] for i in indices) if not math.isnan(rate)]
            heights.append(sum(known) / len(known) if known else math.nan)
        # Next to each other, so that no mark hides another of the same accuracy.
        shift = (number - (len(recipes) - 1) / 2) * 0.2 * distance
        style = {"color": recipe.style.colour, "marker": recipe.style.shape, "label": recipe.label}
        below.plot([centre + shift for centre in centres], heights, ls="", ms=5, **style)
    size = max(len(indices) for indices in bins)
    measure = (
        "accuracy by class" if size == 1 else f"mean accuracy of up to {size} neighbouring classes"
    )
    # Room above 100 for the legend.
    below.set(ylim=(-2, 114), yticks=range(0, 101, 20), xlim=(-0.6, len(names) - 0.4))
    below.set_title(f"{measure}, five views, %")
    below.legend(frameon=False, fontsize=8, ncols=len(recipes), loc="upper right")
    for group, start, stop in group_spans(groups):
        below.axvspan(start - 0.5, stop - 0.5, color=COLOURS[group], alpha=0.07, lw=0)
    if size == 1:
        name_classes(below, names)
    else:
        below.set_xlabel("classes, most training photos first")
    figure.savefig(path, format="png")


def neighbours(groups: Sequence[Group]) -> Iterator[list[int]]:
    """Yield the indices of the classes that share a mark: nearly equally many, of one group.

    `groups` are in order of frequency, so that each group is contiguous.
    """
    most = math.ceil(len(groups) / MOST_MARKS)
    for _, start, stop in group_spans(groups):
        for part in np.array_split(range(start, stop), math.ceil((stop - start) / most)):
            yield part.tolist()


def group_spans(groups: Sequence[Group]) -> Iterator[tuple[Group, int, int]]:
    """Yield the start and stop of each group among classes in order of frequency."""
    start = 0
    for group, members in groupby(groups):
        stop = start + len(list(members))
        yield group, start, stop
        start = stop


def draw_class_bars(axes: Axes, heights: Sequence[float], groups: Sequence[Group]) -> None:
    """Draw a bar for each class, or one outline a group if there are too many to tell apart."""
    if len(heights) <= MOST_NAMES:
        axes.bar(range(len(heights)), heights, color=[COLOURS[group] for group in groups])
        return
    # Far fewer shapes, which draw faster.
    for group, start, stop in group_spans(groups):
        edges = np.arange(start, stop + 1) - 0.5
        axes.stairs(heights[start:stop], edges, baseline=1e-9, fill=True, color=COLOURS[group])


def draw_counts(axes: Axes, counts: Sequence[int], groups: Sequence[Group]) -> None:
    """Draw the number of training photos of each class, with a legend of the groups."""
    draw_class_bars(axes, counts, groups)
    # The lower limit is below 1, so that the bar of a single photo can be seen.
    axes.set(yscale="log", ylim=(0.7, 1.4 * max(counts)), title="training photos")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    handles = [
        mpl.patches.Patch(color=COLOURS[group], label=group) for group in GROUPS if group in groups
    ]
    legend = axes.legend(handles=handles, frameon=False, fontsize=8, ncols=3, loc="lower right")
    # Above the axes, so that no bar can reach it.
    legend.set_bbox_to_anchor((1, 1))


def name_classes(axes: Axes, names: Sequence[str]) -> None:
    """Name the classes below the axis, leaving some out if there are too many to be read."""
    step = -(-len(names) // MOST_NAMES)
    shown = [cut(name) for name in names[::step]]
    ticks = range(0, len(names), step)
    axes.set_xticks(ticks, shown, rotation=60, ha="right", rotation_mode="anchor")


def cut(name: str) -> str:
    """Return the name, cut if it is too long for a figure."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def draw_confusion(
    path: Path, classes: Sequence[str], groups: Sequence[Group], confusion: Indices
) -> int:
    """Draw how the photos of each class, in a row, were answered, and return how many classes.

    `confusion` [C, C] counts the photos by true and predicted class. Among many classes, those with
    the most mistakes are drawn, in order of frequency as all are.
    """
    totals = confusion.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = np.where(totals > 0, 100 * confusion / totals, np.nan)
    mistakes = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diagonal()
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CONFUSED])
    shares = shares[np.ix_(shown, shown)]
    side = 2.2 + max(3.2, 0.27 * len(shown))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    colours = mpl.colors.LinearSegmentedColormap.from_list(
        "shares", ["#ffffff", "#17365d"]
    ).with_extremes(bad="#dddddd")
    axes.imshow(shares, cmap=colours, vmin=0, vmax=100)
    if len(shown) <= MOST_FIGURES:
        for row, column in np.argwhere(shares >= 0.5).tolist():
            share = shares[row, column]
            text = axes.text(column, row, f"{share:.0f}", fontsize=6.5, ha="center", va="center")
            text.set_color("white" if share > 45 else "black")
    name_classes(axes, [classes[index] for index in shown])
    axes.set_yticks(range(len(shown)), [cut(classes[index]) for index in shown])
    axes.tick_params(length=0)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for tick, index in zip(ticks, shown, strict=True):
            tick.set_color(COLOURS[groups[index]])
    for start in [start for _, start, _ in group_spans([groups[index] for index in shown])][1:]:
        axes.axhline(start - 0.5, color="#777777", lw=0.6)
        axes.axvline(start - 0.5, color="#777777", lw=0.6)
    axes.set(title="photos of a class, %", xlabel="answered as", ylabel="is")
    figure.savefig(path, format="png")
    return len(shown)


def draw_reliability(path: Path, ensembles: BeforeAndAfter) -> None:
    """Draw a row of panels for each ensemble (before, after): overall and by group of the answers.

    A mark is the mean of a bin. Its line is what chance alone may do to its accuracy 9 times of 10.
    `noise` is the error that perfect confidence stays under 19 times of 20.
    """
    answered = np.unique(np.concatenate([before.groups for before, _ in ensembles.values()]))
    columns = 1 + len(answered)
    size = 0.3 + 2.52 * columns, 0.7 + 2.95 * len(ensembles)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(ensembles), columns, sharex=True, sharey=True, squeeze=False)
    for row, (name, (before, after)) in zip(panels, ensembles.items(), strict=True):
        draw_panel(row[0], f"{name}: overall", before, after, OVERALL)
        for index, axes in zip(answered.tolist(), row[1:], strict=True):
            parts = before.of_group(index), after.of_group(index)
            draw_panel(axes, f"answered {GROUPS[index]}", *parts, COLOURS[GROUPS[index]])
        row[0].set_ylabel("right, %")
    for axes in panels[-1]:
        axes.set_xlabel("confidence, %")
    if changed_by_calibration(ensembles):
        handles = [
            Line2D([], [], color=BEFORE, marker="o", mfc="white", ls="--", label="temperature 1"),
            Line2D([], [], color=OVERALL, marker="o", label="calibrated"),
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8
        )
    figure.savefig(path, format="png")


def changed_by_calibration(ensembles: BeforeAndAfter) -> bool:
    """Return whether any confidence is another one after calibration."""
    return any(
        not np.array_equal(before.confidence, after.confidence)
        for before, after in ensembles.values()
    )


def draw_panel(
    axes: Axes, title: str, before: ScoredPredictions, after: ScoredPredictions, colour: str
) -> None:
    """Draw accuracy over confidence before and after calibration."""
    axes.plot([0, 100], [0, 100], color="#cccccc", lw=1, zorder=0)
    for predictions, shade, style, fill in (
        (before, BEFORE, "o--", "white"),
        (after, colour, "o-", colour),
    ):
        marks = bins(predictions)
        confidences = [100 * mark.confidence for mark in marks]
        accuracies = [100 * mark.accuracy for mark in marks]
        axes.plot(confidences, accuracies, style, color=shade, mfc=fill, ms=3.5, lw=1.2)
    for mark in bins(after):
        chance = QUANTILE_95 * mark.noise**0.5
        ends = [100 * (mark.accuracy - chance), 100 * (mark.accuracy + chance)]
        axes.plot([100 * mark.confidence] * 2, ends, color=colour, lw=0.7)
    axes.set(xlim=(0, 100), ylim=(0, 102), aspect="equal")
    axes.set(xticks=range(0, 101, 25), yticks=range(0, 101, 25))
    error = change(before, after)
    caption = f"{title}\n{error.photos:,} photos"
    if error.before is None or error.after is None:
        caption += ", too few for the error\n"
    else:
        errors = format_change(error.before, error.after)
        caption += f", noise {error.resolution:.1f}\nerror {errors} points"
    # Above the axes, so that no mark can reach it.
    axes.set_title(caption, fontsize=8)
