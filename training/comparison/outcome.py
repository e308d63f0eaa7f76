"""What one run of a comparison came to, kept as a small JSON file beside its checkpoint."""

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
    """A finished run. `accuracies` are of each class, in the order of the dataset.

    `seconds` are those of training and measuring. A run that failed says why in `failure`, and has
    neither record nor evaluation.
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
    """Whether the tower is left alone, gets a small tuner, or has all weights of blocks tuned."""
    if not (recipe.epochs and recipe.tuners):
        return "frozen"
    return "heavy" if any(isinstance(one, Full) for one in recipe.tuners) else "light"


def place_of(folder: Path, recipe: Recipe, suffix: str) -> Path:
    """Where a run leaves its checkpoint (".safetensors") and its outcome (".json")."""
    return folder / f"{recipe.name}-{recipe.seed}{suffix}"


def write_outcome(path: Path, outcome: Outcome) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(outcome.model_dump_json(indent=2) + "\n", "utf-8")


def read_outcome(path: Path) -> Outcome | None:
    """None where there is none, or one that this version of taillift cannot read."""
    try:
        return Outcome.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def read_outcomes(folder: Path) -> dict[Path, Outcome]:
    """All in the folder and where they lie, by recipe and seed."""
    found = [(path, read_outcome(path)) for path in folder.glob("*.json")]
    outcomes = [(path, one) for path, one in found if one is not None]
    return dict(sorted(outcomes, key=lambda one: (one[1].recipe.name, one[1].recipe.seed)))


def succeeded(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, Evaluation]]:
    return [(one, one.evaluation) for one in outcomes if one.evaluation is not None]
