"""Temperatures fitted on held-out photos, for each ensemble and group.

A temperature other than 1 has to be shown to be better, by cross-validation. Otherwise the
ensemble's temperatures stay 1.

log T has a normal prior. Temperatures of groups are shrunk toward that of all photos (empirical
Bayes), so a group with few photos cannot have an extreme one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import logsumexp
from scipy.stats import t as student_t

from taillift.models.bundle.arrays import Doubles, Indices
from taillift.models.bundle.calibration_error import MIN_PHOTOS, ScoredPredictions, effective_count
from taillift.models.bundle.ensemble import Ensemble, MeanLogits
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.schema import GROUPS
from taillift.models.bundle.temperature import Calibration, Temperatures
from taillift.training.calibration.cross_fit import stratified_folds
from taillift.training.calibration.held_out import HeldOut, Predictions, predictions_on
from taillift.training.calibration.reliability import errors_of

# Logarithms of temperatures, from 1/12 to 12: the log likelihood is computed at the first and
# interpolated at the second.
GRID: Final = np.linspace(-2.5, 2.5, 41)
FINE_GRID: Final = np.linspace(-2.5, 2.5, 2001)
# Prior standard deviation of log T around 0; it matters only if photos say next to nothing.
WIDE: Final = 1.0
# Prior standard deviation of log T of one kind of answer around that of all answers: a tenth.
USUAL_SPREAD: Final = 0.1
MAX_ROUNDS: Final = 200
LOGITS_AT_ONCE: Final = 2**22
# With fewer photos, a group's temperature is mostly that of all answers.
FEW: Final = 30
# How sure it must be that the temperatures raise the likelihood of photos they were not fitted on.
SHOWN: Final = 0.95
# There is a note if the weighted photos are worth less than this share of their number.
UNEVEN: Final = 0.8

NEUTRAL: Final = Temperatures(pooled=1.0, groups=dict.fromkeys(GROUPS, 1.0))

# The answers of each ensemble before calibration and after it.
BeforeAndAfter = Mapping[Ensemble, tuple[ScoredPredictions, ScoredPredictions]]


class FittedTemperatures(NamedTuple):
    """The fitted temperatures, and each photo's answers at temperatures fitted without it."""

    calibration: Calibration
    scored: BeforeAndAfter


def fit_temperatures(held: HeldOut, adaptive: MeanLogits | None = None) -> FittedTemperatures:
    """Return temperatures for every ensemble, and what they change, by cross-validation.

    `held` has no duplicates. `adaptive` are the mean logits and views of its photos as the exit
    rule stops them. Every temperature is between 1/12 and 12, whatever the data are; notes say what
    the data could not show.
    """
    fits = [EnsembleFit(predictions) for predictions in predictions_on(held, adaptive)]
    calibration = _assemble(held, fits, np.arange(len(held)))
    scored, unproved = [], []
    for fit, temperatures in zip(fits, cross_validated(held, fits), strict=True):
        if not improves(fit.predictions, temperatures):
            unproved.append(fit.predictions.ensemble)
            temperatures = np.ones(len(held))
        scored.append((fit.predictions, fit.predictions.at(temperatures)))
    errors = errors_of(f"{held.data}, cross-validated", scored)
    notes = temperature_notes(held, [fit.predictions for fit in fits])
    if unproved and len(held):
        notes += (
            f"{', '.join(unproved)}: not shown, with {SHOWN:.0%} confidence, that other "
            "temperatures than 1 raise the likelihood of photos that they were not fitted on: they "
            "stay 1",
        )
    return FittedTemperatures(
        switched_off(calibration, unproved).model_copy(update={"errors": errors, "notes": notes}),
        {before.ensemble: (before.uncalibrated(), after) for before, after in scored},
    )


