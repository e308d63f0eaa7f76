"""What adaptive ensembling, calibration and prediction sets came to on bundles' held-out photos.

    python -m benchmarks.calibration bundles/places50-lt bundles/wardrobe-lt

Prints and writes, of the fp32 graph, what `taillift export` measured through the code that serves.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import REPORT, read_manifest
from taillift.models.bundle.schema import GROUPS, Precision
from taillift.models.errors import UserError

TARGET = 90


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration.md")
    options = parser.parse_args()
    every = [(read_manifest(one).name, _metrics(one)) for one in options.bundles]
    errors = ("photos", "ensemble", "all", "many", "medium", "few")
    sets = ("photos", "ensemble", "marginal", "macro", "few", "labels in a set")
    parts = [
        "Accuracy in per cent and mean number of views:",
        markdown(("photos", "ensemble", "mean-class", "few", "views"), list(_accuracies(every))),
        "Expected calibration error in points, before and after:",
        markdown(errors, list(_errors(every, _ece))),
        "Calibration error less what chance makes, before and after, in points; in brackets the "
        "resolution, below which nothing is known:",
        markdown(errors, list(_errors(every, _error))),
        f"Sets asked to hold the right label {TARGET} % of the time, in per cent:",
        markdown(sets, list(_sets(every))),
    ]
    write_result(options.out, parts)


def _metrics(bundle: Path) -> dict[str, Any]:
    path = bundle / REPORT / "metrics.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))[Precision.FP32]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): export the bundle") from error
    if "calibration_error" not in found:
        raise UserError(f"{bundle} is not calibrated: export it with held-out photos")
    return found


def _accuracies(every: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[list[str]]:
    for name, metrics in every:
        rows = {"off": "single", "adaptive": "adaptive", "full": "full"}
        views = {"off": 1.0, "adaptive": metrics["adaptive_views"], "full": 5.0}
        for ensemble, key in rows.items():
            scores = metrics[key]
            cells = (_figure(scores[one]) for one in ("mean_class", "few"))
            yield [name, ensemble, *cells, f"{views[ensemble]:.2f}"]


def _errors(
    every: Sequence[tuple[str, dict[str, Any]]], cell: Callable[[dict[str, Any]], str]
) -> Iterator[list[str]]:
    for name, metrics in every:
        for ensemble in Ensemble:
            changes = metrics["calibration_error"][ensemble]
            ones = (changes["overall"], *(changes["groups"][group] for group in GROUPS))
            yield [name, ensemble, *map(cell, ones)]


def _ece(change: dict[str, Any]) -> str:
    return f"{_figure(change['ece_before'])} → {_figure(change['ece_after'])}"


def _error(change: dict[str, Any]) -> str:
    both = f"{_figure(change['before'])} → {_figure(change['after'])}"
    return f"{both} ({_figure(change['resolution'])})"


def _sets(every: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[list[str]]:
    for name, metrics in every:
        for ensemble in Ensemble:
            (scores,) = (one for one in metrics["coverage"][ensemble] if one["target"] == TARGET)
            cells = (scores["marginal"], scores["macro"], scores["groups"]["few"]["coverage"])
            yield [name, ensemble, *map(_figure, cells), _figure(scores["size"])]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
