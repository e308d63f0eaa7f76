"""What calibration data could not say, in plain words."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from models.bundle.record import GROUPS
from models.bundle.temperature import CalibrationErrors
from training.calibration.answers import Answers, effective
from training.calibration.held_out import HeldOut
from training.calibration.reliability import FEWEST

# Below, an answer's kind has mostly the temperature of all answers.
FEW: Final = 30
# Weights that are worth less than this share of the photos are worth a note.
UNEVEN: Final = 0.8


def notes_on(held: HeldOut, every: Sequence[Answers], errors: CalibrationErrors) -> tuple[str, ...]:
    """`every` way's answers to the photos of `held`, without copies."""
    if not len(held):
        return ("there are no held-out photos: every temperature is 1, which no data support",)
    notes = list(_on_photos(held, every[0]))
    for one in every:
        notes += _on_answers(one)
    return (*notes, *_on_errors(every, errors))


def _on_photos(held: HeldOut, distinct: Answers) -> Iterator[str]:
    if copies := len(held) - len(distinct):
        yield f"{copies} of {len(held)} photos are copies of others and count once"
    images = len(np.unique(distinct.logits.round(4), axis=0))
    if images < len(distinct):
        yield f"the {len(distinct)} photos show only {images} different images, with several labels"
    classes = len(distinct.groups)
    if missing := classes - len(np.unique(distinct.labels)):
        yield f"{missing} of {classes} classes have no photo: they are taken to be like the others"
    worth = effective(distinct.weights)
    if worth < UNEVEN * len(distinct):
        yield (
            f"{len(distinct)} photos, weighted so that classes count alike, are worth {worth:.0f}"
        )
    if worth < FEWEST:
        yield f"so few photos ({worth:.0f}) leave every temperature near 1 or uncertain"


def _on_answers(one: Answers) -> Iterator[str]:
    right = one.logits.argmax(axis=1) == one.labels
    if right.all() or not right.any():
        which = "right" if right.all() else "wrong"
        yield f"{one.way}: every answer is {which}, so the temperature is only a cautious guess"
    for views in np.unique(one.views).tolist():
        among = f"{one.way}, {views} views" if one.way == "adaptive" else one.way
        for place, group in enumerate(GROUPS):
            rows = (one.predicted_groups == place) & (one.views == views)
            if place not in one.groups:
                continue
            if not rows.any():
                yield f"{among}: no photo was taken for one of group {group}: it has the others' T"
            elif effective(one.weights[rows]) < FEW:
                yield f"{among}: only {rows.sum()} photos were taken for ones of group {group}"


def _on_errors(every: Sequence[Answers], errors: CalibrationErrors) -> Iterator[str]:
    for one in every:
        changes = getattr(errors, one.way)
        silent = [
            group
            for place, group in enumerate(GROUPS)
            if place in one.groups and changes.groups[group].before is None
        ]
        if changes.overall.before is None:
            yield f"{one.way}: too few photos to say the calibration error"
        elif silent:
            yield f"{one.way}: too few photos to say the error of {', '.join(silent)}"