@dataclass(frozen=True)
class EnsembleFit:
    """The predictions of one ensemble, and their likelihood at every temperature."""

    predictions: Predictions

    @cached_property
    def nll_grid(self) -> Doubles:
        """The negative log-likelihood [N, 41] of each photo along `GRID`."""
        return nll_grid(self.predictions)

    def temperatures(self, rows: Indices) -> dict[int, Temperatures]:
        """Return temperatures by the number of views, from the photos at `rows`."""
        pooled = posterior(self.nll_curve(rows), LogTemperature(0.0, WIDE**2))
        views = self.predictions.views[rows]
        counts = np.unique(views).tolist()
        parts = [rows[views == count] for count in counts]
        means = [pooled] if len(counts) == 1 else self.shrunk(parts, pooled)
        temperatures = {}
        for count, part, mean in zip(counts, parts, means, strict=True):
            predicted = self.predictions.predicted_groups[part]
            by_group = self.shrunk([part[predicted == g] for g in range(len(GROUPS))], mean)
            temperatures[count] = Temperatures(
                pooled=mean.temperature,
                groups={
                    group: own.temperature for group, own in zip(GROUPS, by_group, strict=True)
                },
            )
        return temperatures

    def shrunk(self, parts: Sequence[Indices], pooled: "LogTemperature") -> list["LogTemperature"]:
        """Return log T of each part of the photos, shrunk toward that of all."""
        return shrunk_posteriors([self.nll_curve(part) for part in parts], pooled.mean)

    def nll_curve(self, rows: Indices) -> Doubles | None:
        """Return the negative log-likelihood of the photos at `rows`, None without any."""
        return nll_curve(self.nll_grid[rows], self.predictions.weights[rows])


def _assemble(held: HeldOut, fits: Sequence[EnsembleFit], rows: Indices) -> Calibration:
    """Return the temperatures of every ensemble, fitted on the photos at `rows`."""
    fitted = [fit.temperatures(rows) for fit in fits]
    return Calibration(
        off=fitted[0].get(1, NEUTRAL),
        full=fitted[1].get(VIEWS, NEUTRAL),
        adaptive=fitted[2] if len(fitted) > 2 else {},
        data=held.data,
        source=held.source,
        images=len(rows),
    )


def switched_off(calibration: Calibration, ensembles: Sequence[Ensemble]) -> Calibration:
    """Return the calibration with every temperature of `ensembles` 1, which it names."""
    neutral: dict[Ensemble, object] = {
        Ensemble.OFF: NEUTRAL,
        Ensemble.FULL: NEUTRAL,
        Ensemble.ADAPTIVE: dict.fromkeys(calibration.adaptive, NEUTRAL),
    }
    changes = {str(ensemble): neutral[ensemble] for ensemble in ensembles}
    return calibration.model_copy(update={**changes, "unproved": tuple(ensembles)})


def improves(predictions: Predictions, temperatures: Doubles) -> bool:
    """Return whether `temperatures` [N], fitted without each photo, are shown to be better than 1.

    They are if the mean log-likelihood rises, by a one-sided paired t test over the photos at the
    level `SHOWN`. Fewer than `FEW` photos show nothing.
    """
    weights = predictions.weights
    photos = effective_count(weights)
    if photos < FEW:
        return False
    ones = np.ones(len(predictions))
    nll = negative_log_likelihoods(predictions, np.stack([ones, temperatures], axis=1))
    gains = nll[:, 0] - nll[:, 1]
    mean = float(np.average(gains, weights=weights))
    error = float(np.sqrt(np.average((gains - mean) ** 2, weights=weights) / (photos - 1)))
    return mean > float(student_t.ppf(SHOWN, photos - 1)) * error


def cross_validated(held: HeldOut, fits: Sequence[EnsembleFit]) -> list[Doubles]:
    """Return the temperature of each photo from a fit without it, [N] for each ensemble."""
    temperatures = [np.ones(len(held)) for _ in fits]
    folds = stratified_folds(held.labels)
    for number in np.unique(folds):
        fold = np.flatnonzero(folds == number)
        calibration = _assemble(held, fits, np.flatnonzero(folds != number))
        for own, fit in zip(temperatures, fits, strict=True):
            photos = fit.predictions
            own[fold] = calibration.temperatures(
                photos.logits[fold], photos.views[fold], photos.ensemble, photos.groups
            )
    return temperatures


@dataclass(frozen=True)
class LogTemperature:
    """The mean and variance of log T."""

    mean: float
    variance: float

    @property
    def temperature(self) -> float:
        """The temperature T at the mean."""
        return float(np.exp(self.mean))


def nll_grid(predictions: Predictions) -> Doubles:
    """Return -log p(label) [N, 41] at every log T of `GRID`, for equally frequent classes."""
    shape = (len(predictions), len(GRID))
    return negative_log_likelihoods(predictions, np.broadcast_to(np.exp(GRID), shape))


