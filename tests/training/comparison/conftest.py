"""Note which recipes are trained, in tests of comparisons and of soups."""

from typing import Any

import pytest

from taillift.training.recipe.recipe import Recipe
from taillift.training.train import Run, Trainer


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names and seeds of the recipes that are trained, in order."""
    names: list[str] = []
    plain = Trainer.train

    def counted(self: Trainer, recipe: Recipe, *rest: Any, **more: Any) -> Run:
        names.append(f"{recipe.name}-{recipe.seed}")
        return plain(self, recipe, *rest, **more)

    monkeypatch.setattr(Trainer, "train", counted)
    return names
