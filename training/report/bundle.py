"""The folder `report` of a bundle: measurements, figures and photos for people to read."""

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from taillift.models.bundle.arrays import Doubles, Labels
from taillift.models.bundle.images import decode
from taillift.models.bundle.manifest import Variant
from taillift.models.bundle.schema import Group, Precision
from taillift.models.release.bundle_comparison import BundleComparison
from taillift.models.release.comparison_text import comparison_rows, loss_lines
from taillift.training.calibration.held_out import HeldOut, Predictions, predictions_on
from taillift.training.calibration.variants import CalibratedVariant
from taillift.training.data.photo import Photo
from taillift.training.evaluation import TauPoint, class_accuracies, confusion, tau_curve
from taillift.training.fit.checkpoint import CheckpointMetadata
from taillift.training.report import sections
from taillift.training.report.figures import (
    TauCurve,
    changed_by_calibration,
    draw_class_accuracies,
    draw_confusion,
    draw_reliability,
    draw_tau,
)
from taillift.training.report.html import UNKNOWN, Table, embedded, merged_notes, render
from taillift.training.report.summary import headlines

# Of each gallery.
MOST_PHOTOS: Final = 12
# Of the parameter `tail`.
TAILS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
# Of the longer side, in pixels.
SIDE: Final = 192


def write_report(
    folder: Path,
    metadata: CheckpointMetadata,
    groups: Sequence[Group],
    calibrated: Mapping[Precision, CalibratedVariant],
    photos: Sequence[Photo] = (),
    comparisons: Mapping[Precision, BundleComparison] = MappingProxyType({}),
) -> None:
    """Write metrics.json, the confusions with five views, figures, and report.html.

    `photos` are those that the variants were measured on; report.html shows a few of them, made
    small. `comparisons` say what each variant costs against fp32. Without photos to measure on only
    metrics.json and report.html are written.
    """
    folder.mkdir()
    metrics = {str(precision): metrics_of(each.variant) for precision, each in calibrated.items()}
    for precision, comparison in comparisons.items():
        # Without the times: the same bundle made twice is to have the same bytes.
        metrics[precision]["against_fp32"] = comparison.model_dump(exclude={"old", "new"})
    fp32 = calibrated[Precision.FP32]
    leaning = leaning_curve(metadata, fp32)
    if leaning:
        metrics[Precision.FP32]["tail"] = [point.model_dump() for point in leaning]
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    figures: dict[str, str | None] = {"classes": None, "confusion": None, "reliability": None}
    figures["tau"] = None
    confused = 0
    if fp32.check:
        write_confusion(folder / "confusion.csv", metadata.classes, fp32.check)
        draw_class_accuracies(
            folder / "classes.png",
            metadata.classes,
            metadata.counts,
            groups,
            class_accuracies(fp32.check.view_logits, fp32.check.labels, len(groups)),
        )
        figures["classes"] = embedded(folder / "classes.png")
        counts = confusion(fp32.check.view_logits, fp32.check.labels, len(groups))
        confused = draw_confusion(folder / "confusion.png", metadata.classes, groups, counts)
        figures["confusion"] = embedded(folder / "confusion.png")
    if fp32.fitted:
        draw_reliability(folder / "reliability.png", fp32.fitted.scored)
        figures["reliability"] = embedded(folder / "reliability.png")
    if few := [point.few for point in leaning if point.few is not None]:
        means = [point.mean_class for point in leaning]
        own = 1 + metadata.recipe.loss.tail
        draw_tau(folder / "tau.png", [TauCurve("fp32", [own + tail for tail in TAILS], few, means)])
        figures["tau"] = embedded(folder / "tau.png")
    shown = galleries(metadata, fp32, photos)
    text = page(metadata, groups, calibrated, comparisons, figures, confused, shown, leaning)
    (folder / "report.html").write_text(text, "utf-8")


def page(
    metadata: CheckpointMetadata,
    groups: Sequence[Group],
    calibrated: Mapping[Precision, CalibratedVariant],
    comparisons: Mapping[Precision, BundleComparison],
    figures: Mapping[str, str | None],
    confused: int,
    shown: "Galleries",
    leaning: Sequence[TauPoint],
) -> str:
    """Return report.html, which holds all of the bundle's measurements, `figures` and galleries.

    `confused` is the number of classes in the confusion picture, `leaning` the accuracy by tail.
    """
    variants = {precision: each.variant for precision, each in calibrated.items()}
    evaluations = {name: each.evaluation for name, each in variants.items() if each.evaluation}
    rules = {name: each.exit for name, each in variants.items() if each.exit}
    calibrations = {name: each.calibration for name, each in variants.items() if each.calibration}
    errors = {name: each.errors for name, each in calibrations.items() if each.errors}
    sets = {name: each.sets for name, each in variants.items() if each.sets}
    reviews = {name: each.review for name, each in variants.items() if each.review}
    check, fp32_fitted = calibrated[Precision.FP32].check, calibrated[Precision.FP32].fitted
    return render(
        "bundle.html",
        name=metadata.data,
        unknown=UNKNOWN,
        fp32=variants[Precision.FP32],
        headlines={name: list(headlines(each)) for name, each in variants.items()},
        identity=sections.identity(metadata, groups, calibrated),
        figures=figures,
        confused=confused,
        galleries=shown,
        side=SIDE,
        accuracies=sections.accuracy_table(evaluations),
        comparisons={
            name: (
                Table(("", *each.groups), indented(comparison_rows(each)), words=1),
                [*loss_lines(each), each.sentence],
            )
            for name, each in comparisons.items()
        },
        classes=sections.class_table(metadata, groups, check) if check else None,
        leaning=sections.leaning_table(leaning) if leaning else None,
        own_tau=f"{1 + metadata.recipe.loss.tail:g}",
        exit_rules=sections.exit_rules(rules),
        exit_losses=sections.exit_losses(rules),
        recalibrated=changed_by_calibration(fp32_fitted.scored) if fp32_fitted else False,
        errors=sections.calibration_errors(calibrations),
        temperatures=sections.temperatures(calibrations),
        coverage=sections.coverage(sets),
        acceptance=sections.acceptance(reviews),
        notes={
            "verdicts": merged_notes(
                {name: [sections.exit_verdict(rule)] for name, rule in rules.items()}
            ),
            "exit": merged_notes({name: rule.notes for name, rule in rules.items()}),
            "errors": merged_notes({name: each.notes for name, each in errors.items()}),
            "calibration": merged_notes({name: each.notes for name, each in calibrations.items()}),
            "unproved": merged_notes(
                {name: sections.unproved(each) for name, each in calibrations.items()}
            ),
            "sets": merged_notes({name: each.notes for name, each in sets.items()}),
            "review": merged_notes({name: each.notes for name, each in reviews.items()}),
        },
    )


