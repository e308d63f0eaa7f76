import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from models import UserError
from models.lift.backbone import load_backbone
from training.dataset import Dataset
from training.recipe import Recipe
from training.train import Run, Trainer

CPU = torch.device("cpu")
QUICK = {"epochs": 3, "batch": 8, "head_rate": 0.02, "tuner_rate": 0.02, "copies": 2}


def train(colours: Dataset, backbone: str, **changes: object) -> Run:
    recipe = Recipe.model_validate({"method": "lift", **QUICK, **changes})
    return Trainer(colours, load_backbone(backbone), CPU).train(recipe)


def test_the_loss_falls_and_only_what_is_trained_changes(
    colours: Dataset, tiny_backbone: str
) -> None:
    start = train(colours, tiny_backbone, epochs=0).model.state_dict()
    run = train(colours, tiny_backbone)
    assert run.losses[-1] < 0.8 * run.losses[0]
    trained = set(run.model.trained())
    assert len(trained) == 1 + 2 * 7, "the head, and an AdaptFormer of 7 tensors in 2 blocks"
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, start[name]) != (name in trained), name


def test_the_same_seed_gives_the_same_weights(colours: Dataset, tiny_backbone: str) -> None:
    first, second = (train(colours, tiny_backbone).model.state_dict() for _ in range(2))
    other = train(colours, tiny_backbone, seed=1).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("method", ["head", "full"])
def test_the_other_methods_train_what_they_say(
    colours: Dataset, tiny_backbone: str, method: str
) -> None:
    run = train(colours, tiny_backbone, method=method)
    inside = {name for name in run.model.trained() if name.startswith("tower")}
    assert all(name.startswith("tower.block") for name in inside)
    assert len(inside) == (0 if method == "head" else 2 * 12)


def test_zero_shot_trains_nothing(colours: Dataset, tiny_backbone: str) -> None:
    run = train(colours, tiny_backbone, method="zero-shot", epochs=0)
    assert run.facts.trainable_parameters == 0
    assert run.losses == []


def test_a_loss_that_is_no_number_ends_the_run(colours: Dataset, tiny_backbone: str) -> None:
    with pytest.raises(UserError, match="lower the learning rates"):
        train(colours, tiny_backbone, tuner_rate=1e30, head_rate=1e30)


def test_rates_fall_by_lifts_schedule_each_group_from_its_own(
    colours: Dataset, tiny_backbone: str
) -> None:
    """Stepped once an epoch; 20 epochs from 0.01 end at 6.1558e-05, as in the authors' log."""
    seen: list[tuple[float, float]] = []

    def note(optimiser: torch.optim.Optimizer, *_: object) -> None:
        head, tower = optimiser.param_groups
        seen.append((head["lr"], tower["lr"]))

    hook = register_optimizer_step_pre_hook(note)
    try:
        train(colours, tiny_backbone, epochs=20, batch=30, head_rate=0.01, tuner_rate=0.02)
    finally:
        hook.remove()
    assert len(seen) == 20 * 2, "56 photos in batches of 30"
    assert seen[0] == seen[1] == (0.01, 0.02)
    assert seen[2][0] < 0.01
    assert seen[-1] == pytest.approx((6.1558e-05, 2 * 6.1558e-05), rel=1e-4)


def test_facts_tell_the_settled_rank(colours: Dataset, tiny_backbone: str) -> None:
    assert train(colours, tiny_backbone, epochs=0).facts.recipe.rank == 1
