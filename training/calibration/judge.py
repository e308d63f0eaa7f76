"""Every variant of a bundle, fitted and measured on photos that the model has not seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.bundle.ensemble import Floats
from models.bundle.manifest import Variant
from models.bundle.precision import Precision
from models.bundle.record import Group
from models.bundle.scores import HeldOutScores
from models.bundle.session import Session
from models.lift.backbone import load_backbone
from training.calibration.calibrate import TOLERANCE, Checked, calibrate, checked, evaluated
from training.calibration.crossfit import Write, cross_fit
from training.calibration.held_out import HeldOut
from training.calibration.views import view_logits
from training.checkpoint import Facts
from training.data.split import SplitName
from training.dataset import Dataset
from training.train import Trainer

Sessions = Mapping[Precision, Session]
HeldOuts = dict[Precision, HeldOut]


@dataclass(frozen=True)
class Judged:
    """A variant as the manifest has it, and what the report is made of.

    `check` are the photos that it was evaluated on, None without any; `checked` is there where it
    was fitted on others.
    """

    variant: Variant
    scores: HeldOutScores | None = None
    check: HeldOut | None = None
    checked: Checked | None = None


class Judge:
    """Measures the graphs of one checkpoint."""

    def __init__(
        self, dataset: Dataset, facts: Facts, groups: Sequence[Group], log_prior: Floats
    ) -> None:
        """`log_prior` [C] is what the graphs' logits carry."""
        self._dataset = dataset
        self._facts = facts
        self._groups = groups
        self._log_prior = log_prior

    def evaluate(self, sessions: Sessions) -> dict[Precision, Judged]:
        """Accuracy on the held-out photos, if there are any."""
        found = self._measured(sessions)
        return {
            one: Judged(evaluated(Variant(), found[one]), check=found[one])
            if one in found
            else Judged(Variant())
            for one in sessions
        }

    def calibrate(
        self,
        sessions: Sessions,
        write: Write,
        backbone: str | None,
        tolerance: float = TOLERANCE,
    ) -> dict[Precision, Judged]:
        """Everything fitted on val/, or without it by cross-fitting; then measured.

        `write` makes the graphs of a model that cross-fitting has trained.

        Raises `UserError` where no photo can be held out.
        """
        check = self._measured(sessions)
        if self._dataset.val is None:
            fit = self._cross_fitted(write, backbone)
        elif self._dataset.test is None:
            fit = check
        else:
            fit = self._of_split(sessions, "val")
        return {one: _judged(fit[one], check.get(one), tolerance) for one in sessions}

    def _measured(self, sessions: Sessions) -> HeldOuts:
        held = self._dataset.held_out
        return self._of_split(sessions, held[0]) if held else {}

    def _of_split(self, sessions: Sessions, name: SplitName) -> HeldOuts:
        split = getattr(self._dataset, name)
        preprocessing = self._facts.preprocessing
        title = f"Measuring the {name} photos"
        found = view_logits(sessions, self._log_prior, split, preprocessing, title)
        labels = np.asarray(split.labels)
        data = f"{self._facts.data} {name}"
        return {
            one: HeldOut(data, "validation", logits, labels, self._groups)
            for one, logits in found.items()
        }

    def _cross_fitted(self, write: Write, backbone: str | None) -> HeldOuts:
        trainer = Trainer(self._dataset, load_backbone(backbone or self._facts.backbone))
        return cross_fit(trainer, self._facts, write, self._log_prior, self._groups)


def _judged(fit: HeldOut, check: HeldOut | None, tolerance: float) -> Judged:
    fitted = calibrate(fit, tolerance)
    if check is None:
        return Judged(fitted.variant, fitted.scores)
    if check is fit:
        return Judged(evaluated(fitted.variant, check), fitted.scores, check)
    variant, seen = checked(fitted, check)
    return Judged(evaluated(variant, check), fitted.scores, check, seen)