def indented(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return rows whose first cell keeps the spaces that it begins with in HTML."""
    return [[title.replace("  ", "\N{EM SPACE}"), *cells] for title, *cells in rows]


def metrics_of(variant: Variant) -> dict[str, Any]:
    """Return accuracy, and what exit rule, calibration, sets and review were measured to do."""
    metrics: dict[str, Any] = {}
    if variant.evaluation:
        metrics |= variant.evaluation.model_dump()
    if variant.exit:
        metrics["exit"] = variant.exit.model_dump()
    if variant.calibration and variant.calibration.errors:
        metrics["calibration_error"] = variant.calibration.errors.model_dump()
    if variant.sets:
        metrics["coverage"] = {
            ensemble: [scores.model_dump() for scores in estimates]
            for ensemble, estimates in variant.sets.estimates.items()
        }
    if variant.review:
        metrics["review"] = variant.review.model_dump()
    return metrics


def write_confusion(path: Path, classes: Sequence[str], check: HeldOut) -> None:
    """Write how many photos of each class were predicted as which, with five views, as CSV."""
    counts = confusion(check.view_logits, check.labels, len(classes))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true", "predicted", "photos"])
        for true, predicted in np.argwhere(counts).tolist():
            writer.writerow([classes[true], classes[predicted], int(counts[true, predicted])])


@dataclass(frozen=True)
class Thumbnail:
    """A photo as a URL that holds it, with its true class as the title and words on its answer."""

    source: str
    title: str
    words: str


@dataclass(frozen=True)
class Galleries:
    """The surest mistakes first, and a photo of each of the rarest classes."""

    mistakes: list[Thumbnail]
    rare: list[Thumbnail]

    @property
    def size(self) -> int:
        """The number of different photos in both."""
        return len({photo.source for photo in (*self.mistakes, *self.rare)})


def galleries(
    metadata: CheckpointMetadata, calibrated: CalibratedVariant, photos: Sequence[Photo]
) -> Galleries:
    """Return galleries of the `photos` that the variant was checked on, answered with five views.

    Confidences are under the uniform prior. Without photos the galleries are empty.
    """
    check = calibrated.check
    if check is None or not photos:
        return Galleries([], [])
    classes = metadata.classes
    answers, confidences = answered(calibrated, check)
    wrong = np.flatnonzero(answers != check.labels)
    surest = wrong[np.argsort(-confidences[wrong], kind="stable")][:MOST_PHOTOS].tolist()
    mistakes = [
        Thumbnail(
            thumbnail(photos[index]),
            classes[check.labels[index]],
            f"taken for {classes[answers[index]]}, {100 * confidences[index]:.0f} %",
        )
        for index in surest
    ]
    rare = []
    measured = set(check.labels.tolist())
    for label in sorted(measured, key=lambda label: metadata.counts[label])[:MOST_PHOTOS]:
        own = np.flatnonzero(check.labels == label)
        right = int((answers[own] == label).sum())
        rare.append(
            Thumbnail(
                thumbnail(photos[own[0]]),
                classes[label],
                f"{metadata.counts[label]:,} training photos; {right:,} of {len(own):,} right",
            )
        )
    return Galleries(mistakes, rare)


def answered(calibrated: CalibratedVariant, check: HeldOut) -> tuple[Labels, Doubles]:
    """Return the answers int64 [N] with five views, and the confidences [N] in them."""
    full, temperatures = five_views(calibrated, check)
    probabilities = full.probabilities(temperatures)
    return probabilities.argmax(1), probabilities.max(1)


def five_views(calibrated: CalibratedVariant, check: HeldOut) -> tuple[Predictions, Doubles]:
    """Return the predictions of all views and their temperatures [N]; 1 without calibration."""
    full = predictions_on(check)[1]
    if (calibration := calibrated.variant.calibration) is None:
        return full, np.ones(len(check))
    return full, calibration.temperatures(full.logits, full.views, full.ensemble, full.groups)


def leaning_curve(
    metadata: CheckpointMetadata, calibrated: CalibratedVariant
) -> tuple[TauPoint, ...]:
    """Return the accuracies with five views for each of `TAILS`, answered as a request would be.

    Empty without photos to measure on.
    """
    check = calibrated.check
    if check is None:
        return ()
    full, temperatures = five_views(calibrated, check)
    scaled = (full.logits / temperatures[:, None]).astype(np.float32)
    taus = [1 + tail for tail in TAILS]
    return tau_curve(scaled, check.labels, check.groups, metadata.counts, taus)


def thumbnail(photo: Photo) -> str:
    """Return a small JPEG of the photo as a URL that holds it, without what the file says of it."""
    image = decode(photo.read(), SIDE)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
