"""Temperatures fitted on held-out photos."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import logsumexp

from taillift.models.bundle.arrays import Doubles, Indices
from taillift.models.bundle.ensemble import Ensemble, MeanLogits
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.schema import GROUPS
from taillift.models.bundle.temperature import Calibration, Temperatures
from taillift.training.calibration.cross_fit import spread
from taillift.training.calibration.held_out import HeldOut
from taillift.training.calibration.predictions import (
    Predictions,
    ScoredPredictions,
    answers,
    effective,
)
from taillift.training.calibration.reliability import FEWEST, changes_of

# Logarithms of temperatures, from 1/12 to 12: where losses are computed, and where compared.
GRID: Final = np.linspace(-2.5, 2.5, 41)
FINE: Final = np.linspace(-2.5, 2.5, 2001)
# Prior standard deviation of log T, around 0; it only counts where photos say next to nothing.
WIDE: Final = 1.0
# How far log T of one kind of answer is expected from all answers', before any photo: a tenth.
USUAL_SPREAD: Final = 0.1
ROUNDS: Final = 200
AT_ONCE: Final = 2**22


@dataclass(frozen=True)
class LogTemperature:
    """Mean and variance of log T."""

    mean: float
    variance: float

    @property
    def temperature(self) -> float:
        return float(np.exp(self.mean))


def nll_grid(answers: Predictions) -> Doubles:
    """-log p(label) [N, 41] at every log temperature of `GRID`, for equally frequent classes."""
    found = np.empty((len(answers), len(GRID)))
    step = max(1, AT_ONCE // answers.logits.shape[1])
    for start in range(0, len(answers), step):
        rows = slice(start, start + step)
        logits, labels = answers.logits[rows].astype(np.float64), answers.labels[rows, None]
        for place, log_t in enumerate(GRID):
            scores = logits * np.exp(-log_t)
            true = np.take_along_axis(scores, labels, axis=1)[:, 0]
            found[rows, place] = logsumexp(scores, axis=1) - true
    return found


def evidence(nll_grid: Doubles, weights: Doubles) -> Doubles | None:
    """-log likelihood [2001] along `FINE`, of as many photos as the weights are worth.

    None without photos.
    """
    if not len(nll_grid):
        return None
    mean = np.average(nll_grid, axis=0, weights=weights)
    curve: Doubles = effective(weights) * CubicSpline(GRID, mean)(FINE)
    return curve


def posterior_of(evidence: Doubles | None, prior: LogTemperature) -> LogTemperature:
    """Bayes' rule along `FINE`, from a normal prior of log T."""
    if evidence is None:
        return prior
    surprise = evidence + (FINE - prior.mean) ** 2 / (2 * prior.variance)
    weights = np.exp(surprise.min() - surprise)
    weights /= weights.sum()
    mean = float(weights @ FINE)
    return LogTemperature(mean, float(weights @ (FINE - mean) ** 2))


def shrunk_posteriors(every: Sequence[Doubles | None], pooled: float) -> list[LogTemperature]:
    """Of several kinds of answers, each drawn to `pooled` (log T) as far as its photos are few.

    A priori log T of kind k ~ N(pooled, s^2): with own estimate t and its variance v, it becomes
    (t s^2 + pooled v) / (s^2 + v). s^2 is estimated from all kinds by expectation maximisation
    (Efron and Morris 1973, for log T), with one kind's worth of `USUAL_SPREAD` as its own prior.
    """
    spread = USUAL_SPREAD**2
    for _ in range(ROUNDS):
        beliefs = [posterior_of(one, LogTemperature(pooled, spread)) for one in every]
        squares = sum((one.mean - pooled) ** 2 + one.variance for one in beliefs)
        before, spread = spread, (USUAL_SPREAD**2 + squares) / (1 + len(beliefs))
        if abs(spread - before) < 1e-3 * before:
            break
    return beliefs


# Below, a group's answers have mostly the temperature of all.
FEW: Final = 30
# Weights that are worth less than this share of the photos are worth a note.
UNEVEN: Final = 0.8


def notes_on(held: HeldOut, every: Sequence[Predictions]) -> tuple[str, ...]:
    """`every` ensemble's answers to the photos of `held`."""
    if not len(held):
        return ("there are no held-out photos: every temperature is 1, which no data support",)
    notes = list(_on_photos(held, effective(every[0].weights)))
    for one in every:
        notes += _on_answers(one)
    return tuple(notes)


def _on_photos(held: HeldOut, worth: float) -> Iterator[str]:
    yield from held.cautions
    classes = len(held.groups)
    if missing := classes - len(np.unique(held.labels)):
        yield f"{missing} of {classes} classes have no photo: they are taken to be like the others"
    if worth < UNEVEN * len(held):
        yield f"{len(held)} photos, weighted so that classes count alike, are worth {worth:.0f}"
    if worth < FEWEST:
        yield f"so few photos ({worth:.0f}) leave every temperature near 1 or uncertain"


