"""The record of a run: whether zero-shot CLIP knows the rare classes well enough for cues."""

import pytest
import torch

from taillift.models.bundle.schema import Group
from taillift.training.fit.provenance import CueEvidence
from taillift.training.recipe.losses import Cues


def test_cues_are_on_if_zero_shot_knows_enough_photos_of_the_rare_classes() -> None:
    groups: list[Group] = ["few" if label >= 22 else "many" for label in range(24)]
    labels = torch.tensor([0, 0, 10, 22, 22, 23, 23, 23])
    # So many classes are before that of each photo: of five rare photos, three have it in time.
    logits = torch.zeros(8, 24)
    for row, before in enumerate([23, 23, 23, 0, 0, 4, 5, 23]):
        others = [label for label in range(24) if label != labels[row]]
        logits[row, [*others[:before], int(labels[row]), *others[before:]]] = -torch.arange(24.0)
    on = CueEvidence.of(Cues(gate=0.6), logits, labels, groups)
    assert (on.on, on.known, on.photos, on.first, on.group) == (True, 0.6, 5, 5, "few")
    assert str(on) == (
        "cues are on: zero-shot's first 5 hold the truth for 60.0 % of 5 training photos of "
        "few-shot classes (gate: 60 %)"
    )
    assert not CueEvidence.of(Cues(gate=0.61), logits, labels, groups).on


@pytest.mark.parametrize(("classes", "first"), [(3, 0), (8, 2), (17, 4), (20, 5), (400, 5)])
def test_of_few_classes_fewer_count_so_that_chance_is_not_enough(classes: int, first: int) -> None:
    labels = torch.arange(classes)
    evidence = CueEvidence.of(Cues(), torch.zeros(classes, classes), labels, ["few"] * classes)
    assert evidence.first == first
    # Equal logits say nothing, and chance is at most a quarter.
    assert not evidence.on


def test_without_rare_classes_the_rarest_group_counts() -> None:
    groups: list[Group] = ["medium" if label else "many" for label in range(8)]
    evidence = CueEvidence.of(Cues(), torch.eye(8), torch.arange(8), groups)
    assert (evidence.group, evidence.photos, evidence.known) == ("medium", 7, 1)
