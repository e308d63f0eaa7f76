"""From an image's outputs to what is said of it: confidence, decision and set of labels."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from taillift.models.bundle.arrays import Counts, Doubles, Flags, Floats, group_indices
from taillift.models.bundle.ensemble import Ensemble, ImageOutputs, Stages, all_views
from taillift.models.bundle.folder import HeldOutScores, read_scores
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.posterior import (
    Prior,
    log_prior,
    log_shares,
    posterior,
    without_prior,
)
from taillift.models.bundle.prediction_sets import Coverage
from taillift.models.bundle.review import Decision, DecisionReason
from taillift.models.bundle.schema import Precision
from taillift.models.errors import UserError


class Prediction(NamedTuple):
    """One image's probabilities [C] under the requested and the uniform prior, and what follows.

    `views` is the number of views behind them and `temperature` their softmax temperature, 1
    without calibration. `reason` is that of the `decision`; both are None if a prior other than the
    uniform one was requested, or if the bundle cannot decide. `members` are the classes of the
    prediction set, the most probable first; None if no coverage was requested, or if the bundle has
    no sets.
    """

    requested: Doubles
    uniform: Doubles
    views: int
    temperature: float
    reason: DecisionReason | None = None
    members: list[int] | None = None

    @property
    def decision(self) -> Decision | None:
        """The decision on the answer, if there is one."""
        return self.reason.decision if self.reason else None


class Predictor:
    """Turns the outputs of one of a bundle's graphs into predictions.

    The logits that its methods take carry no prior, except those of `without_prior`.
    """

    def __init__(
        self, manifest: Manifest, precision: Precision, scores: HeldOutScores | None = None
    ) -> None:
        """`scores` are those of the variant's held-out photos; without them it has no sets."""
        self.manifest = manifest
        self.precision = precision
        self.variant = manifest.variants[precision]
        groups = [info.group for info in manifest.classes]
        self._groups = group_indices(groups)
        self._carried = log_shares([info.prior for info in manifest.classes])
        self._uniform = log_prior(Prior.UNIFORM, manifest.counts)
        self._coverage: dict[str, Coverage] = {}
        if scores is not None and (sets := self.variant.sets) is not None:
            self._coverage = {
                ensemble: Coverage(values, scores.labels, groups, sets.interpolation)
                for ensemble, values in scores.ensembles.items()
            }

    @classmethod
    def open(cls, bundle: Path, manifest: Manifest, precision: Precision) -> "Predictor":
        """Read what the predictor of one graph needs.

        Raises `UserError` if the bundle lacks the variant or its calibration is damaged.
        """
        if precision not in manifest.variants:
            raise UserError(
                f"{bundle} has no {precision} variant (it has {', '.join(manifest.variants)}): "
                f"choose one of them, or export it with --variant {precision}"
            )
        variant = manifest.variants[precision]
        if not variant.sets:
            return cls(manifest, precision)
        ensembles = [name for name in Ensemble if name is not Ensemble.ADAPTIVE or variant.exit]
        scores = read_scores(bundle, precision, ensembles, len(manifest.classes))
        return cls(manifest, precision, scores)

    @property
    def usual_ensemble(self) -> Ensemble:
        """The ensemble of a request that names none."""
        return self.variant.usual_ensemble

    def stages(self, ensemble: Ensemble) -> Stages:
        """Return the rule that says after how many views an image stops.

        Raises `UserError` if `ensemble` is adaptive and the bundle has no exit rule.
        """
        if ensemble is not Ensemble.ADAPTIVE:
            return all_views(ensemble.views)
        if self.variant.exit is None:
            raise UserError(
                "this bundle has no rule for ensemble=adaptive (it is not calibrated): use full or "
                "off"
            )
        return self.variant.exit

    def without_prior(self, logits: Floats) -> Floats:
        """Return the graph's logits [N, C] less the log prior that they carry."""
        return without_prior(logits, self._carried)

    def predict(
        self,
        outputs: ImageOutputs,
        ensemble: Ensemble,
        log_prior: Doubles | None = None,
        coverage: float | None = None,
    ) -> Prediction:
        """Predict one image's class.

        `ensemble` is the one that was requested, `log_prior` [C] the requested prior (None: the
        uniform one) and `coverage` (`LEAST` to `MOST`) how often sets shall hold the right label
        (None: no set).
        """
        logits = outputs.logits[None]
        temperature = self.temperatures(logits, np.array([outputs.views]), ensemble)
        uniform = posterior(logits, self._uniform, temperature)[0]
        requested = uniform
        if log_prior is not None:
            requested = posterior(logits, log_prior, temperature)[0]
        return Prediction(
            requested,
            uniform,
            outputs.views,
            float(temperature[0]),
            self.explain(uniform) if log_prior is None else None,
            self.members(requested, uniform, ensemble, coverage),
        )

    def temperatures(self, logits: Floats, views: Counts, ensemble: Ensemble) -> Doubles:
        """Return the temperature [N] of mean logits [N, C] over `views` [N]; 1 if uncalibrated."""
        if self.variant.calibration is None:
            return np.ones(len(logits))
        return self.variant.calibration.temperatures(logits, views, ensemble, self._groups)

    def probabilities(
        self,
        logits: Floats,
        views: Counts,
        ensemble: Ensemble,
        log_prior: Doubles | None = None,
    ) -> Doubles:
        """Return the probabilities [N, C] of many images' mean logits [N, C] over `views` [N].

        They are those of `predict` under the requested prior.
        """
        target = self._uniform if log_prior is None else log_prior
        return posterior(logits, target, self.temperatures(logits, views, ensemble))

    def sets(self, probabilities: Doubles, ensemble: Ensemble, coverage: float) -> Flags | None:
        """Return which labels each image's set has, [N, C], of uniform probabilities [N, C].

        None if the bundle has no held-out photos to make sets from.
        """
        thresholds = self._coverage.get(ensemble)
        return thresholds.sets(probabilities, coverage) if thresholds else None

    def members(
        self, requested: Doubles, uniform: Doubles, ensemble: Ensemble, coverage: float | None
    ) -> list[int] | None:
        """Return the classes of one image's set, the most probable first.

        The probabilities [C] are those under the requested and the uniform prior. The set depends
        on the uniform prior alone, except that the image's top class is always in it. None without
        a `coverage` or without sets.
        """
        if coverage is None:
            return None
        held = self.sets(uniform[None], ensemble, coverage)
        if held is None:
            return None
        held[0, requested.argmax()] = True
        order = np.argsort(-requested, kind="stable")
        return [int(index) for index in order if held[0, index]]

    def decide(self, uniform: Doubles) -> Decision | None:
        """Decide on one image's probabilities [C] under the uniform prior.

        None if the bundle cannot say.
        """
        reason = self.explain(uniform)
        return reason.decision if reason else None

    def explain(self, uniform: Doubles) -> DecisionReason | None:
        """Return the reason of `decide`, None if that is None."""
        if self.variant.review is None:
            return None
        index = int(uniform.argmax())
        group = self.manifest.classes[index].group
        return self.variant.review.explain(float(uniform[index]), group)
