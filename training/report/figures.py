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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from taillift.models.bundle.manifest import Accuracy
from taillift.models.bundle.schema import GROUPS, Group

COLOURS: Final[dict[Group, str]] = {"many": "#4477aa", "medium": "#228833", "few": "#ee6677"}
SHADES: Final = ("#999999", "#0077bb", "#cc3311", "#aa3377", "#ccbb44")
WIDEST: Final = 24.0
MOST_NAMES: Final = 70
# Accuracy below which a bar has no room for its figure.
SHORT_BAR: Final = 8.0
# Up to so many classes each has its own mark along the tail; more are averaged.
MOST_MARKS: Final = 32

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


@dataclass(frozen=True)
class Bar:
    """Mean over seeds and standard deviation of an accuracy in per cent; NaN where unknown."""

    mean: float
    deviation: float = 0.0


@dataclass(frozen=True)
class Point:
    """A recipe in the plane of trainable parameters and accuracy in per cent."""

    label: str
    parameters: int
    accuracy: float
    deviation: float
    colour: str


def draw_class_accuracies(
    path: Path,
    classes: Sequence[str],
    counts: Sequence[int],
    groups: Sequence[Group],
    accuracies: Sequence[Accuracy | None],
) -> None:
    """Accuracy of each class with five views, in frequency order, over its training photos."""
    width = min(WIDEST, max(6, 0.35 * len(classes)))
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.4])
    _draw_counts(above, counts, groups)
    _draw_bars(below, [one.full if one else math.nan for one in accuracies], groups)
    below.set(ylim=(0, 100), title="accuracy with five views, %")
    _name_classes(below, classes)
    _legend(above)
    figure.savefig(path, format="png")


def draw_groups(
    path: Path, recipes: Mapping[str, Mapping[Group, Bar]], overall: Mapping[str, float]
) -> None:
    """Accuracy of each recipe by group, a block of bars a recipe; `overall` is a black tick."""
    groups = [
        group
        for group in GROUPS
        if any(not math.isnan(bars[group].mean) for bars in recipes.values())
    ]
    figure = Figure(figsize=(8, 0.9 + (0.19 * len(groups) + 0.13) * len(recipes)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    height = 0.82 / len(groups)
    for place, group in enumerate(groups):
        bars = [one[group] for one in recipes.values()]
        spots = [index + (place - (len(groups) - 1) / 2) * height for index in range(len(bars))]
        axes.barh(spots, [bar.mean for bar in bars], height * 0.9, color=COLOURS[group])
        for spot, bar in zip(spots, bars, strict=True):
            if not math.isnan(bar.mean):
                _write_bar(axes, bar, spot)
    for index, value in enumerate(overall.values()):
        axes.plot([value] * 2, [index - 0.43, index + 0.43], color="black", lw=1.4)
    axes.set(xlim=(0, 100), ylim=(len(recipes) - 0.45, -0.55))
    axes.set_yticks(range(len(recipes)), list(recipes))
    axes.tick_params(axis="y", length=0)
    # Below all bars, whatever their length.
    handles: list[Artist] = [
        mpl.patches.Patch(color=COLOURS[group], label=group) for group in groups
    ]
    handles.append(Line2D([], [], color="black", lw=1.4, label="mean over all classes"))
    axes.set_title("accuracy by group with five views, %")
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8
    )
    figure.savefig(path, format="png")


def draw_parameters(path: Path, panels: Mapping[str, Sequence[Point]]) -> None:
    """A panel a measure: accuracy against trainable parameters; none at all at the left edge."""
    figure = Figure(figsize=(5.4 * len(panels), 4.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, points) in zip(every, panels.items(), strict=True):
        _draw_points(axes, title, points)
    canvas.draw()  # type: ignore[no-untyped-call]
    # What is placed by pixels is placed once the axes have their size.
    figure.set_layout_engine("none")
    for axes, points in zip(every, panels.values(), strict=True):
        _label_points(axes, canvas, points)
    figure.savefig(path, format="png")


def draw_tail(
    path: Path,
    recipes: Mapping[str, Sequence[float]],
    names: Sequence[str],
    counts: Sequence[int],
    groups: Sequence[Group],
) -> None:
    """Accuracy of each recipe by class, most training photos first, below the photos' number.

    `recipes` have one accuracy in per cent a class, NaN where there is no photo. Of many classes,
    the mean of neighbours in one group is drawn.
    """
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3.2])
    _draw_counts(above, counts, groups)
    bins = list(neighbours(groups))
    centres = [float(np.mean(one)) for one in bins]
    for shade, (title, rates) in zip(SHADES, recipes.items(), strict=False):
        heights = [_mean([rates[index] for index in one]) for one in bins]
        below.plot(centres, heights, "o-", color=shade, lw=1.6, ms=4.5, label=title)
    each = all(len(one) == 1 for one in bins)
    size = max(len(one) for one in bins)
    what = "accuracy by class" if each else f"mean accuracy of up to {size} neighbouring classes"
    # Room above 100 for the legend.
    below.set(ylim=(-2, 114), yticks=range(0, 101, 20), xlim=(-0.6, len(names) - 0.4))
    below.set_title(f"{what}, five views, %")
    below.legend(frameon=False, fontsize=8, ncols=len(recipes), loc="upper right")
    _shade_groups(below, groups)
    if each:
        _name_classes(below, names)
    else:
        below.set_xlabel("classes, most training photos first")
    _legend(above)
    figure.savefig(path, format="png")


