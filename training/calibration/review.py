"""The confidence from which an answer may be accepted, by the group of its class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.arrays import Doubles, Labels, group_indices
from taillift.models.bundle.calibration_error import (
    class_weights,
    effective_count,
    effective_counts,
)
from taillift.models.bundle.review import GroupReview, Review
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.betting import running_log_wealth
from taillift.training.calibration.held_out import shrink

RISK: Final = 5.0
LEVEL: Final = 95.0
# In an estimated error, the confidences themselves count as much as this many photos.
PRIOR_PHOTOS: Final = 20
# With fewer answers, equally weighted, a threshold would only repeat the confidences' own claim.
MIN_ANSWERS: Final = 20
FITTED: Final = "the photos of the fit, which flatters them"


def fit_review(
    probabilities: Doubles,
    labels: Labels,
    groups: Sequence[Group],
    risk: float = RISK,
    level: float = LEVEL,
) -> Review:
    """Return thresholds from calibrated probabilities [N, C] of held-out photos, uniform prior.

    `labels` int64 [N] are the true classes and `groups` has one entry a class. There are no
    duplicates. `risk` and `level` are in per cent. If there are too few photos for something, that
    makes a note, never an exception.
    """
    reviews = {
        group: answers.fitted(risk, level).model_copy(update={"fitted_photos": len(answers.wrong)})
        for group, answers in answers_by_group(probabilities, labels, groups).items()
    }
    return Review(
        risk=risk,
        level=level,
        data=FITTED,
        groups=reviews,
        notes=tuple(review_notes(reviews, groups, risk, level)),
    )


def measure_review(
    review: Review, data: str, probabilities: Doubles, labels: Labels, groups: Sequence[Group]
) -> Review:
    """Return the thresholds of `review`, measured on the photos that `data` describes."""
    measured = {
        group: answers.reviewed(
            review.groups[group].threshold, review.groups[group].certified
        ).model_copy(update={"fitted_photos": review.groups[group].fitted_photos})
        for group, answers in answers_by_group(probabilities, labels, groups).items()
    }
    return review.model_copy(update={"groups": measured, "data": data})


@dataclass(frozen=True)
class GroupAnswers:
    """The answers with a class of one group, all [N], the most confident first."""

    confidence: Doubles
    wrong: Doubles
    weights: Doubles

    def fitted(self, risk: float, level: float) -> GroupReview:
        """Return the lowest certified threshold, else an estimated one, else none."""
        wealth = running_log_wealth(self.wrong, self.weights, risk / 100)
        threshold = self.lowest(wealth >= -np.log1p(-level / 100))
        if threshold is not None:
            return self.reviewed(threshold, certified=True)
        if effective_count(self.weights) < MIN_ANSWERS:
            return self.reviewed(None, certified=False)
        return self.reviewed(self.lowest(self.cautious_errors() <= risk / 100), certified=False)

    def lowest(self, acceptable: npt.NDArray[np.bool_]) -> float | None:
        """Return the lowest confidence down to which the answers are `acceptable` [N].

        Answers of equal confidence are accepted together. None if no confidence will do.
        """
        last_of_equals = np.append(self.confidence[1:] < self.confidence[:-1], True)
        rows = np.flatnonzero(acceptable & last_of_equals[: len(self.confidence)])
        return float(self.confidence[rows[-1]]) if len(rows) else None

    def cautious_errors(self) -> Doubles:
        """Return the error [N] among the answers down to each, plus one standard error.

        The error is shrunk toward what the confidences promise. The standard error is added because
        the lowest of many thresholds that look good has been lucky.
        """
        total = np.cumsum(self.weights)
        photos = effective_counts(self.weights)
        measured = np.cumsum(self.weights * self.wrong) / total
        promised = np.cumsum(self.weights * (1 - self.confidence)) / total
        # Both errors are relative to the standard deviation of one answer.
        shrunk = shrink(measured, photos**-0.5, promised, PRIOR_PHOTOS**-0.5)
        # Rounding takes confidences over 1.
        rates = np.clip(shrunk, 0, 1)
        errors: Doubles = rates + np.sqrt(rates * (1 - rates) / (photos + PRIOR_PHOTOS))
        return errors

    def reviewed(self, threshold: float | None, certified: bool) -> GroupReview:
        """Return the shares accepted and wrong at a threshold."""
        accepted = self.confidence >= (np.inf if threshold is None else threshold)
        weights = self.weights * accepted
        return GroupReview(
            photos=len(accepted),
            threshold=threshold,
            certified=certified,
            accepted=100 * float(weights.sum() / max(self.weights.sum(), 1e-12)),
            error=100 * float(np.average(self.wrong, weights=weights)) if accepted.any() else None,
        )


def answers_by_group(
    probabilities: Doubles, labels: Labels, groups: Sequence[Group]
) -> dict[Group, GroupAnswers]:
    """Return the answers by the group of the predicted class.

    Photos are weighted so that every true class counts the same.
    """
    answers = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    predicted = group_indices(groups)[answers]
    wrong = (answers != labels).astype(np.float64)
    weights = class_weights(labels)
    by_group: dict[Group, GroupAnswers] = {}
    for index, group in enumerate(GROUPS):
        rows = order[predicted[order] == index]
        by_group[group] = GroupAnswers(confidence[rows], wrong[rows], weights[rows])
    return by_group


def review_notes(
    reviews: Mapping[Group, GroupReview], groups: Sequence[Group], risk: float, level: float
) -> Iterator[str]:
    """Yield the groups of `groups` that have too few photos for a certified threshold."""
    for group, review in reviews.items():
        if group not in groups:
            continue
        if not review.photos:
            yield f"{group}: no held-out photo is answered with its classes: all go to review"
        elif review.threshold is None:
            yield (
                f"{group}: {review.photos} answers show no confidence at which the error is known "
                f"to stay within {risk:g} %: all go to review"
            )
        elif not review.certified:
            yield (
                f"{group}: {review.photos} answers cannot certify an error of {risk:g} % at "
                f"{level:g} %: its threshold is an estimate"
            )
