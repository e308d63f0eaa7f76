"""The exit rule fitted on held-out photos: as few views as accuracy allows."""

from collections.abc import Iterator
from itertools import takewhile
from typing import Final

import numpy as np

from models.bundle.exit import ExitRule, Stages
from models.bundle.images import VIEWS
from training.calibration.held_out import HeldOut
from training.calibration.trial import STAGES, Photos, Trial

# Leads after one view, in logits, from what hardly an image has to nothing.
LEADS: Final = (*np.geomspace(16, 0.05, 60).tolist(), 0.0)
ALWAYS_ALL: Final = Stages(stages=(VIEWS,), leads=())


def candidates(photos: Photos) -> Iterator[Stages]:
    """From all views for every image to one view for every image.

    The leads after one view and after more are in proportion to what the rest of the views still
    changes in the logits, as the photos measure it.
    """
    yield ALWAYS_ALL
    shape = [change / photos.changes[1] for change in photos.changes.values()]
    for first in LEADS:
        yield Stages(stages=STAGES, leads=tuple(round(float(first * one), 4) for one in shape))


def fit_exit(held: HeldOut, tolerance: float = 0.5) -> ExitRule:
    """The rule that loses at most `tolerance` points against all views, overall and in each group.

    It is the most economical one that the photos certify: rules are tested from the most cautious
    on, until one's bound exceeds the tolerance, so that with 95 % confidence all before it hold
    (fixed sequence testing: Angelopoulos et al. 2021, "Learn then Test", section 4). Where none of
    them saves a view, it is the last before the first that is expected to lose more, or by two
    standard errors of the labels: not the luckiest of all. The first takes all views always.
    """
    photos = Photos(held)
    trials = [Trial(photos, stages, tolerance) for stages in candidates(photos)]
    *_, certified = takewhile(lambda one: one.certified, trials)
    *_, hoped = takewhile(lambda one: one.hoped, trials)
    if certified.mean_views == VIEWS:
        return hoped.rule()
    return certified.rule(
        f"expected to lose no more, but not certified: stopping after {hoped.mean_views:.2f} views "
        f"on average instead of {certified.mean_views:.2f}"
    )
