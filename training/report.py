"""What a bundle says of itself for people to read: the folder `report`."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle.manifest import Variant
from models.bundle.precision import Precision
from models.bundle.record import Group
from training.calibration.diagram import draw_reliability
from training.calibration.held_out import HeldOut
from training.calibration.judge import Judged
from training.checkpoint import Facts
from training.evaluation import class_accuracies, confusion
from training.figures import draw_class_accuracies


def write_report(
    folder: Path, facts: Facts, groups: Sequence[Group], judged: Mapping[Precision, Judged]
) -> None:
    """metrics.json, what was taken for what with five views, and figures, as far as is known."""
    folder.mkdir()
    metrics = {str(precision): _metrics(one) for precision, one in judged.items()}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    plain = judged[Precision.FP32]
    if plain.check is None:
        return
    _write_confusion(folder / "confusion.csv", facts.classes, plain.check)
    draw_class_accuracies(
        folder / "classes.png",
        facts.classes,
        facts.counts,
        groups,
        class_accuracies(plain.check.view_logits, plain.check.labels, len(groups)),
    )
    if plain.checked:
        rows = [(way, before, after) for way, (before, after) in plain.checked.verdicts.items()]
        draw_reliability(folder / "reliability.png", rows)


def summary(variant: Variant) -> Iterator[str]:
    """What is known of a variant, in lines."""
    if evaluation := variant.evaluation:
        yield (
            f"{evaluation.data}: mean-class {evaluation.single.mean_class:.1f} % with one view, "
            f"{evaluation.full.mean_class:.1f} % with five"
        )
        if evaluation.adaptive:
            yield (
                f"adaptive: {evaluation.adaptive.mean_class:.1f} % with "
                f"{evaluation.adaptive_views:.2f} views on average"
            )
    else:
        yield "no test/ or val/ photos: the bundle says nothing of its accuracy"
    for part in (variant.exit, variant.calibration, variant.sets, variant.review):
        yield from part.notes if part else ()


def _metrics(one: Judged) -> dict[str, Any]:
    """Accuracy, calibration error, coverage and review on the photos that it was evaluated on.

    Without photos of their own, the last three are cross-validated on those of the fit.
    """
    variant: Variant = one.variant
    metrics: dict[str, Any] = {}
    if variant.evaluation:
        metrics |= variant.evaluation.model_dump()
    if variant.exit:
        metrics["exit"] = variant.exit.model_dump()
    if variant.calibration and variant.calibration.errors:
        metrics["calibration_error"] = variant.calibration.errors.model_dump()
    if variant.sets:
        coverage = one.checked.coverage if one.checked else variant.sets.estimates
        metrics["coverage"] = {
            way: [scores.model_dump() for scores in every] for way, every in coverage.items()
        }
    review = one.checked.review if one.checked else variant.review
    if review:
        metrics["review"] = review.model_dump()
    return metrics


def _write_confusion(path: Path, classes: Sequence[str], check: HeldOut) -> None:
    counts = confusion(check.view_logits, check.labels, len(classes))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true", "predicted", "photos"])
        for true, predicted in np.argwhere(counts).tolist():
            writer.writerow([classes[true], classes[predicted], int(counts[true, predicted])])
