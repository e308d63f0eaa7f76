"""What held-out photos could show of an exit rule and what not, in plain words."""

from collections.abc import Iterator

import numpy as np

from models.bundle.exit import ExitRule
from training.calibration.bounds import Weights, class_weights, photo_weights, upper_bound
from training.calibration.held_out import HeldOut


def notes_on(rule: ExitRule, held: HeldOut) -> Iterator[str]:
    if not len(held):
        yield "there are no held-out photos: every image takes all five views"
        return
    yield from held.cautions
    if missing := len(held.groups) - len(np.unique(held.labels)):
        yield f"{missing} of {len(held.groups)} classes have no photo: what they lose is unknown"
    if rule.certified and rule.leads:
        yield (
            f"certified: with 95 % confidence it loses at most {rule.tolerance:g} points overall "
            "and in every group"
        )
    else:
        yield from _on_doubts(rule, held)


def _on_doubts(rule: ExitRule, held: HeldOut) -> Iterator[str]:
    if rule.leads:
        yield (
            "not certified: it is the most economical rule that is expected to lose at most "
            f"{rule.tolerance:g} points overall and in every group"
        )
    else:
        yield (
            "every image takes all five views: the photos support no rule that saves any and "
            f"loses at most {rule.tolerance:g} points overall and in every group"
        )
    for place, loss in (("overall", rule.overall), *rule.groups.items()):
        if rule.leads and loss.estimate is not None and loss.estimate > rule.tolerance:
            yield (
                f"{place}: {loss.photos} photos lost {loss.estimate:.1f} points, more than "
                f"tolerated, but give or take {loss.error:.1f}: that few are also lost by chance"
            )
    yield from _at_best("overall", photo_weights(len(held)), rule.tolerance)
    groups = np.array(held.groups)[held.labels]
    for group in rule.groups:
        labels = held.labels[groups == group]
        if len(labels):
            yield from _at_best(group, class_weights(labels), rule.tolerance)
        else:
            yield f"{group}: no photos, so what it would lose with fewer views is unknown"


def _at_best(where: str, weights: Weights, tolerance: float) -> Iterator[str]:
    """Too few photos are those whose bound is over the tolerance before any answer changes."""
    bound = 100 * upper_bound(np.zeros(len(weights), np.int64), weights)
    if bound > tolerance:
        yield (
            f"{where}: {len(weights)} photos, with which even without a single changed answer the "
            f"bound is {bound:.1f} points"
        )
