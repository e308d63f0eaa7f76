"""How a variant's logits become answers: fitted on held-out photos, and measured on others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from models.bundle.coverage import Coverage, PredictionSets
from models.bundle.ensemble import Ensemble
from models.bundle.exit import ExitRule, apply
from models.bundle.manifest import Variant
from models.bundle.posterior import Doubles
from models.bundle.review import Review
from models.bundle.scores import HeldOutScores
from models.bundle.temperature import Calibration
from training.calibration.answers import Answers, answers
from training.calibration.coverage import TARGETS, Estimates, fit_coverage, measure_coverage
from training.calibration.exit import fit_exit
from training.calibration.held_out import HeldOut
from training.calibration.reliability import measure
from training.calibration.review import fit_review, measure_review
from training.calibration.temperature import Unseen, fit_temperatures
from training.evaluation import evaluate

# Points of accuracy that an adaptive ensemble may lose.
TOLERANCE: Final = 0.5


@dataclass(frozen=True)
class Fitted:
    """The parts of a variant that make answers, and the scores that lie beside its graph.

    `verdicts` are the answers to the photos that the parts say they were measured on, before and
    after calibration.
    """

    rule: ExitRule
    calibration: Calibration
    sets: PredictionSets
    review: Review
    scores: HeldOutScores
    verdicts: Unseen

    @property
    def variant(self) -> Variant:
        return Variant(
            exit=self.rule, calibration=self.calibration, sets=self.sets, review=self.review
        )


def calibrate(held: HeldOut, tolerance: float = TOLERANCE) -> Fitted:
    """Exit rule, temperatures, prediction sets and review, in this order: each needs the last.

    `tolerance` is in points of accuracy. Copies of a photo count once. Nothing is raised for want
    of photos: the notes of each part say what could not be done.
    """
    held = held.without_copies(held.distinct)
    rule = fit_exit(held, tolerance)
    adaptive = apply(rule, held.view_logits)
    calibration, verdicts = fit_temperatures(held, adaptive)
    ensembles = _probabilities(answers(held, adaptive), calibration)
    sets, scores = fit_coverage(ensembles, held.labels, held.groups)
    review = fit_review(ensembles[Ensemble.ADAPTIVE], held.labels, held.groups)
    return Fitted(
        rule,
        calibration,
        sets.model_copy(update={"notes": held.cautions + sets.notes}),
        review.model_copy(update={"notes": held.cautions + review.notes}),
        scores,
        verdicts,
    )


def checked(fitted: Fitted, check: HeldOut) -> Fitted:
    """The same parts, measured on photos that they were not fitted on."""
    every = answers(check, apply(fitted.rule, check.view_logits))
    ensembles = _probabilities(every, fitted.calibration)
    return replace(
        fitted,
        calibration=fitted.calibration.model_copy(
            update={"errors": measure(fitted.calibration, check.data, every)}
        ),
        sets=fitted.sets.model_copy(
            update={"data": check.data, "estimates": _covered(fitted, ensembles, check)}
        ),
        review=measure_review(
            fitted.review, check.data, ensembles[Ensemble.ADAPTIVE], check.labels, check.groups
        ),
        verdicts={
            one.ensemble: (one.uncalibrated(), one.calibrated(fitted.calibration)) for one in every
        },
    )


def evaluated(variant: Variant, check: HeldOut) -> Variant:
    """The variant with its accuracy on `check`."""
    evaluation = evaluate(check.data, check.view_logits, check.labels, check.groups, variant.exit)
    return variant.model_copy(update={"evaluation": evaluation})


def _covered(fitted: Fitted, ensembles: Mapping[Ensemble, Doubles], check: HeldOut) -> Estimates:
    scores, interpolation = fitted.scores, fitted.sets.interpolation
    found: Estimates = {}
    for ensemble, probabilities in ensembles.items():
        held_out = scores.ensembles[ensemble]
        coverage = Coverage(held_out, scores.labels, check.groups, interpolation)
        found[ensemble] = tuple(
            measure_coverage(
                coverage.sets(probabilities, target), check.labels, check.groups, target
            )
            for target in TARGETS
        )
    return found


def _probabilities(every: list[Answers], calibration: Calibration) -> dict[Ensemble, Doubles]:
    """[N, C] where classes are equally frequent, for each ensemble."""
    return {
        one.ensemble: one.probabilities(
            calibration.temperatures(one.logits, one.views, one.ensemble, one.groups)
        )
        for one in every
    }
