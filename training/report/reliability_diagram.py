"""The reliability diagram: accuracy over confidence, before and after calibration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from taillift.models.bundle.schema import GROUPS
from taillift.training.calibration.predictions import ScoredPredictions
from taillift.training.calibration.reliability import QUANTILE_95, Bin, bins, change
from taillift.training.calibration.temperature import BeforeAndAfter
from taillift.training.report.figures import COLOURS

BEFORE: Final = "#999999"
OVERALL: Final = "black"


def draw_reliability(path: Path, every: BeforeAndAfter) -> None:
    """A row of panels for each ensemble (before, after): overall and by group.

    A mark is the mean of a bin, its line what chance alone may do to its accuracy 9 times of 10;
    `noise` is the error that perfect confidence stays under 19 times of 20.
    """
    figure = Figure(figsize=(10.4, 0.7 + 2.65 * len(every)), layout="constrained")
    panels = figure.subplots(len(every), 1 + len(GROUPS), sharex=True, sharey=True, squeeze=False)
    for line, (name, (before, after)) in zip(panels, every.items(), strict=True):
        _draw_panel(line[0], f"{name}: overall", before, after, OVERALL)
        for place, (axes, group) in enumerate(zip(line[1:], GROUPS, strict=True)):
            parts = before.of_group(place), after.of_group(place)
            _draw_panel(axes, f"answered {group}", *parts, COLOURS[group])
        line[0].set_ylabel("right, %")
    for axes in panels[-1]:
        axes.set_xlabel("confidence, %")
    handles = [
        Line2D([], [], color=BEFORE, marker="o", mfc="white", ls="--", label="temperature 1"),
        Line2D([], [], color=OVERALL, marker="o", label="calibrated"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, format="png")


def _draw_panel(
    axes: Axes, title: str, before: ScoredPredictions, after: ScoredPredictions, colour: str
) -> None:
    axes.plot([0, 100], [0, 100], color="#cccccc", lw=1, zorder=0)
    _draw_bins(axes, bins(before), BEFORE, "--", "white")
    _draw_bins(axes, bins(after), colour, "-", colour)
    _draw_chance(axes, bins(after), colour)
    axes.set(xlim=(0, 100), ylim=(0, 102), title=title, aspect="equal")
    axes.set(xticks=range(0, 101, 25), yticks=range(0, 101, 25))
    axes.annotate(_caption(before, after), (98, 3), ha="right", va="bottom", fontsize=7.5)


def _draw_bins(axes: Axes, every: Sequence[Bin], colour: str, style: str, fill: str) -> None:
    spots = [100 * one.confidence for one in every]
    heights = [100 * one.accuracy for one in every]
    axes.plot(spots, heights, f"o{style}", color=colour, mfc=fill, ms=3.5, lw=1.2)


def _draw_chance(axes: Axes, every: Sequence[Bin], colour: str) -> None:
    for one in every:
        reach = QUANTILE_95 * one.noise**0.5
        ends = [100 * (one.accuracy - reach), 100 * (one.accuracy + reach)]
        axes.plot([100 * one.confidence] * 2, ends, color=colour, lw=0.7)


def _caption(before: ScoredPredictions, after: ScoredPredictions) -> str:
    found = change(before, after)
    photos = f"{found.photos:,} photos"
    if found.before is None or found.after is None:
        return f"{photos}\ntoo few for the error"
    return (
        f"{photos}, noise {found.resolution:.1f}\n"
        f"error {found.before:.1f} → {found.after:.1f} points"
    )
