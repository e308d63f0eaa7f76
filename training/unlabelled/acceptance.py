"""Which guesses on unlabelled photos become pseudo-labels, and a record of how right they were."""

import logging
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor, split

from taillift.models.bundle.arrays import Doubles, Labels
from taillift.models.bundle.prediction_sets import Coverage, Interpolation
from taillift.models.bundle.schema import GROUPS, Group
from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone
from taillift.training.data.photo import Split
from taillift.training.data.pool import FOREIGN
from taillift.training.fit.build import zero_shot_logits
from taillift.training.fit.provenance import PseudoLabelEpoch, PseudoLabelGroup
from taillift.training.recipe.recipe import Recipe
from taillift.training.recipe.semi_supervision import HeldOutEvidence

# What a group counts as, in photos, when a class's threshold is shrunk toward its group's.
PULL: Final = 20

logger = logging.getLogger(__name__)


class Averages:
    """Moving averages of the model's guesses on unlabelled photos, all float64 on the CPU.

    `confidence` is the mean largest probability, `marginal` [C] the mean probability of each class
    and `guessed` [C] each class's share of the guesses; all start at 1 / C, as in FreeMatch.
    `accepted` [C] and `counted` [C] are the accepted weight and the number of accepted
    pseudo-labels of each class, per unlabelled photo; they start at 0.
    """

    def __init__(self, classes: int) -> None:
        uniform = torch.full((classes,), 1 / classes, dtype=torch.float64)
        self.confidence = uniform[:1].clone()
        self.marginal = uniform.clone()
        self.guessed = uniform.clone()
        self.accepted = torch.zeros_like(uniform)
        self.counted = torch.zeros_like(uniform)

    def follow_guesses(self, sums: Tensor, photos: int, decay: float) -> None:
        """Follow a batch of so many photos, from sums as `guess_sums` returns them."""
        means = sums / photos
        classes = len(self.marginal)
        parts = split(means, [1, classes, classes])
        for average, mean in zip(
            (self.confidence, self.marginal, self.guessed), parts, strict=True
        ):
            average.lerp_(mean, 1 - decay)

    def follow_accepted(self, weights: Tensor, counts: Tensor, photos: int, decay: float) -> None:
        """Follow the accepted weight [C] and number [C] of pseudo-labels in a batch of photos."""
        self.accepted.lerp_(weights / photos, 1 - decay)
        self.counted.lerp_(counts / photos, 1 - decay)

    @property
    def thresholds(self) -> Tensor:
        """FreeMatch's threshold of each class, float64 [C]: t p_c / max p."""
        return self.confidence * self.marginal / self.marginal.max()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by their names."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        for name, average in vars(self).items():
            average.copy_(state[name])


def guess_sums(probabilities: Tensor) -> Tensor:
    """Return sums float64 [1 + 2 C] over the guesses with `probabilities` [N, C].

    They are the largest probabilities, the probabilities of each class, and the number of guesses
    of each class.
    """
    largest, labels = probabilities.double().max(1)
    number = labels.bincount(minlength=probabilities.shape[1])
    sums = [largest.sum()[None], probabilities.double().sum(0), number.double()]
    return torch.cat(sums).cpu()


class SetAcceptance:
    """Acceptance by prediction sets of one class, from held-out photos with true labels [M]."""

    def __init__(self, options: HeldOutEvidence, labels: Tensor, groups: Sequence[Group]) -> None:
        self.options = options
        self.labels = labels.numpy()
        self.groups = groups
        self.probabilities = torch.zeros(len(labels), len(groups))

    def update(self, probabilities: Tensor) -> None:
        """Fit thresholds and bounds to the held-out photos' probabilities float32 [M, C].

        They are under the uniform prior, of the model as it is now.
        """
        self.probabilities = probabilities
        scores = probabilities.numpy()[np.arange(len(self.labels)), self.labels]
        self.coverage = Coverage(scores, self.labels, self.groups, Interpolation(pull=PULL))
        guesses = probabilities.argmax(1).numpy()
        accepted = self.singles(probabilities).numpy()
        classes = len(self.groups)
        judged = np.bincount(guesses[accepted], minlength=classes)
        right = np.bincount(guesses[accepted & (guesses == self.labels)], minlength=classes)
        bounds = precision_bounds(right, judged, self.options.confidence)
        self.bounds = torch.from_numpy(bounds).float()

    def singles(self, probabilities: Tensor) -> Tensor:
        """Return bool [N]: whether one probability of [N, C] reaches its class's threshold.

        A prediction set is never empty: it also has the most probable class. Here, that alone is
        not enough.
        """
        thresholds = torch.from_numpy(self.coverage.thresholds(self.options.coverage))
        return (probabilities >= thresholds.to(probabilities.device)).sum(1) == 1

    def weights(self, probabilities: Tensor) -> Tensor:
        """Return the weight float32 [N] of each guess: the bound of its class, or 0."""
        bounds = self.bounds.to(probabilities.device)[probabilities.argmax(1)]
        return bounds * self.singles(probabilities)


