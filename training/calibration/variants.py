"""How a variant's logits become answers: fitted on held-out photos, and measured on others."""

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
from taillift.training.calibration.held_out import HeldOut, view_logits
from taillift.training.calibration.prediction_sets import (
    TARGETS,
    Estimates,
    fit_coverage,
    measure_coverage,
)
from taillift.training.calibration.predictions import Predictions, answers
from taillift.training.calibration.reliability import measure
from taillift.training.calibration.review import fit_review, measure_review
from taillift.training.calibration.temperature import Unseen, fit_temperatures
from taillift.training.data.dataset import Dataset
from taillift.training.data.split import Split
from taillift.training.evaluation import evaluate

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
    adaptive = run_stages(rule, held.view_logits)
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
    every = answers(check, run_stages(fitted.rule, check.view_logits))
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


def measure_on(variant: Variant, check: HeldOut) -> Variant:
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


def _probabilities(every: list[Predictions], calibration: Calibration) -> dict[Ensemble, Doubles]:
    """[N, C] where classes are equally frequent, for each ensemble."""
    return {
        one.ensemble: one.probabilities(
            calibration.temperatures(one.logits, one.views, one.ensemble, one.groups)
        )
        for one in every
    }


NOTHING_HELD_OUT: Final = (
    "there is no val/, and every class has a single training photo, which cannot be held out"
)
NOT_ASKED: Final = "it was not asked for"

Sessions = Mapping[Precision, Session]
HeldOuts = Mapping[Precision, HeldOut]


@dataclass(frozen=True)
class CalibratedVariant:
    """A variant as the manifest has it, and what the report is made of.

    `check` are the photos that it was evaluated on, None without any; `fitted` is None where it is
    not calibrated.
    """

    variant: Variant
    check: HeldOut | None = None
    fitted: Fitted | None = None

    def as_made(self, made: str | None) -> "CalibratedVariant":
        """With what is known of its graph."""
        return replace(self, variant=self.variant.model_copy(update={"made": made}))


@dataclass(frozen=True)
class VariantCalibrator:
    """Measures graphs on a set's held-out photos.

    The classes of `dataset` are the graphs', in their order, with one of `groups` each; `log_prior`
    [C] is what their logits carry.
    """

    dataset: Dataset
    preprocessing: Preprocessing
    groups: Sequence[Group]
    log_prior: Doubles

    def evaluate(self, sessions: Sessions) -> dict[Precision, CalibratedVariant]:
        """Accuracy on test/, else on val/, else nothing."""
        held = self.dataset.held_out
        found = self._measured(sessions, *held) if held else {}
        return {one: _uncalibrated(found.get(one), NOT_ASKED) for one in sessions}

    def calibrate(
        self,
        sessions: Sessions,
        cross_fit: Callable[[], HeldOuts] = dict,
        tolerance: float = TOLERANCE,
    ) -> dict[Precision, CalibratedVariant]:
        """Everything fitted on val/, or without it on what `cross_fit` holds out; then measured.

        What `cross_fit` gives may be nothing. Raises what it raises.
        """
        val, test = self.dataset.val, self.dataset.test
        fit = self._measured(sessions, "val", val) if val else cross_fit()
        check = self._measured(sessions, "test", test) if test else fit if val else {}
        fit = _without_copies(fit)
        return {
            one: _judged(fit[one], check.get(one), bool(test), tolerance)
            if one in fit
            else _uncalibrated(check.get(one), NOTHING_HELD_OUT)
            for one in sessions
        }

    def _measured(self, sessions: Sessions, name: str, split: Split) -> HeldOuts:
        title = f"Measuring the {name} photos"
        found = view_logits(sessions, self.log_prior, split, self.preprocessing, title)
        labels, data = np.asarray(split.labels), f"{self.dataset.name} {name}"
        return {
            one: HeldOut(data, "validation", logits, labels, self.groups)
            for one, logits in found.items()
        }


def _without_copies(every: HeldOuts) -> HeldOuts:
    """By fp32's logits: int8's of one photo can differ from batch to batch."""
    if not every:
        return every
    distinct = every[Precision.FP32].distinct
    return {one: held.without_copies(distinct) for one, held in every.items()}


def _judged(
    fit: HeldOut, check: HeldOut | None, unseen: bool, tolerance: float
) -> CalibratedVariant:
    """`check` are photos that `fit` has not, where they are `unseen`."""
    fitted = calibrate(fit, tolerance)
    if check is None:
        return CalibratedVariant(fitted.variant, fitted=fitted)
    if unseen:
        fitted = checked(fitted, check)
    return CalibratedVariant(measure_on(fitted.variant, check), check, fitted)


def _uncalibrated(check: HeldOut | None, reason: str) -> CalibratedVariant:
    variant = Variant(notes=(f"not calibrated: {reason}",))
    return CalibratedVariant(measure_on(variant, check) if check else variant, check=check)
