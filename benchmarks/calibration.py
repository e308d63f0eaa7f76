"""What adaptive ensembling, calibration and prediction sets came to on bundles' held-out photos.

    python -m benchmarks.calibration bundles/places50-lt bundles/wardrobe-lt

Prints and writes, of the fp32 graph, what `taillift export` measured through the code that serves.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, markdown, write_result
from models import UserError
from models.bundle.folder import REPORT, read_manifest
from models.bundle.precision import Precision
from models.bundle.record import GROUPS

WAYS = ("off", "adaptive", "full")
TARGET = 90


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration.md")
    options = parser.parse_args()
    every = [(read_manifest(one).name, _metrics(one)) for one in options.bundles]
    sets = ("photos", "way", "marginal", "macro", "few", "labels in a set")
    parts = [
        "Accuracy in per cent and mean number of views:",
        markdown(("photos", "way", "mean-class", "few", "views"), list(_accuracies(every))),
        "Expected calibration error in points, before and after:",
        markdown(("photos", "way", "all", "many", "medium", "few"), list(_errors(every))),
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
        for way, key in rows.items():
            scores = metrics[key]
            cells = (_figure(scores[one]) for one in ("mean_class", "few"))
            yield [name, way, *cells, f"{views[way]:.2f}"]


def _errors(every: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[list[str]]:
    for name, metrics in every:
        for way in WAYS:
            changes = metrics["calibration_error"][way]
            ones = (changes["overall"], *(changes["groups"][group] for group in GROUPS))
            cells = (f"{_figure(one['ece_before'])} → {_figure(one['ece_after'])}" for one in ones)
            yield [name, way, *cells]


def _sets(every: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[list[str]]:
    for name, metrics in every:
        for way in WAYS:
            (scores,) = (one for one in metrics["coverage"][way] if one["target"] == TARGET)
            cells = (scores["marginal"], scores["macro"], scores["groups"]["few"]["coverage"])
            yield [name, way, *map(_figure, cells), _figure(scores["size"])]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