def precision_bounds(right: Labels, judged: Labels, confidence: float) -> Doubles:
    """Return lower bounds [C] of precisions of which `right` of `judged` guesses are right.

    Each holds with probability `confidence` (Clopper and Pearson 1934); 0 without a right guess.
    """
    bounds = np.zeros(len(right))
    some = right > 0
    bounds[some] = beta.ppf(1 - confidence, right[some], judged[some] - right[some] + 1)
    return bounds


class PseudoLabelTally:
    """Counts of an epoch's pseudo-labels, int64 on the CPU; the rows of `by_class` are [C].

    They are accepted, judged and right pseudo-labels of each class, and photos truly of it. The
    `totals` are the photos that were seen, those accepted, those that teach softly, and the same
    three of foreign photos.
    """

    def __init__(self, classes: int) -> None:
        self.by_class = torch.zeros(4, classes, dtype=torch.int64)
        self.totals = torch.zeros(6, dtype=torch.int64)

    def clear(self) -> None:
        """Begin a new epoch."""
        self.by_class.zero_()
        self.totals.zero_()

    def add(self, counts: Tensor) -> None:
        """Add what `tally_counts` returned, summed over all processes."""
        by_class, totals = split(counts, [self.by_class.numel(), len(self.totals)])
        self.by_class += by_class.view_as(self.by_class)
        self.totals += totals

    def epoch(self, groups: Sequence[Group]) -> PseudoLabelEpoch:
        """Return the counts by group; `groups` has the group of each class."""
        seen, accepted, soft, foreign, foreign_accepted, foreign_soft = self.totals.tolist()
        by_group: dict[Group, PseudoLabelGroup] = {}
        for group in GROUPS:
            members = [label for label, own in enumerate(groups) if own == group]
            if members:
                accepted_of, judged, right, photos = self.by_class[:, members].sum(1).tolist()
                by_group[group] = PseudoLabelGroup(
                    accepted=accepted_of, judged=judged, right=right, photos=photos
                )
        return PseudoLabelEpoch(
            seen=seen,
            accepted=accepted,
            soft=soft,
            foreign=foreign,
            foreign_accepted=foreign_accepted,
            foreign_soft=foreign_soft,
            groups=by_group,
        )


def tally_counts(
    labels: Tensor, accepted: Tensor, soft: Tensor, truth: Tensor, classes: int
) -> Tensor:
    """Return the counts int64 [4 C + 6] that `PseudoLabelTally.add` takes, of one part of a batch.

    `labels` are the guesses int64 [N]. `accepted` says bool [N] which are pseudo-labels, and `soft`
    which photos teach softly. `truth` int64 [N] is the true class, or below 0 if that is unknown or
    foreign.
    """
    known, foreign = truth >= 0, truth == FOREIGN
    rows = [
        labels[accepted],
        labels[accepted & (known | foreign)],
        labels[accepted & (labels == truth)],
        truth[known],
    ]
    seen = (torch.ones_like(accepted), accepted, soft)
    totals = [*seen, *(foreign & part for part in seen)]
    by_class = [row.bincount(minlength=classes) for row in rows]
    return torch.cat([*by_class, torch.stack([total.sum() for total in totals])])


def zero_shot_confidence(
    backbone: Backbone, recipe: Recipe, names: Sequence[str], features: Tensor
) -> Tensor:
    """Return zero-shot CLIP's largest probability float32 [N] of photos with `features` [N, D].

    Raises what `zero_shot_logits` raises.
    """
    return zero_shot_logits(backbone, recipe, names, features).softmax(1).amax(1)


def known_to_zero_shot(pool: Split, confidence: Tensor, least: float) -> Split:
    """Return the photos of which zero-shot CLIP is surer than `least`; logs how many these are.

    Raises `UserError` if there are none.
    """
    kept = torch.nonzero(confidence > least).flatten().tolist()
    logger.info("%d of %d unlabelled photos pass the zero-shot gate", len(kept), len(pool))
    if not kept:
        raise UserError(
            f"zero-shot CLIP is not surer than {least:g} of any of {len(pool):,} unlabelled "
            f"photos, {float(confidence.max()):.2f} at most: set unlabelled.zero_shot lower"
        )
    return pool.only(kept)