def _on_answers(one: Predictions) -> Iterator[str]:
    right = one.logits.argmax(axis=1) == one.labels
    if right.all() or not right.any():
        which = "right" if right.all() else "wrong"
        yield f"{one.ensemble}: every answer is {which}, so its temperature is a cautious guess"
    for views in np.unique(one.views).tolist():
        if thin := list(_thin_groups(one, views)):
            among = (
                f"{one.ensemble}, {views} views"
                if one.ensemble is Ensemble.ADAPTIVE
                else one.ensemble
            )
            yield (
                f"{among}: too few photos for temperatures of their own, by the answer's group: "
                + ", ".join(thin)
            )


def _thin_groups(one: Predictions, views: int) -> Iterator[str]:
    for place, group in enumerate(GROUPS):
        rows = (one.predicted_groups == place) & (one.views == views)
        if place in one.groups and effective(one.weights[rows]) < FEW:
            yield f"{group} {rows.sum()}"


# Of each photo's answer before calibration, and after one that was fitted without the photo.
Unseen = Mapping[Ensemble, tuple[ScoredPredictions, ScoredPredictions]]


class FittedTemperatures(NamedTuple):
    calibration: Calibration
    verdicts: Unseen


def fit_temperatures(held: HeldOut, adaptive: MeanLogits | None = None) -> FittedTemperatures:
    """Temperatures for every ensemble, and what they change, by cross-validation.

    `adaptive` are the combined logits and views of the photos in `held`, which are no copies of
    each other. Every temperature is between 1/12 and 12, whatever the data are; notes say what
    these could not.
    """
    every = [Fit(one) for one in answers(held, adaptive)]
    calibration = _calibration(held, every, np.arange(len(held)))
    measured = [
        (one.answers, one.answers.at(at))
        for one, at in zip(every, _unseen(held, every), strict=True)
    ]
    errors = changes_of(f"{held.data}, cross-validated", measured)
    notes = notes_on(held, [one.answers for one in every])
    return FittedTemperatures(
        calibration.model_copy(update={"errors": errors, "notes": notes}),
        {one.ensemble: (one.uncalibrated(), after) for one, after in measured},
    )


@dataclass(frozen=True)
class Fit:
    """One ensemble's answers and how surprising each is at every temperature."""

    answers: Predictions

    @cached_property
    def nll_grid(self) -> Doubles:
        return nll_grid(self.answers)

    def temperatures(self, rows: Indices) -> dict[int, Temperatures]:
        """By the number of views, from the photos at `rows`."""
        pooled = posterior_of(self._evidence(rows), LogTemperature(0.0, WIDE**2))
        views = self.answers.views
        counts = np.unique(views).tolist()
        parts = [rows[views[rows] == count] for count in counts]
        found = [pooled] if len(counts) == 1 else self._all(parts, pooled)
        return {
            count: self._by_group(part, one)
            for count, part, one in zip(counts, parts, found, strict=True)
        }

    def _by_group(self, rows: Indices, pooled: LogTemperature) -> Temperatures:
        groups = self.answers.predicted_groups[rows]
        found = self._all([rows[groups == place] for place in range(len(GROUPS))], pooled)
        return Temperatures(
            pooled=pooled.temperature,
            groups={group: one.temperature for group, one in zip(GROUPS, found, strict=True)},
        )

    def _all(self, parts: Sequence[Indices], pooled: LogTemperature) -> list[LogTemperature]:
        return shrunk_posteriors([self._evidence(part) for part in parts], pooled.mean)

    def _evidence(self, rows: Indices) -> Doubles | None:
        return evidence(self.nll_grid[rows], self.answers.weights[rows])


def _calibration(held: HeldOut, every: Sequence[Fit], rows: Indices) -> Calibration:
    fitted = [one.temperatures(rows) for one in every]
    none = Temperatures(pooled=1.0, groups={})
    return Calibration(
        off=fitted[0].get(1, none),
        full=fitted[1].get(VIEWS, none),
        adaptive=fitted[2] if len(fitted) > 2 else {},
        data=held.data,
        source=held.source,
        images=len(rows),
    )


def _unseen(held: HeldOut, every: Sequence[Fit]) -> list[Doubles]:
    """For each ensemble the temperatures [N], of each photo from a fit without it."""
    labels = every[0].answers.labels
    found = [np.ones(len(labels)) for _ in every]
    folds = spread(labels)
    for number in np.unique(folds):
        fold = np.flatnonzero(folds == number)
        calibration = _calibration(held, every, np.flatnonzero(folds != number))
        for temperatures, fit in zip(found, every, strict=True):
            one = fit.answers
            temperatures[fold] = calibration.temperatures(
                one.logits[fold], one.views[fold], one.ensemble, one.groups
            )
    return found
