"""Accuracy, calibration errors and coverage of bundles on their held-out photos.

    python -m benchmarks.calibration bundles/places50-lt bundles/wardrobe-lt

Prints and writes what `taillift export` measured of the fp32 graph with the code that serves.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import REPORT, read_manifest
from taillift.models.bundle.schema import GROUPS, Precision
from taillift.models.errors import UserError

# The coverage, in per cent, at which prediction sets are shown.
TARGET: Final = 90
# The names of the ensembles' accuracies in metrics.json.
SCORES: Final = {Ensemble.OFF: "single", Ensemble.ADAPTIVE: "adaptive", Ensemble.FULL: "full"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration.md")
    options = parser.parse_args()
    accuracies: list[list[str]] = []
    expected: list[list[str]] = []
    debiased: list[list[str]] = []
    sets: list[list[str]] = []
    for bundle in options.bundles:
        name, metrics = read_manifest(bundle).name, read_metrics(bundle)
        views = {"off": 1.0, "adaptive": metrics["adaptive_views"], "full": 5.0}
        for ensemble, key in SCORES.items():
            cells = [figure(metrics[key][measure]) for measure in ("mean_class", "few")]
            accuracies.append([name, ensemble, *cells, f"{views[ensemble]:.2f}"])
        for ensemble in Ensemble:
            errors = metrics["calibration_error"][ensemble]
            changes = [errors["overall"], *(errors["groups"][group] for group in GROUPS)]
            expected.append([name, ensemble, *(expected_error(change) for change in changes)])
            debiased.append([name, ensemble, *(debiased_error(change) for change in changes)])
            (scores,) = (at for at in metrics["coverage"][ensemble] if at["target"] == TARGET)
            few = scores["groups"]["few"]["coverage"]
            values = (scores["marginal"], scores["macro"], few, scores["size"])
            sets.append([name, ensemble, *map(figure, values)])
    of_groups = ("photos", "ensemble", "all", *GROUPS)
    of_sets = ("photos", "ensemble", "marginal", "macro", "few", "labels in a set")
    parts = [
        "Accuracy in per cent and mean number of views:",
        markdown(("photos", "ensemble", "mean-class", "few", "views"), accuracies),
        "Expected calibration error in points, before and after calibration:",
        markdown(of_groups, expected),
        "Calibration error less what chance explains, before and after calibration, in points; in "
        "brackets the minimum detectable error:",
        markdown(of_groups, debiased),
        f"Coverage in per cent of sets that should hold the right label {TARGET} % of the time:",
        markdown(of_sets, sets),
    ]
    write_result(options.out, parts)


def read_metrics(bundle: Path) -> dict[str, Any]:
    """Return the metrics of a bundle's fp32 graph.

    Raises `UserError` if the bundle has none, or is not calibrated.
    """
    path = bundle / REPORT / "metrics.json"
    try:
        metrics: dict[str, Any] = json.loads(path.read_text("utf-8"))[Precision.FP32]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): export the bundle") from error
    if "calibration_error" not in metrics:
        raise UserError(f"{bundle} is not calibrated: export it with held-out photos")
    return metrics


def expected_error(change: dict[str, Any]) -> str:
    """Return the expected calibration error before and after calibration."""
    return f"{figure(change['ece_before'])} → {figure(change['ece_after'])}"


def debiased_error(change: dict[str, Any]) -> str:
    """Return the error less what chance explains, and the minimum detectable error."""
    both = f"{figure(change['before'])} → {figure(change['after'])}"
    return f"{both} ({figure(change['resolution'])})"


def figure(value: float | None) -> str:
    """Return a number with one decimal place, or a dash."""
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
