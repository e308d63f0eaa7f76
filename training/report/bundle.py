"""What a bundle says of itself for people to read: the folder `report`."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final

import numpy as np

from taillift.models.bundle.manifest import Variant
from taillift.models.bundle.schema import Group, Precision
from taillift.training.calibration.held_out import HeldOut
from taillift.training.calibration.variants import CalibratedVariant
from taillift.training.evaluation import class_accuracies, confusion
from taillift.training.fit.checkpoint import CheckpointMetadata
from taillift.training.report import (
    sections_accuracy,
    sections_confidence,
    sections_decisions,
    sections_ensembling,
    sections_identity,
)
from taillift.training.report.figures import draw_class_accuracies
from taillift.training.report.html import bullets, figure
from taillift.training.report.reliability_diagram import draw_reliability
from taillift.training.report.summary import in_short

PAGE: Final = Template(
    files("taillift.training.report").joinpath("templates/bundle.html").read_text("utf-8")
)
CLASSES: Final = "Every class: its training photos, and its accuracy with fp32 and five views."
RELIABILITY: Final = (
    "How often fp32's answers are right, over their confidence: grey at temperature 1, coloured as "
    "calibrated; on the photos named above. A line is what chance may do 9 times of 10."
)


def write_report(
    folder: Path,
    facts: CheckpointMetadata,
    groups: Sequence[Group],
    judged: Mapping[Precision, CalibratedVariant],
) -> None:
    """metrics.json, what was taken for what with five views, figures, and report.html.

    Without photos to measure on only metrics.json and report.html are written.
    """
    folder.mkdir()
    metrics = {str(precision): _metrics(one) for precision, one in judged.items()}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    plain = judged[Precision.FP32]
    if plain.check:
        _write_confusion(folder / "confusion.csv", facts.classes, plain.check)
        draw_class_accuracies(
            folder / "classes.png",
            facts.classes,
            facts.counts,
            groups,
            class_accuracies(plain.check.view_logits, plain.check.labels, len(groups)),
        )
    if plain.fitted:
        draw_reliability(folder / "reliability.png", plain.fitted.scored)
    (folder / "report.html").write_text(_page(folder, facts, groups, judged), "utf-8")


def summary(variant: Variant) -> Iterator[str]:
    """What is known of a variant, in at most ten lines."""
    yield from in_short(variant)
    parts = (variant.exit, variant.calibration, variant.sets, variant.review)
    if count := sum(len(part.notes) for part in parts if part):
        yield f"{count} notes on what the photos could not show stand in report/report.html"


def _page(
    folder: Path,
    facts: CheckpointMetadata,
    groups: Sequence[Group],
    judged: Mapping[Precision, CalibratedVariant],
) -> str:
    variants = {precision: one.variant for precision, one in judged.items()}
    check = judged[Precision.FP32].check
    return PAGE.substitute(
        name=escape(facts.data),
        short="".join(_short(*one) for one in variants.items()),
        identity=sections_identity.section(facts, groups, judged),
        accuracy=sections_accuracy.section(variants)
        + _figure(folder / "classes.png", CLASSES)
        + (sections_accuracy.classes(facts, groups, check) if check else ""),
        ensembling=sections_ensembling.section(variants),
        confidence=sections_confidence.section(variants)
        + _figure(folder / "reliability.png", RELIABILITY),
        sets=sections_decisions.sets(variants),
        review=sections_decisions.review(variants),
    )


def _short(precision: Precision, variant: Variant) -> str:
    return f"<h3>{precision}</h3>{bullets(in_short(variant), 'verdict')}"


def _figure(path: Path, text: str) -> str:
    return figure(path, text) if path.exists() else ""


def _metrics(one: CalibratedVariant) -> dict[str, Any]:
    """Accuracy, and what exit rule, calibration, sets and review were measured to do."""
    variant: Variant = one.variant
    metrics: dict[str, Any] = {}
    if variant.evaluation:
        metrics |= variant.evaluation.model_dump()
    if variant.exit:
        metrics["exit"] = variant.exit.model_dump()
    if variant.calibration and variant.calibration.errors:
        metrics["calibration_error"] = variant.calibration.errors.model_dump()
    if variant.sets:
        metrics["coverage"] = {
            ensemble: [scores.model_dump() for scores in every]
            for ensemble, every in variant.sets.estimates.items()
        }
    if variant.review:
        metrics["review"] = variant.review.model_dump()
    return metrics


def _write_confusion(path: Path, classes: Sequence[str], check: HeldOut) -> None:
    counts = confusion(check.view_logits, check.labels, len(classes))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true", "predicted", "photos"])
        for true, predicted in np.argwhere(counts).tolist():
            writer.writerow([classes[true], classes[predicted], int(counts[true, predicted])])