def neighbours(groups: Sequence[Group]) -> Iterator[list[int]]:
    """Indices of classes that are drawn as one mark: equally many, of one group, at most.

    `groups` are in order of frequency, so that each group is one piece.
    """
    most = math.ceil(len(groups) / MOST_MARKS)
    for _, start, stop in _pieces(groups):
        for part in np.array_split(range(start, stop), math.ceil((stop - start) / most)):
            yield part.tolist()


def _write_bar(axes: Axes, bar: Bar, spot: float) -> None:
    """The deviation at a bar's end, its figure where it begins: clear of everything else."""
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
    )


def _draw_bars(axes: Axes, heights: Sequence[float], groups: Sequence[Group]) -> None:
    """A bar a class; of more than can be told apart, one outline a group, which draws faster."""
    if len(heights) <= MOST_NAMES:
        axes.bar(range(len(heights)), heights, color=[COLOURS[group] for group in groups])
        return
    for group, start, stop in _pieces(groups):
        edges = np.arange(start, stop + 1) - 0.5
        axes.stairs(heights[start:stop], edges, baseline=1e-9, fill=True, color=COLOURS[group])


def _draw_counts(axes: Axes, counts: Sequence[int], groups: Sequence[Group]) -> None:
    _draw_bars(axes, counts, groups)
    # One photo is seen, too.
    axes.set(yscale="log", ylim=(0.7, 1.4 * max(counts)), title="training photos")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())


def _draw_points(axes: Axes, title: str, points: Sequence[Point]) -> None:
    trained = [point.parameters for point in points if point.parameters]
    left = min(trained, default=10) / 6
    for point in points:
        spot = point.parameters or left
        axes.errorbar(
            spot, point.accuracy, point.deviation, fmt="o", color=point.colour, ms=6, elinewidth=1
        )
    axes.set(xscale="log", title=title, xlabel="trainable parameters")
    axes.set_xlim(left / 2, max(trained, default=10) * 4)
    axes.margins(y=0.12)
    powers = range(
        math.ceil(math.log10(left * 1.5)), math.floor(math.log10(axes.get_xlim()[1])) + 1
    )
    axes.set_xticks([left, *(10.0**power for power in powers)])
    axes.set_xticklabels(["none", *(f"$10^{power}$" for power in powers)], parse_math=True)
    axes.minorticks_off()
    axes.grid(alpha=0.25, lw=0.6)


