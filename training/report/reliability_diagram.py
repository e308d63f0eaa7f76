"""The reliability diagram: accuracy over confidence, before and after calibration."""

from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from taillift.models.bundle.calibration_error import QUANTILE_95, ScoredPredictions, bins
from taillift.models.bundle.schema import GROUPS
from taillift.training.calibration.reliability import change
from taillift.training.calibration.temperature import BeforeAndAfter
from taillift.training.report.figures import COLOURS
from taillift.training.report.html import change as format_change

BEFORE: Final = "#777777"
OVERALL: Final = "black"


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