def negative_log_likelihoods(predictions: Predictions, temperatures: Doubles) -> Doubles:
    """Return -log p(label) [N, K] of each photo at its K `temperatures` [N, K]."""
    nll = np.empty(temperatures.shape)
    step = max(1, LOGITS_AT_ONCE // predictions.logits.shape[1])
    for start in range(0, len(predictions), step):
        rows = slice(start, start + step)
        logits = predictions.logits[rows].astype(np.float64)
        labels = predictions.labels[rows, None]
        for column in range(temperatures.shape[1]):
            scores = logits / temperatures[rows, column, None]
            true = np.take_along_axis(scores, labels, axis=1)[:, 0]
            nll[rows, column] = logsumexp(scores, axis=1) - true
    return nll


def nll_curve(nll_grid: Doubles, weights: Doubles) -> Doubles | None:
    """Return the negative log-likelihood [2001] along `FINE_GRID`; None without photos.

    It is that of as many photos as the weights are worth.
    """
    if not len(nll_grid):
        return None
    mean = np.average(nll_grid, axis=0, weights=weights)
    curve: Doubles = effective_count(weights) * CubicSpline(GRID, mean)(FINE_GRID)
    return curve


def posterior(nll_curve: Doubles | None, prior: LogTemperature) -> LogTemperature:
    """Return the posterior of log T from a normal `prior`, by Bayes' rule along `FINE_GRID`."""
    if nll_curve is None:
        return prior
    negative_log = nll_curve + (FINE_GRID - prior.mean) ** 2 / (2 * prior.variance)
    weights = np.exp(negative_log.min() - negative_log)
    weights /= weights.sum()
    mean = float(weights @ FINE_GRID)
    return LogTemperature(mean, float(weights @ (FINE_GRID - mean) ** 2))


def shrunk_posteriors(nll_curves: Sequence[Doubles | None], pooled: float) -> list[LogTemperature]:
    """Return log T of several kinds of answers, each shrunk toward `pooled` (log T).

    The fewer photos a kind has, the more it is shrunk. A priori log T of kind k ~ N(pooled, s^2).
    With its own estimate t and the variance v of that, it becomes (t s^2 + pooled v) / (s^2 + v).
    s^2 is estimated from all kinds by expectation maximisation (Efron and Morris 1973, for log T),
    with `USUAL_SPREAD` as its own prior, which counts as one kind.
    """
    variance = USUAL_SPREAD**2
    for _ in range(MAX_ROUNDS):
        posteriors = [posterior(curve, LogTemperature(pooled, variance)) for curve in nll_curves]
        squares = sum((kind.mean - pooled) ** 2 + kind.variance for kind in posteriors)
        before, variance = variance, (USUAL_SPREAD**2 + squares) / (1 + len(posteriors))
        if abs(variance - before) < 1e-3 * before:
            break
    return posteriors


def temperature_notes(held: HeldOut, ensembles: Sequence[Predictions]) -> tuple[str, ...]:
    """Return notes on what the photos of `held` could not show, overall and by ensemble."""
    if not len(held):
        return ("there are no held-out photos: every temperature is 1, which no data support",)
    notes = [*held.cautions]
    worth = effective_count(ensembles[0].weights)
    classes = len(held.groups)
    if missing := classes - len(np.unique(held.labels)):
        notes.append(
            f"{missing} of {classes} classes have no photo: they are treated like the others"
        )
    if worth < UNEVEN * len(held):
        notes.append(
            f"{len(held)} photos, weighted so that classes count the same, are worth {worth:.0f}"
        )
    if worth < MIN_PHOTOS:
        notes.append(f"so few photos ({worth:.0f}) leave every temperature near 1 or uncertain")
    for predictions in ensembles:
        name = predictions.ensemble
        right = predictions.logits.argmax(axis=1) == predictions.labels
        if right.all() or not right.any():
            outcome = "right" if right.all() else "wrong"
            notes.append(
                f"{name}: every answer is {outcome}, so its temperature is a cautious guess"
            )
        for views in np.unique(predictions.views).tolist():
            if thin := _groups_with_few(predictions, views):
                kind = f"{name}, {views} views" if name is Ensemble.ADAPTIVE else name
                notes.append(
                    f"{kind}: too few photos for temperatures of their own, by the answer's group: "
                    + ", ".join(thin)
                )
    return tuple(notes)


def _groups_with_few(predictions: Predictions, views: int) -> list[str]:
    """Return the groups that have few answers after `views` views, with their numbers of photos."""
    thin = []
    for index, group in enumerate(GROUPS):
        rows = (predictions.predicted_groups == index) & (predictions.views == views)
        if index in predictions.groups and effective_count(predictions.weights[rows]) < FEW:
            thin.append(f"{group} {rows.sum()}")
    return thin
