"""How a variant's logits become answers: fitted on held-out photos, and measured on others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from models.bundle.coverage import Coverage, CoverageScores, PredictionSets
from models.bundle.ensemble import Ensemble
from models.bundle.exit import ExitRule, apply
from models.bundle.manifest import Variant
from models.bundle.posterior import Doubles
from models.bundle.review import Review
from models.bundle.scores import HeldOutScores
from models.bundle.temperature import Calibration
from training.calibration.answers import Answers, Verdicts, answers
from training.calibration.coverage import TARGETS, fit_coverage, measure_coverage
from training.calibration.exit import fit_exit
from training.calibration.held_out import HeldOut
from training.calibration.reliability import measure
from training.calibration.review import fit_review, measure_review
from training.calibration.temperature import fit_temperatures
from training.evaluation import evaluate

# Points of accuracy that an adaptive ensemble may lose.
TOLERANCE: Final = 0.5
Coverages = Mapping[Ensemble, tuple[CoverageScores, ...]]


@dataclass(frozen=True)
class Fitted:
    """The parts of a variant that make answers, and the scores that lie beside its graph."""

    rule: ExitRule
    calibration: Calibration
    sets: PredictionSets
    review: Review
    scores: HeldOutScores

    @property
    def variant(self) -> Variant:
        return Variant(
            exit=self.rule, calibration=self.calibration, sets=self.sets, review=self.review
        )


@dataclass(frozen=True)
class Checked:
    """What became of other photos: sets and reviews, and each answer before and after."""

    coverage: Coverages
    review: Review
    verdicts: Mapping[Ensemble, tuple[Verdicts, Verdicts]]


def calibrate(held: HeldOut, tolerance: float = TOLERANCE) -> Fitted:
    """Exit rule, temperatures, prediction sets and review, in this order: each needs the last.

    `tolerance` is in points of accuracy. Nothing is raised for want of photos: the notes of each
    part say what could not be done.
    """
    rule = fit_exit(held, tolerance)
    adaptive = apply(rule, held.view_logits)
    calibration = fit_temperatures(held, adaptive)
    ensembles = _probabilities(answers(held, adaptive), calibration)
    sets, scores = fit_coverage(ensembles, held.labels, held.groups)
    review = fit_review(ensembles[Ensemble.ADAPTIVE], held.labels, held.groups)
    return Fitted(
        rule,
        calibration,
        sets.model_copy(update={"notes": held.cautions + sets.notes}),
        review.model_copy(update={"notes": held.cautions + review.notes}),
        scores,
    )


def evaluated(variant: Variant, check: HeldOut) -> Variant:
    """The variant with its accuracy on `check`."""
    evaluation = evaluate(check.data, check.view_logits, check.labels, check.groups, variant.exit)
    return variant.model_copy(update={"evaluation": evaluation})


def checked(fitted: Fitted, check: HeldOut) -> tuple[Variant, Checked]:
    """The variant with its errors on photos that it was not fitted on, and what became of them."""
    calibration, scores = fitted.calibration, fitted.scores
    interpolation = fitted.sets.interpolation
    every = answers(check, apply(fitted.rule, check.view_logits))
    ensembles = _probabilities(every, calibration)
    coverage = {
        ensemble: _covered(
            Coverage(scores.ensembles[ensemble], scores.labels, check.groups, interpolation),
            probabilities,
            check,
        )
        for ensemble, probabilities in ensembles.items()
    }
    errors = measure(calibration, check.data, every)
    measured = calibration.model_copy(update={"errors": errors})
    return (
        replace(fitted, calibration=measured).variant,
        Checked(
            coverage,
            measure_review(fitted.review, ensembles[Ensemble.ADAPTIVE], check.labels, check.groups),
            {one.ensemble: (one.uncalibrated(), one.calibrated(calibration)) for one in every},
        ),
    )


def _covered(
    coverage: Coverage, probabilities: Doubles, check: HeldOut
) -> tuple[CoverageScores, ...]:
    return tuple(
        measure_coverage(coverage.sets(probabilities, target), check.labels, check.groups, target)
        for target in TARGETS
    )


def _probabilities(every: list[Answers], calibration: Calibration) -> dict[Ensemble, Doubles]:
    """[N, C] where classes are equally frequent, for each ensemble."""
    return {
        one.ensemble: one.probabilities(
            calibration.temperatures(one.logits, one.views, one.ensemble, one.groups)
        )
        for one in every
    }
