"""The outcome of one run of a comparison, kept as a small JSON file next to its checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from taillift.models.bundle.atomic import atomic_file
from taillift.models.bundle.manifest import Accuracy, Evaluation
from taillift.models.lift.tuners import Full
from taillift.training.fit.provenance import Provenance
from taillift.training.recipe.recipe import Recipe

Kind = Literal["frozen", "light", "heavy"]


class Outcome(BaseModel):
    """A finished run. `accuracies` has one entry a class, in the order of the dataset.

    `seconds` is the time of training and evaluation. A run that failed gives the reason in
    `failure`, and has neither record nor evaluation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    recipe: Recipe
    data: str
    fingerprint: str
    backbone: str
    backbone_sha256: str
    trainable_parameters: int = 0
    seconds: float
    record: Provenance | None = None
    evaluation: Evaluation | None = None
    accuracies: tuple[Accuracy | None, ...] = ()
    failure: str | None = None


def kind_of(recipe: Recipe) -> Kind:
    """Return whether the tower stays frozen, gets a small tuner, or has all weights tuned.

    "heavy" means that all weights of some blocks at least are tuned.
    """
    if not (recipe.epochs and recipe.tuners):
        return "frozen"
    return "heavy" if any(isinstance(tuner, Full) for tuner in recipe.tuners) else "light"


def run_path(folder: Path, recipe: Recipe, suffix: str) -> Path:
    """Return the path of a run's checkpoint (".safetensors") or outcome (".json")."""
    return folder / f"{recipe.name}-{recipe.seed}{suffix}"


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Write an outcome as JSON."""
    with atomic_file(path) as temporary:
        temporary.write_text(outcome.model_dump_json(indent=2) + "\n", "utf-8")


def read_outcome(path: Path) -> Outcome | None:
    """Read an outcome; None if there is none that this version of taillift can read."""
    try:
        return Outcome.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def read_outcomes(folder: Path) -> dict[Path, Outcome]:
    """Read all outcomes in the folder by their paths, sorted by recipe and seed."""
    outcomes = [
        (path, outcome)
        for path in folder.glob("*.json")
        if (outcome := read_outcome(path)) is not None
    ]
    return dict(sorted(outcomes, key=lambda pair: (pair[1].recipe.name, pair[1].recipe.seed)))


def succeeded(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, Evaluation]]:
    """Return the runs that did not fail, each with its evaluation."""
    return [(outcome, outcome.evaluation) for outcome in outcomes if outcome.evaluation is not None]
