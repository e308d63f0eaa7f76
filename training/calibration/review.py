"""From which confidence on an answer may be accepted, by the group of its class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.arrays import Doubles, Labels
from taillift.models.bundle.review import GroupReview, Review
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.betting import class_weights
from taillift.training.calibration.predictions import effective

RISK: Final = 5.0
LEVEL: Final = 95.0
# As so many photos the confidences themselves count in an estimated error.
PULL: Final = 20
# Answers, equally weighted, below which a threshold would be the confidences' own opinion.
FEWEST: Final = 20
OF_THE_FIT: Final = "the photos of the fit, which flatters them"
# Of the largest stake that cannot ruin: one for each kind of errors, from none to many.
STAKES: Final = (0.95, 0.6, 0.3, 0.1)


@dataclass(frozen=True)
class _Answers:
    """Those with a class of one group, all [N], the surest first."""

    confidence: Doubles
    wrong: Doubles
    weights: Doubles

    def reviewed(self, threshold: float | None, certified: bool) -> GroupReview:
        """What becomes of them at a threshold."""
        taken = self.confidence >= (np.inf if threshold is None else threshold)
        weights = self.weights * taken
        return GroupReview(
            photos=len(taken),
            threshold=threshold,
            certified=certified,
            accepted=100 * float(weights.sum() / max(self.weights.sum(), 1e-12)),
            error=100 * float(np.average(self.wrong, weights=weights)) if taken.any() else None,
        )


def fit_review(
    probabilities: Doubles,
    labels: Labels,
    groups: Sequence[Group],
    risk: float = RISK,
    level: float = LEVEL,
) -> Review:
    """Thresholds from calibrated probabilities [N, C] of held-out photos under the uniform prior.

    `labels` int64 [N] are the true classes and `groups` has one entry a class; no photo is a copy.
    `risk` and `level` are in per cent. Data too few for something make a note, never an exception.
    """
    every = _by_group(probabilities, labels, groups)
    reviews = {group: _review(answers, risk, level) for group, answers in every.items()}
    return Review(
        risk=risk,
        level=level,
        data=OF_THE_FIT,
        groups=reviews,
        notes=tuple(_notes(reviews, groups, risk, level)),
    )


def measure_review(
    review: Review, data: str, probabilities: Doubles, labels: Labels, groups: Sequence[Group]
) -> Review:
    """The thresholds of `review`, with the shares accepted and the errors of the photos `data`."""
    every = _by_group(probabilities, labels, groups)
    measured = {
        group: answers.reviewed(review.groups[group].threshold, review.groups[group].certified)
        for group, answers in every.items()
    }
    return review.model_copy(update={"groups": measured, "data": data})


def _by_group(
    probabilities: Doubles, labels: Labels, groups: Sequence[Group]
) -> dict[Group, _Answers]:
    answers = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    surest = np.argsort(-confidence, kind="stable")
    predicted = np.array([GROUPS.index(group) for group in groups])[answers]
    wrong = (answers != labels).astype(np.float64)
    weights = class_weights(labels)
    every: dict[Group, _Answers] = {}
    for place, group in enumerate(GROUPS):
        rows = surest[predicted[surest] == place]
        every[group] = _Answers(confidence[rows], wrong[rows], weights[rows])
    return every


def _review(answers: _Answers, risk: float, level: float) -> GroupReview:
    certain = _log_wealth(answers.wrong, answers.weights, risk / 100) >= -np.log1p(-level / 100)
    if (threshold := _least(answers.confidence, certain)) is not None:
        return answers.reviewed(threshold, certified=True)
    if effective(answers.weights) < FEWEST:
        return answers.reviewed(None, certified=False)
    likely = _estimates(answers) <= risk / 100
    return answers.reviewed(_least(answers.confidence, likely), certified=False)


def _least(confidence: Doubles, good: npt.NDArray[np.bool_]) -> float | None:
    """The least confidence down to which, equal ones together, the answers are `good`."""
    ends = np.append(confidence[1:] < confidence[:-1], True)[: len(confidence)]
    places = np.flatnonzero(good & ends)
    return float(confidence[places[-1]]) if len(places) else None


def _log_wealth(wrong: Doubles, weights: Doubles, risk: float) -> Doubles:
    """What a gambler who starts with 1 has after each of the photos, the surest first.

    On each photo the stake s is set against weight * (wrong - risk). Let the answers down to some
    confidence be wrong more often than `risk`, weighted: then the product of the factors'
    expectations is at most 1 there (geometric and arithmetic mean), and the wealth at most a
    martingale that starts at 1. So, whatever the confidences are, with probability 1 - d the wealth
    is 1 / d at none of all the confidences where the risk is exceeded (Ville's inequality;
    Waudby-Smith & Ramdas 2024, section 4): the lowest where it is can be taken, with no correction
    for having looked at all. The stakes' mean wealth has the same property.
    """
    if not len(wrong):
        return np.zeros(0)
    most = 1 / ((1 - risk) * weights.max())
    gains = weights * (risk - wrong)
    logs = [np.cumsum(np.log1p(share * most * gains)) for share in STAKES]
    mean: Doubles = np.logaddexp.reduce(logs, axis=0) - np.log(len(STAKES))
    return mean


def _estimates(answers: _Answers) -> Doubles:
    """The error among the answers down to each, drawn to what the confidences promise.

    One standard error is added: the lowest of many thresholds that look good has been lucky.
    """
    total = np.cumsum(answers.weights)
    photos = total**2 / np.cumsum(answers.weights**2)
    measured = np.cumsum(answers.weights * answers.wrong) / total
    promised = np.cumsum(answers.weights * (1 - answers.confidence)) / total
    # Rounding takes confidences over 1.
    drawn = np.clip((photos * measured + PULL * promised) / (photos + PULL), 0, 1)
    wary: Doubles = drawn + np.sqrt(drawn * (1 - drawn) / (photos + PULL))
    return wary


def _notes(
    reviews: Mapping[Group, GroupReview], groups: Sequence[Group], risk: float, level: float
) -> Iterator[str]:
    for group, review in reviews.items():
        if group not in groups:
            continue
        if not review.photos:
            yield f"{group}: no held-out photo is answered with its classes: all go to review"
        elif review.threshold is None:
            yield (
                f"{group}: at no confidence are {review.photos} answers known to stay within "
                f"{risk:g} %: all to review"
            )
        elif not review.certified:
            yield (
                f"{group}: {review.photos} answers cannot certify an error of {risk:g} % at "
                f"{level:g} %: its threshold is an estimate"
            )
