"""Calibrated variants: everything fitted on held-out photos for a graph, and measured on others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.ensemble import Ensemble, ExitRule, run_stages
from taillift.models.bundle.folder import HeldOutScores
from taillift.models.bundle.manifest import Variant
from taillift.models.bundle.prediction_sets import Coverage, PredictionSets
from taillift.models.bundle.review import Review
from taillift.models.bundle.schema import Group, Precision, Preprocessing
from taillift.models.bundle.session import Session
from taillift.models.bundle.temperature import Calibration
from taillift.training.calibration.exit_rule import fit_exit
from taillift.training.calibration.held_out import HeldOut, Predictions, predictions_on, view_logits
from taillift.training.calibration.prediction_sets import (
    TARGETS,
    Estimates,
    fit_coverage,
    measure_coverage,
)
from taillift.training.calibration.reliability import measure_errors
from taillift.training.calibration.review import fit_review, measure_review
from taillift.training.calibration.temperature import BeforeAndAfter, fit_temperatures
from taillift.training.data.dataset import Dataset
from taillift.training.data.photo import Split
from taillift.training.evaluation import evaluate

# Points of accuracy that an adaptive ensemble may lose.
TOLERANCE: Final = 0.5
NOTHING_HELD_OUT: Final = (
    "there is no val/, and every class has a single training photo, which cannot be held out"
)
NOT_REQUESTED: Final = "it was not asked for"

Sessions = Mapping[Precision, Session]
HeldOuts = Mapping[Precision, HeldOut]


@dataclass(frozen=True)
class VariantCalibrator:
    """Calibrates and measures graphs on a dataset's held-out photos.

    The classes of `dataset` are those of the graphs, in their order, with one of `groups` each.
    `log_prior` [C] is the prior that the logits carry.
    """

    dataset: Dataset
    preprocessing: Preprocessing
    groups: Sequence[Group]
    log_prior: Doubles

    def evaluate(self, sessions: Sessions) -> dict[Precision, "CalibratedVariant"]:
        """Return uncalibrated variants with their accuracy on test/, else on val/, else without."""
        held = self.dataset.held_out
        checks = self.run_views(sessions, *held) if held else {}
        return {
            precision: uncalibrated(checks.get(precision), NOT_REQUESTED) for precision in sessions
        }

    def calibrate(
        self,
        sessions: Sessions,
        cross_fit: Callable[[], HeldOuts] = dict,
        tolerance: float = TOLERANCE,
    ) -> dict[Precision, "CalibratedVariant"]:
        """Return variants with everything fitted on val/, or on what `cross_fit` holds out.

        They are measured on test/, else on val/. `cross_fit` is called only without val/, and may
        return nothing. Raises what it raises.
        """
        val, test = self.dataset.val, self.dataset.test
        fits = self.run_views(sessions, "val", val) if val else cross_fit()
        checks = self.run_views(sessions, "test", test) if test else fits if val else {}
        if fits:
            # By the logits of fp32: int8's of one photo can differ from batch to batch.
            distinct = fits[Precision.FP32].distinct
            fits = {precision: fit.without_duplicates(distinct) for precision, fit in fits.items()}
        variants = {}
        for precision in sessions:
            fit, check = fits.get(precision), checks.get(precision)
            if fit is None:
                variants[precision] = uncalibrated(check, NOTHING_HELD_OUT)
                continue
            fitted = calibrate(fit, tolerance)
            if check is not None and test:
                fitted = fitted.measured_on(check)
            variant = fitted.variant if check is None else measure_on(fitted.variant, check)
            variants[precision] = CalibratedVariant(variant, check, fitted)
        return variants

    def run_views(self, sessions: Sessions, name: str, split: Split) -> HeldOuts:
        """Return the logits of each session on the photos of the split `name`."""
        title = f"Measuring the {name} photos"
        logits = view_logits(sessions, self.log_prior, split, self.preprocessing, title)
        labels, data = np.asarray(split.labels), f"{self.dataset.name} {name}"
        return {
            precision: HeldOut(data, "validation", of_views, labels, self.groups)
            for precision, of_views in logits.items()
        }


@dataclass(frozen=True)
class CalibratedVariant:
    """A variant as the manifest stores it, and what the report needs besides.

    `check` are the photos that it was evaluated on, None without any. `fitted` is None if it is not
    calibrated.
    """

    variant: Variant
    check: HeldOut | None = None
    fitted: "Fitted | None" = None

    def as_made(self, made: str | None) -> "CalibratedVariant":
        """Return it with the note `made` on how its graph was made."""
        return replace(self, variant=self.variant.model_copy(update={"made": made}))


@dataclass(frozen=True)
class Fitted:
    """The fitted parts of a variant, and the scores that are stored next to its graph.

    `scored` are the answers, before and after calibration, to the photos that the parts say they
    were measured on.
    """

    rule: ExitRule
    calibration: Calibration
    sets: PredictionSets
    review: Review
    scores: HeldOutScores
    scored: BeforeAndAfter

    @property
    def variant(self) -> Variant:
        """The variant of a manifest that has these parts."""
        return Variant(
            exit=self.rule, calibration=self.calibration, sets=self.sets, review=self.review
        )

    def measured_on(self, check: HeldOut) -> "Fitted":
        """Return the same parts, measured on photos that they were not fitted on."""
        ensembles = predictions_on(check, run_stages(self.rule, check.view_logits))
        probabilities = calibrated_probabilities(ensembles, self.calibration)
        errors = measure_errors(self.calibration, check.data, ensembles)
        estimates: Estimates = {}
        for ensemble, of_classes in probabilities.items():
            coverage = Coverage(
                self.scores.ensembles[ensemble],
                self.scores.labels,
                check.groups,
                self.sets.interpolation,
            )
            estimates[ensemble] = tuple(
                measure_coverage(
                    coverage.sets(of_classes, target), check.labels, check.groups, target
                )
                for target in TARGETS
            )
        return replace(
            self,
            calibration=self.calibration.model_copy(update={"errors": errors}),
            sets=self.sets.model_copy(update={"data": check.data, "estimates": estimates}),
            review=measure_review(
                self.review,
                check.data,
                probabilities[Ensemble.ADAPTIVE],
                check.labels,
                check.groups,
            ),
            scored={
                predictions.ensemble: (
                    predictions.uncalibrated(),
                    predictions.calibrated(self.calibration),
                )
                for predictions in ensembles
            },
        )


def calibrate(held: HeldOut, tolerance: float = TOLERANCE) -> Fitted:
    """Fit exit rule, temperatures, prediction sets and review, in this order.

    Each part needs those before it. `tolerance` is in points of accuracy. Duplicates of a photo
    count once. Too few photos raise nothing: the notes of each part say what could not be done.
    """
    held = held.without_duplicates(held.distinct)
    rule = fit_exit(held, tolerance)
    adaptive = run_stages(rule, held.view_logits)
    calibration, scored = fit_temperatures(held, adaptive)
    probabilities = calibrated_probabilities(predictions_on(held, adaptive), calibration)
    sets, scores = fit_coverage(probabilities, held.labels, held.groups)
    review = fit_review(probabilities[Ensemble.ADAPTIVE], held.labels, held.groups)
    return Fitted(
        rule,
        calibration,
        sets.model_copy(update={"notes": held.cautions + sets.notes}),
        review.model_copy(update={"notes": held.cautions + review.notes}),
        scores,
        scored,
    )


def measure_on(variant: Variant, check: HeldOut) -> Variant:
    """Return the variant with its accuracy on `check`."""
    evaluation = evaluate(check.data, check.view_logits, check.labels, check.groups, variant.exit)
    return variant.model_copy(update={"evaluation": evaluation})


def calibrated_probabilities(
    ensembles: Sequence[Predictions], calibration: Calibration
) -> dict[Ensemble, Doubles]:
    """Return probabilities [N, C] of each ensemble, for equally frequent classes."""
    return {
        photos.ensemble: photos.probabilities(
            calibration.temperatures(photos.logits, photos.views, photos.ensemble, photos.groups)
        )
        for photos in ensembles
    }


def uncalibrated(check: HeldOut | None, reason: str) -> CalibratedVariant:
    """Return a variant without calibration, which notes the `reason`, measured on `check`."""
    variant = Variant(notes=(f"not calibrated: {reason}",))
    return CalibratedVariant(measure_on(variant, check) if check else variant, check)
