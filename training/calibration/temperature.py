"""Temperatures fitted on held-out photos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from models.bundle.ensemble import Ensemble
from models.bundle.exit import Combined
from models.bundle.images import VIEWS
from models.bundle.posterior import Doubles
from models.bundle.record import GROUPS
from models.bundle.temperature import Calibration, Indices, Temperatures
from training.calibration.answers import Answers, Verdicts, answers
from training.calibration.evidence import WIDE, Belief, believe, believe_all, evidence, surprises
from training.calibration.folds import spread
from training.calibration.held_out import HeldOut
from training.calibration.notes import notes_on
from training.calibration.reliability import changes_of

# Of each photo's answer before calibration, and after one that was fitted without the photo.
Unseen = Mapping[Ensemble, tuple[Verdicts, Verdicts]]


class FittedTemperatures(NamedTuple):
    calibration: Calibration
    verdicts: Unseen


def fit_temperatures(held: HeldOut, adaptive: Combined | None = None) -> FittedTemperatures:
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

    answers: Answers

    @cached_property
    def surprises(self) -> Doubles:
        return surprises(self.answers)

    def temperatures(self, rows: Indices) -> dict[int, Temperatures]:
        """By the number of views, from the photos at `rows`."""
        pooled = believe(self._evidence(rows), Belief(0.0, WIDE**2))
        views = self.answers.views
        counts = np.unique(views).tolist()
        parts = [rows[views[rows] == count] for count in counts]
        found = [pooled] if len(counts) == 1 else self._all(parts, pooled)
        return {
            count: self._by_group(part, one)
            for count, part, one in zip(counts, parts, found, strict=True)
        }

    def _by_group(self, rows: Indices, pooled: Belief) -> Temperatures:
        groups = self.answers.predicted_groups[rows]
        found = self._all([rows[groups == place] for place in range(len(GROUPS))], pooled)
        return Temperatures(
            pooled=pooled.temperature,
            groups={group: one.temperature for group, one in zip(GROUPS, found, strict=True)},
        )

    def _all(self, parts: Sequence[Indices], pooled: Belief) -> list[Belief]:
        return believe_all([self._evidence(part) for part in parts], pooled.mean)

    def _evidence(self, rows: Indices) -> Doubles | None:
        return evidence(self.surprises[rows], self.answers.weights[rows])


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