def _label_points(axes: Axes, canvas: FigureCanvasAgg, points: Sequence[Point]) -> None:
    """Each label where it covers least of points, error bars and other labels."""
    left = min((one.parameters for one in points if one.parameters), default=10) / 6
    spots = [(one.parameters or left, one.accuracy) for one in points]
    taken = [_error_box(axes, spot, one) for spot, one in zip(spots, points, strict=True)]
    for spot, point in zip(spots, points, strict=True):
        best = min(
            _places(axes, canvas, spot, point.label),
            key=lambda place: (_covered(axes, place[1], taken), place[0][2]),
        )
        (right, up, distance), box = best
        taken.append(box)
        axes.annotate(
            point.label,
            spot,
            (right, up),
            textcoords="offset points",
            fontsize=7.5,
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "#777777", "shrinkB": 3}
            if distance > 16
            else None,
        )


def _places(
    axes: Axes, canvas: FigureCanvasAgg, spot: tuple[float, float], label: str
) -> Iterator[tuple[tuple[float, float, float], Bbox]]:
    """Offsets of a label's centre in points with its distance, and the box that it then fills."""
    pixels = canvas.figure.dpi / 72
    text = axes.text(0, 0, label, fontsize=7.5)
    size = text.get_window_extent(canvas.get_renderer())  # type: ignore[no-untyped-call]
    text.remove()
    x, y = axes.transData.transform(spot)
    for distance in (9, 13, 20, 28, 38, 50):
        for angle in range(0, 360, 30):
            away = math.radians(angle)
            right = math.cos(away) * (distance + size.width / pixels / 2)
            up = math.sin(away) * (distance + size.height / pixels / 2)
            centre_x, centre_y = x + right * pixels, y + up * pixels
            box = Bbox.from_bounds(
                centre_x - size.width / 2, centre_y - size.height / 2, size.width, size.height
            )
            yield (right, up, distance), box.padded(2)


def _error_box(axes: Axes, spot: tuple[float, float], point: Point) -> Bbox:
    low, high = point.accuracy - point.deviation, point.accuracy + point.deviation
    ends = axes.transData.transform([(spot[0], low), (spot[0], high)])
    return Bbox(ends).padded(7)


def _covered(axes: Axes, box: Bbox, taken: Sequence[Bbox]) -> float:
    """Square pixels of other things under a box, and of the box outside of the axes."""
    inside = Bbox.intersection(box, axes.bbox)
    outside = box.width * box.height - (inside.width * inside.height if inside else 0)
    parts = (Bbox.intersection(box, one) for one in taken)
    return outside + sum(part.width * part.height for part in parts if part)


def _shade_groups(axes: Axes, groups: Sequence[Group]) -> None:
    for group, start, stop in _pieces(groups):
        axes.axvspan(start - 0.5, stop - 0.5, color=COLOURS[group], alpha=0.07, lw=0)


def _pieces(groups: Sequence[Group]) -> Iterator[tuple[Group, int, int]]:
    """Where each group starts and stops, of classes in order of frequency."""
    start = 0
    for group, members in groupby(groups):
        stop = start + len(list(members))
        yield group, start, stop
        start = stop


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    """One tick a class, as far as a reader can tell them apart."""
    step = -(-len(names) // MOST_NAMES)
    places = range(0, len(names), step)
    axes.set_xticks(places, names[::step], rotation=60, ha="right", rotation_mode="anchor")


def _mean(rates: Sequence[float]) -> float:
    known = [rate for rate in rates if not math.isnan(rate)]
    return sum(known) / len(known) if known else math.nan


def _legend(axes: Axes) -> None:
    handles = [mpl.patches.Patch(color=colour, label=group) for group, colour in COLOURS.items()]
    axes.legend(handles=handles, frameon=False, fontsize=8, ncols=3, loc="upper right")
