"""Every variant of a bundle, fitted and measured on photos that the model has not seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from models.bundle.manifest import Variant
from models.bundle.posterior import Doubles
from models.bundle.precision import Precision
from models.bundle.preprocessing import Preprocessing
from models.bundle.record import Group
from models.bundle.session import Session
from training.calibration.calibrate import TOLERANCE, Fitted, calibrate, checked, evaluated
from training.calibration.held_out import HeldOut
from training.calibration.views import view_logits
from training.data.split import Split
from training.dataset import Dataset

NOTHING_HELD_OUT: Final = (
    "there is no val/, and every class has a single training photo, which cannot be held out"
)
NOT_ASKED: Final = "it was not asked for"

Sessions = Mapping[Precision, Session]
HeldOuts = Mapping[Precision, HeldOut]


@dataclass(frozen=True)
class Judged:
    """A variant as the manifest has it, and what the report is made of.

    `check` are the photos that it was evaluated on, None without any; `fitted` is None where it is
    not calibrated.
    """

    variant: Variant
    check: HeldOut | None = None
    fitted: Fitted | None = None

    def as_made(self, made: str | None) -> "Judged":
        """With what is known of its graph."""
        return replace(self, variant=self.variant.model_copy(update={"made": made}))


@dataclass(frozen=True)
class Judge:
    """Measures graphs on a set's held-out photos.

    The classes of `dataset` are the graphs', in their order, with one of `groups` each; `log_prior`
    [C] is what their logits carry.
    """

    dataset: Dataset
    preprocessing: Preprocessing
    groups: Sequence[Group]
    log_prior: Doubles

    def evaluate(self, sessions: Sessions) -> dict[Precision, Judged]:
        """Accuracy on test/, else on val/, else nothing."""
        held = self.dataset.held_out
        found = self._measured(sessions, *held) if held else {}
        return {one: _uncalibrated(found.get(one), NOT_ASKED) for one in sessions}

    def calibrate(
        self,
        sessions: Sessions,
        cross_fit: Callable[[], HeldOuts] = dict,
        tolerance: float = TOLERANCE,
    ) -> dict[Precision, Judged]:
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


def _judged(fit: HeldOut, check: HeldOut | None, unseen: bool, tolerance: float) -> Judged:
    """`check` are photos that `fit` has not, where they are `unseen`."""
    fitted = calibrate(fit, tolerance)
    if check is None:
        return Judged(fitted.variant, fitted=fitted)
    if unseen:
        fitted = checked(fitted, check)
    return Judged(evaluated(fitted.variant, check), check, fitted)


def _uncalibrated(check: HeldOut | None, reason: str) -> Judged:
    variant = Variant(notes=(f"not calibrated: {reason}",))
    return Judged(evaluated(variant, check) if check else variant, check=check)
