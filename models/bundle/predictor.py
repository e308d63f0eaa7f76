"""What combined logits say: confidence, sets of labels, and what a person should look at."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from taillift.models.bundle.arrays import Counts, Doubles, Flags, Floats
from taillift.models.bundle.ensemble import Ensemble, ExitRule
from taillift.models.bundle.folder import HeldOutScores, read_scores
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.posterior import Prior, log_prior, log_shares, posterior, without_prior
from taillift.models.bundle.prediction_sets import Coverage
from taillift.models.bundle.review import Decision
from taillift.models.bundle.schema import Precision
from taillift.models.bundle.temperature import group_indices
from taillift.models.errors import UserError


class Prediction(NamedTuple):
    """One image's probabilities [C]: under the prior that was asked for, and the uniform one."""

    asked: Doubles
    uniform: Doubles


class Predictor:
    """Makes answers of one variant's logits."""

    def __init__(
        self, manifest: Manifest, precision: Precision, scores: HeldOutScores | None = None
    ) -> None:
        self.manifest = manifest
        self.precision = precision
        self.variant = manifest.variants[precision]
        self._groups = group_indices([one.group for one in manifest.classes])
        self._carried = log_shares([one.prior for one in manifest.classes])
        self._uniform = log_prior(Prior.UNIFORM, manifest.counts)
        self._coverage = self._coverages(scores)

    @classmethod
    def open(cls, bundle: Path, manifest: Manifest, precision: Precision) -> "Predictor":
        """Raises `UserError` where the bundle lacks the variant or its calibration is damaged."""
        if precision not in manifest.variants:
            had = ", ".join(manifest.variants)
            raise UserError(
                f"{bundle} has no {precision} variant (it has {had}): choose one of them, or "
                f"export it with --variant {precision}"
            )
        variant = manifest.variants[precision]
        ensembles = [one for one in Ensemble if one is not Ensemble.ADAPTIVE or variant.exit]
        scores = (
            read_scores(bundle, precision, ensembles, len(manifest.classes))
            if variant.sets
            else None
        )
        return cls(manifest, precision, scores)

    @property
    def usual_ensemble(self) -> Ensemble:
        """Where none is asked for."""
        return Ensemble.ADAPTIVE if self.variant.exit else Ensemble.FULL

    def exit_rule(self, ensemble: Ensemble) -> ExitRule | None:
        """When an image may stop; None where it takes all views of `ensemble`.

        Raises `UserError` where that is adaptive and the bundle has no rule.
        """
        if ensemble is not Ensemble.ADAPTIVE:
            return None
        if self.variant.exit is None:
            raise UserError(
                "this bundle has no rule for ensemble=adaptive (it is not calibrated): use full or "
                "off"
            )
        return self.variant.exit

    def without_prior(self, logits: Floats) -> Floats:
        """The graph's logits [N, C] less the log prior that they carry."""
        return without_prior(logits, self._carried)

    def probabilities(
        self,
        logits: Floats,
        views: Counts,
        ensemble: Ensemble,
        log_target: Doubles | None = None,
    ) -> Doubles:
        """[N, C] of combined logits [N, C] over `views` [N], under a log prior [C] or the uniform.

        The logits are those of `without_prior`. Calibrated where the bundle is.
        """
        target = self._uniform if log_target is None else log_target
        return posterior(logits, target, self._temperatures(logits, views, ensemble))

    def read(
        self, logits: Floats, views: int, ensemble: Ensemble, log_target: Doubles
    ) -> Prediction:
        """Of one image's combined logits [C]."""
        rows = logits[None]
        temperatures = self._temperatures(rows, np.array([views]), ensemble)
        uniform = posterior(rows, self._uniform, temperatures)[0]
        if np.array_equal(log_target, self._uniform):
            return Prediction(uniform, uniform)
        return Prediction(posterior(rows, log_target, temperatures)[0], uniform)

    def sets(self, probabilities: Doubles, ensemble: Ensemble, coverage: float) -> Flags | None:
        """Which labels each image's set has, [N, C], of probabilities under the uniform prior.

        None where the bundle has no held-out photos to make sets from.
        """
        thresholds = self._coverage.get(ensemble)
        return thresholds.sets(probabilities, coverage) if thresholds else None

    def members(
        self, prediction: Prediction, ensemble: Ensemble, coverage: float | None
    ) -> list[int] | None:
        """The classes of one image's set, the most probable first; None without a `coverage`.

        They do not depend on the prior, except that the answer itself is always among them.
        """
        if coverage is None:
            return None
        held = self.sets(prediction.uniform[None], ensemble, coverage)
        if held is None:
            return None
        held[0, prediction.asked.argmax()] = True
        order = np.argsort(-prediction.asked, kind="stable")
        return [int(index) for index in order if held[0, index]]

    def decide(self, prediction: Prediction) -> Decision | None:
        """On one image's answer under the uniform prior; None where the bundle cannot say."""
        if self.variant.review is None:
            return None
        index = int(prediction.uniform.argmax())
        group = self.manifest.classes[index].group
        return self.variant.review.decide(float(prediction.uniform[index]), group)

    def _temperatures(self, logits: Floats, views: Counts, ensemble: Ensemble) -> Doubles:
        """[N], 1 where the bundle is not calibrated."""
        calibration = self.variant.calibration
        if calibration is None:
            return np.ones(len(logits))
        return calibration.temperatures(logits, views, ensemble, self._groups)

    def _coverages(self, scores: HeldOutScores | None) -> dict[str, Coverage]:
        if scores is None or self.variant.sets is None:
            return {}
        groups = [one.group for one in self.manifest.classes]
        return {
            ensemble: Coverage(values, scores.labels, groups, self.variant.sets.interpolation)
            for ensemble, values in scores.ensembles.items()
        }
