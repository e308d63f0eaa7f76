"""What photos were too few or too odd to say of temperatures, in plain words."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from models.bundle.ensemble import Ensemble
from models.bundle.record import GROUPS
from training.calibration.answers import Answers, effective
from training.calibration.held_out import HeldOut
from training.calibration.reliability import FEWEST

# Below, a group's answers have mostly the temperature of all.
FEW: Final = 30
# Weights that are worth less than this share of the photos are worth a note.
UNEVEN: Final = 0.8


def notes_on(held: HeldOut, every: Sequence[Answers]) -> tuple[str, ...]:
    """`every` ensemble's answers to the photos of `held`."""
    if not len(held):
        return ("there are no held-out photos: every temperature is 1, which no data support",)
    notes = list(_on_photos(held, effective(every[0].weights)))
    for one in every:
        notes += _on_answers(one)
    return tuple(notes)


def _on_photos(held: HeldOut, worth: float) -> Iterator[str]:
    yield from held.cautions
    classes = len(held.groups)
    if missing := classes - len(np.unique(held.labels)):
        yield f"{missing} of {classes} classes have no photo: they are taken to be like the others"
    if worth < UNEVEN * len(held):
        yield f"{len(held)} photos, weighted so that classes count alike, are worth {worth:.0f}"
    if worth < FEWEST:
        yield f"so few photos ({worth:.0f}) leave every temperature near 1 or uncertain"


def _on_answers(one: Answers) -> Iterator[str]:
    right = one.logits.argmax(axis=1) == one.labels
    if right.all() or not right.any():
        which = "right" if right.all() else "wrong"
        yield f"{one.ensemble}: every answer is {which}, so its temperature is a cautious guess"
    for views in np.unique(one.views).tolist():
        if thin := list(_thin_groups(one, views)):
            among = (
                f"{one.ensemble}, {views} views"
                if one.ensemble is Ensemble.ADAPTIVE
                else one.ensemble
            )
            yield (
                f"{among}: too few photos for temperatures of their own, by the answer's group: "
                + ", ".join(thin)
            )


def _thin_groups(one: Answers, views: int) -> Iterator[str]:
    for place, group in enumerate(GROUPS):
        rows = (one.predicted_groups == place) & (one.views == views)
        if place in one.groups and effective(one.weights[rows]) < FEW:
            yield f"{group} {rows.sum()}"
