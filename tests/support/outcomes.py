"""Invented outcomes of a comparison, for the tests of tables, verdicts and reports."""

from collections.abc import Sequence

import numpy as np

from taillift.models.bundle.manifest import Accuracy, Evaluation, Scores, Thresholds
from taillift.models.bundle.schema import GROUPS
from taillift.training.comparison.outcome import Outcome
from taillift.training.data.dataset import Dataset
from taillift.training.data.photo import Split
from taillift.training.evaluation import TAUS, TauPoint
from taillift.training.fit.provenance import Machine, Provenance
from taillift.training.recipe.recipe import load_recipe

PARAMETERS = {"zero-shot": 0, "head": 12_800, "full": 85_131_264}
RECORD = Provenance(
    versions={"taillift": "0.1.0", "torch": "2.13.0"},
    machine=Machine(processor="a machine", cores=2, gpus=("a GPU", "a GPU")),
    revision="ef" * 20,
    changed=True,
    precision="bf16",
    processes=2,
    seconds=50.0,
    waiting=0.1,
    peak_memory=2**30,
    peak_gpu_memory=None,
    losses=(1.0, 0.5),
)
FAILED = "the loss is nan after epoch 3: lower the learning rates"


class NoPhoto:
    """A placeholder for photos in tests that need only their number."""


def dataset_of(counts: Sequence[int], name: str = "made-up") -> Dataset:
    """Return a set of classes c0, c1, ... with `counts` training photos, which cannot be read."""
    labels = tuple(index for index, count in enumerate(counts) for _ in range(count))
    classes = tuple(f"c{index}" for index in range(len(counts)))
    photos = tuple(NoPhoto() for _ in labels)
    return Dataset(name, classes, classes, Split(photos, labels), None, None)  # type: ignore[arg-type]


def tail_of(classes: int) -> list[int]:
    """Return counts that fall from 500 to 3 along a long tail."""
    return [max(3, int(500 * 150 ** (-index / (classes - 1)))) for index in range(classes)]


def outcome_of(
    name: str, seed: int, rates: Sequence[float | None], counts: Sequence[int]
) -> Outcome:
    """Return a run with the class accuracies `rates` with five views, and one point less with one.

    A class without test photos has None.
    """
    groups = Thresholds().groups(counts)
    full = np.array([np.nan if rate is None else rate for rate in rates])
    return Outcome(
        key=f"{name} {seed}",
        recipe=load_recipe(name, {"seed": seed}),
        data="made-up",
        fingerprint="ab" * 32,
        backbone="default",
        backbone_sha256="cd" * 32,
        trainable_parameters=PARAMETERS.get(name, 178_236),
        seconds=60.0,
        record=RECORD,
        evaluation=Evaluation(
            data="made-up test",
            images=1234,
            single=_scores(np.maximum(full - 1, 0), groups),
            full=_scores(full, groups),
        ),
        accuracies=tuple(
            None if rate is None else Accuracy(single=max(rate - 1, 0), full=rate) for rate in rates
        ),
    )


def with_curve(outcome: Outcome, few: Sequence[float], mean_class: Sequence[float]) -> Outcome:
    """Return the outcome with these accuracies at TAUS."""
    points = (
        TauPoint(tau=tau, mean_class=mean, many=None, medium=None, few=rare)
        for tau, rare, mean in zip(TAUS, few, mean_class, strict=True)
    )
    return outcome.model_copy(update={"tau_curve": tuple(points)})


def failed(outcome: Outcome) -> Outcome:
    """Return the outcome as if its training had failed."""
    return outcome.model_copy(
        update={
            "evaluation": None,
            "accuracies": (),
            "trainable_parameters": 0,
            "failure": FAILED,
        }
    )


def _scores(rates: np.ndarray, groups: Sequence[str]) -> Scores:
    def over(group: str) -> float | None:
        members = [rate for rate, its in zip(rates, groups, strict=True) if its == group]
        return float(np.nanmean(members)) if members else None

    return Scores(
        overall=float(np.nanmean(rates)),
        mean_class=float(np.nanmean(rates)),
        worst_class=float(np.nanmin(rates)),
        harmonic_mean=50.0,
        geometric_mean=45.0,
        macro_f1=55.0,
        **{group: over(group) for group in GROUPS},
    )
