"""Temperatures fitted on held-out photos."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from models.bundle.images import VIEWS
from models.bundle.posterior import Doubles
from models.bundle.record import GROUPS
from models.bundle.temperature import Calibration, Indices, Temperatures
from training.calibration.answers import Answers, Combined, answers
from training.calibration.evidence import WIDE, Belief, believe, believe_all, evidence, surprises
from training.calibration.held_out import HeldOut
from training.calibration.notes import notes_on
from training.calibration.reliability import changes_of

FOLDS: Final = 5


def fit_temperatures(held: HeldOut, adaptive: Combined | None = None) -> Calibration:
    """Temperatures for every ensemble, and what they change, by cross-validation.

    `adaptive` are the combined logits and views of the photos in `held`. Copies of a photo count
    once. Every temperature is between 1/12 and 12, whatever the data are; notes say what these
    could not.
    """
    rows = held.distinct
    chosen = (adaptive[0][rows], adaptive[1][rows]) if adaptive else None
    every = [Fit(one) for one in answers(held.only(rows), chosen)]
    calibration = _calibration(held, every, np.arange(len(rows)))
    errors = changes_of(
        f"{held.data}, cross-validated",
        [
            (one.answers, one.answers.at(at))
            for one, at in zip(every, _unseen(held, every), strict=True)
        ],
    )
    notes = notes_on(held, [one.answers for one in every])
    return calibration.model_copy(update={"errors": errors, "notes": notes})


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
    for fold in _folds(labels):
        calibration = _calibration(held, every, np.setdiff1d(np.arange(len(labels)), fold))
        for temperatures, fit in zip(found, every, strict=True):
            one = fit.answers
            temperatures[fold] = calibration.temperatures(
                one.logits[fold], one.views[fold], one.ensemble, one.groups
            )
    return found


def _folds(labels: Indices) -> list[Indices]:
    """Every class is spread over all folds as evenly as it can be."""
    order = np.lexsort((np.random.default_rng(0).random(len(labels)), labels))
    return [order[first::FOLDS] for first in range(min(FOLDS, len(labels)))]
