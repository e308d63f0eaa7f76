"""The tables and texts of a bundle's report, as plain data for its template."""

from collections.abc import Mapping, Sequence
from typing import Final

from taillift.models.bundle.ensemble import Ensemble, ExitRule
from taillift.models.bundle.manifest import Evaluation
from taillift.models.bundle.prediction_sets import PredictionSets
from taillift.models.bundle.review import Review
from taillift.models.bundle.schema import GROUPS, Group, Precision
from taillift.models.bundle.temperature import Calibration, ErrorChange
from taillift.training.calibration.held_out import HeldOut
from taillift.training.calibration.variants import CalibratedVariant
from taillift.training.evaluation import TauPoint, class_accuracies
from taillift.training.fit.checkpoint import CheckpointMetadata
from taillift.training.report.html import UNKNOWN, Table, change, number, without_repeats

# Named as a request asks for them.
ENSEMBLES: Final[dict[Ensemble, str]] = {
    Ensemble.OFF: "off, one view",
    Ensemble.FULL: "full, five views",
    Ensemble.ADAPTIVE: "adaptive",
}


def identity(
    metadata: CheckpointMetadata,
    groups: Sequence[Group],
    variants: Mapping[Precision, CalibratedVariant],
) -> dict[str, str]:
    """Return what the bundle is by keyword: photos, classes, method and backbone."""
    fp32 = variants[Precision.FP32]
    counts, recipe, views = metadata.counts, metadata.recipe, metadata.preprocessing
    sizes = []
    for group in GROUPS:
        members = [count for count, other in zip(counts, groups, strict=True) if other == group]
        photos = f" ({sum(members):,} training photos)" if members else ""
        sizes.append(f"{len(members):,} {group}{photos}")
    calibration = fp32.variant.calibration
    calibrated = "nothing"
    if calibration:
        cross_fitted = calibration.source == "cross-fitting"
        calibrated = f"{calibration.data}, {calibration.images:,} different photos" + (
            " (cross-fitting: there is no val/)" if cross_fitted else ""
        )
    method = "nothing was trained"
    if recipe.epochs:
        tuners = " and ".join(tuner.name for tuner in recipe.tuners) or "the head alone"
        tau = recipe.chosen_tau
        chosen = "" if tau is None else f" with tau = {tau:g} for the answers, trained with 1"
        method = (
            f"{tuners}, {metadata.trainable_parameters:,} parameters trained, "
            f"loss {recipe.loss.name}{chosen}, seed {recipe.seed}"
        )
    parents = "; ".join(
        f"{parent.share:.3g} of {parent.file} ({parent.recipe.title}, seed {parent.recipe.seed}, "
        f"sha256 {parent.sha256[:12]})"
        for parent in metadata.parents
    )
    changes = "; ".join(map(str, metadata.extended))
    revision = metadata.record.revision
    versions = metadata.record.versions | ({"commit": revision[:12]} if revision else {})
    return {
        "data": f"{metadata.sources}: {sum(counts):,} training photos, {max(counts):,} of the most "
        f"frequent class and {min(counts):,} of the rarest (fingerprint "
        f"{metadata.data_sha256[:12]})",
        "classes": f"{len(metadata.classes):,}: {', '.join(sizes)}",
        "measured on": f"{fp32.check.data}, {len(fp32.check):,} photos"
        if fp32.check
        else "nothing: there are no test/ or val/ photos",
        "calibrated on": calibrated,
        "method": f"{recipe.title} ({recipe.name}): {method}",
        **({"average of": parents} if parents else {}),
        **({"classes changed": changes} if changes else {}),
        "backbone": f"{metadata.architecture} ({metadata.pretrained}), sha256 "
        f"{metadata.backbone_sha256[:12]}",
        "views": f"{views.size} x {views.size} pixels, of a canvas whose shorter side is "
        f"{views.size + views.expand}",
        "graphs": ", ".join(variants),
        "trained with": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def accuracy_table(evaluations: Mapping[Precision, Evaluation]) -> Table:
    """Return the accuracies of every variant with each ensemble."""
    means = ("mean class", *GROUPS, "worst class", "harmonic mean", "G-mean", "macro-F1")
    measures = (*means, "overall", "views")
    rows = []
    for precision, evaluation in evaluations.items():
        results = {
            Ensemble.OFF: (evaluation.single, 1.0),
            Ensemble.FULL: (evaluation.full, 5.0),
            Ensemble.ADAPTIVE: (evaluation.adaptive, evaluation.adaptive_views),
        }
        for ensemble, (scores, views) in results.items():
            title = ENSEMBLES[ensemble]
            if scores is None:
                unknown = [UNKNOWN] * len(measures)
                rows.append([precision, f"{title}: there is no exit rule", *unknown])
                continue
            figures = [
                *(scores.mean_class, *(getattr(scores, group) for group in GROUPS)),
                *(scores.worst_class, scores.harmonic_mean, scores.geometric_mean),
                *(scores.macro_f1, scores.overall),
            ]
            rows.append([precision, title, *map(number, figures), number(views, 2)])
    return Table(("", "", *measures), without_repeats(rows, 2), words=2)


def class_table(metadata: CheckpointMetadata, groups: Sequence[Group], check: HeldOut) -> Table:
    """Return every class's training photos, and its accuracy with fp32 on `check`."""
    measured = class_accuracies(check.view_logits, check.labels, len(groups))
    rows = [
        [
            name,
            group,
            f"{count:,}",
            number(accuracy.single if accuracy else None),
            number(accuracy.full if accuracy else None),
        ]
        for name, group, count, accuracy in zip(
            metadata.classes, groups, metadata.counts, measured, strict=True
        )
    ]
    heads = ("class", "group", "training photos", "one view, %", "five views, %")
    return Table(heads, without_repeats(rows, 2), words=2)


def leaning_table(points: Sequence[TauPoint]) -> Table:
    """Return the accuracies for each value of the parameter `tail`."""
    rows = [
        [f"{point.tau - 1:g}", number(point.mean_class)]
        + [number(getattr(point, group)) for group in GROUPS]
        for point in points
    ]
    return Table(("tail", "mean class", *GROUPS), rows, words=1)


def exit_verdict(rule: ExitRule) -> str:
    """Return what a user may rely on with ensemble=adaptive, in a sentence."""
    limit = f"{rule.tolerance:g} points of accuracy against five views, overall and in every group"
    if not rule.leads:
        return "adaptive saves nothing: every image takes all five views"
    if rule.certified:
        return f"certified: with 95 % confidence adaptive loses at most {limit}"
    losses = dict([("overall", rule.overall), *rule.groups.items()])
    worst = max(losses, key=lambda name: losses[name].bound)
    return (
        f"not certified: adaptive is expected to lose at most {limit}, but these photos only prove "
        f"a loss of at most {losses[worst].bound:.1f} ({worst})"
    )


def exit_rules(rules: Mapping[Precision, ExitRule]) -> Table:
    """Return the stages of every variant's exit rule, and what they save."""
    heads = (
        *("", "stops after (views: margin in logits)", "tolerance, points", "mean views"),
        *("other answers than five views', %", "certified"),
    )
    rows = []
    for precision, rule in rules.items():
        stages = [
            f"{views}: {margin:.2f}" for views, margin in zip(rule.stages, rule.leads, strict=False)
        ]
        rows.append(
            [
                precision,
                ", ".join([*stages, f"{rule.stages[-1]}: always"]),
                f"{rule.tolerance:g}",
                number(rule.mean_views, 2),
                number(rule.disagreement),
                "yes" if rule.certified else "no",
            ]
        )
    return Table(heads, without_repeats(rows, 2), words=2)


def exit_losses(rules: Mapping[Precision, ExitRule]) -> Table:
    """Return the accuracy that every variant's exit rule loses, overall and by group."""
    heads = (
        *("", "", "photos", "loss by the labels, points", "standard error"),
        *("expected loss", "bound at 95 %"),
    )
    rows = [
        [
            precision,
            name,
            f"{loss.photos:,}",
            *(number(value, 2) for value in (loss.estimate, loss.error, loss.expected)),
            number(loss.bound),
        ]
        for precision, rule in rules.items()
        for name, loss in [("overall", rule.overall), *rule.groups.items()]
    ]
    return Table(heads, without_repeats(rows, 2), words=2)


def calibration_errors(calibrations: Mapping[Precision, Calibration]) -> Table:
    """Return every variant's calibration errors before and after, overall and by group."""
    heads = (
        "",
        "",
        "answered",
        "photos",
        "error, points",
        "minimum detectable",
        "ECE, points",
        "halved?",
    )
    rows = []
    for precision, calibration in calibrations.items():
        errors = calibration.errors
        if errors is None:
            continue
        by_ensemble = {
            Ensemble.OFF: errors.off,
            Ensemble.FULL: errors.full,
            Ensemble.ADAPTIVE: errors.adaptive,
        }
        rows += [
            [
                precision,
                ENSEMBLES[ensemble],
                name,
                f"{error.photos:,}",
                change(error.before, error.after),
                number(error.resolution),
                change(error.ece_before, error.ece_after),
                halved(error),
            ]
            for ensemble, changes in by_ensemble.items()
            if changes
            for name, error in [("overall", changes.overall), *changes.groups.items()]
        ]
    return Table(heads, without_repeats(rows, 3), words=3)


def halved(error: ErrorChange) -> str:
    """Return whether calibration at least halved the error, if the photos can tell."""
    if error.before is None or error.after is None or not error.enough:
        return "cannot tell"
    return "yes" if error.after <= error.before / 2 else "no"


def unproved(calibration: Calibration) -> list[str]:
    """Return which ensembles' temperatures stay 1 and why, in at most one sentence."""
    if not calibration.unproved:
        return []
    return [
        f"the temperature of {', '.join(calibration.unproved)} stays 1, because the held-out "
        "photos do not show that another one is better"
    ]


def temperatures(calibrations: Mapping[Precision, Calibration]) -> Table:
    """Return every variant's temperatures, for all answers and by the group answered."""
    heads = ("", "", "all answers", *(f"answered {group}" for group in GROUPS))
    rows = []
    for precision, calibration in calibrations.items():
        by_title = {
            ENSEMBLES[Ensemble.OFF]: calibration.off,
            ENSEMBLES[Ensemble.FULL]: calibration.full,
        }
        for views, fitted in calibration.adaptive.items():
            by_title[f"{ENSEMBLES[Ensemble.ADAPTIVE]}, stopped after {views}"] = fitted
        for title, fitted in by_title.items():
            figures = (fitted.pooled, *fitted.row)
            rows.append([precision, title, *(number(value, 2) for value in figures)])
    return Table(heads, without_repeats(rows, 2), words=2)


def coverage(sets: Mapping[Precision, PredictionSets]) -> Table:
    """Return how often every variant's prediction sets hold the right label, and their sizes."""
    heads = (
        *("", "", "asked for, %", "marginal, %", "macro, %", *(f"{group}, %" for group in GROUPS)),
        *("labels", *(f"labels, {group}" for group in GROUPS)),
    )
    rows = []
    for precision, part in sets.items():
        for ensemble, estimates in part.estimates.items():
            for scores in estimates:
                groups = [scores.groups[group] for group in GROUPS]
                figures = [
                    *(scores.marginal, scores.macro, *(group.coverage for group in groups)),
                    *(scores.size, *(group.size for group in groups)),
                ]
                target = f"{scores.target:g}"
                rows.append([precision, ENSEMBLES[ensemble], target, *map(number, figures)])
    return Table(heads, without_repeats(rows, 2), words=2)


def acceptance(reviews: Mapping[Precision, Review]) -> Table:
    """Return which of every variant's answers may be accepted without review, by group."""
    heads = (
        *("", "answered", "photos", "accepted from confidence", "threshold is"),
        *("accepted, %", "wrong among them, %"),
    )
    rows = []
    for precision, review in reviews.items():
        for name, group in review.groups.items():
            fitted = "" if group.fitted_photos is None else f" from {group.fitted_photos:,} photos"
            threshold, kind = "never", f"unknown{fitted}"
            if group.threshold is not None:
                threshold = number(group.threshold, 3)
                kind = f"{'certified' if group.certified else 'estimated'}{fitted}"
            accepted = number(group.accepted if group.photos else None)
            figures = [threshold, kind, accepted, number(group.error)]
            rows.append([precision, name, f"{group.photos:,}", *figures])
    return Table(heads, without_repeats(rows, 2), words=2)
