"""The training loop: what it changes, its rates, its precision, and how it fails."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from taillift.models.errors import UserError
from taillift.models.lift.backbone import load_backbone
from taillift.training.data.dataset import Dataset
from taillift.training.fit.build import build_model
from taillift.training.fit.distributed import Processes, resolve_precision
from taillift.training.fit.inputs import Photos, Pick, epoch_order
from taillift.training.fit.optimisation import ema_decay, enough_memory, micro_batch, rate_factor
from taillift.training.fit.progress import Curves
from taillift.training.fit.resume import Resume
from taillift.training.recipe.recipe import Optimiser, Recipe
from taillift.training.train import Run, Trainer, fit

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
ADAPTFORMER = [{"name": "adaptformer", "rank": 2}]
QUICK = {
    "name": "quick",
    "tuners": ADAPTFORMER,
    "epochs": 3,
    "batch": 8,
    "optimiser": {"head_rate": 0.02, "tuner_rate": 0.02},
    "augmentation": {"copies": 2},
    "precision": "fp32",
}


def train(colours: Dataset, backbone: str, **changes: object) -> Run:
    recipe = Recipe.model_validate({**QUICK, **changes})
    return Trainer(colours, load_backbone(backbone), CPU).train(recipe)


def weights(run: Run) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in run.model.trained().values()])


def test_the_loss_falls_and_only_trained_tensors_change(
    colours: Dataset, tiny_backbone: str
) -> None:
    still = {"head_rate": 1e-30, "tuner_rate": 1e-30}
    start = train(colours, tiny_backbone, epochs=1, optimiser=still).model.state_dict()
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


@pytest.mark.parametrize(("tuners", "inside"), [([], 0), ([{"name": "full"}], 2 * 12)])
def test_a_recipe_trains_the_tensors_that_its_tuners_name(
    colours: Dataset, tiny_backbone: str, tuners: list[dict[str, str]], inside: int
) -> None:
    run = train(colours, tiny_backbone, tuners=tuners, epochs=1)
    names = [name for name in run.model.trained() if name.startswith("tower")]
    assert len(names) == inside
    assert all(name.startswith("tower.block") for name in names)


def test_zero_epochs_train_nothing(colours: Dataset, tiny_backbone: str) -> None:
    run = train(colours, tiny_backbone, epochs=0)
    assert run.metadata.trainable_parameters == 0
    assert run.losses == ()
    assert run.metadata.record.precision is None


def test_a_loss_that_is_not_finite_ends_the_run(colours: Dataset, tiny_backbone: str) -> None:
    rates = {"head_rate": 1e30, "tuner_rate": 1e30}
    with pytest.raises(UserError, match=r"in epoch 1, step 2: lower the learning rates"):
        train(colours, tiny_backbone, optimiser=rates)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": {"head_rate": 0.02, "tuner_rate": 1e38, "tuner_decay": 1e5}, "batch": 56},
        {"optimiser": {"head_rate": 1e30, "tuner_rate": 1e30}, "batch": 56},
    ],
    ids=["after the last step", "after an epoch"],
)
def test_a_run_that_diverged_can_be_repeated_with_lower_rates(
    colours: Dataset, tiny_backbone: str, tmp_path: Path, changes: dict[str, object]
) -> None:
    trainer, state = Trainer(colours, load_backbone(tiny_backbone), CPU), tmp_path / "x.resume"
    epochs = 1 if "tuner_decay" in str(changes) else 3
    with pytest.raises(UserError, match="lower the learning rates"):
        trainer.train(Recipe.model_validate({**QUICK, "epochs": epochs, **changes}), state)
    assert trainer.train(Recipe.model_validate({**QUICK, "epochs": 1}), state).losses


def test_rates_fall_along_lifts_schedule_from_each_groups_own_rate(
    colours: Dataset, tiny_backbone: str
) -> None:
    """Once an epoch; 20 epochs from 0.01 end at 6.1558e-05, as in the authors' log."""
    seen: list[tuple[float, float]] = []

    def note(optimiser: torch.optim.Optimizer, *_: object) -> None:
        head, tower = optimiser.param_groups
        seen.append((head["lr"], tower["lr"]))

    hook = register_optimizer_step_pre_hook(note)
    rates = {"head_rate": 0.01, "tuner_rate": 0.02}
    try:
        train(colours, tiny_backbone, epochs=20, batch=30, optimiser=rates)
    finally:
        hook.remove()
    assert len(seen) == 20 * 2, "56 photos in batches of 30"
    assert seen[0] == seen[1] == (0.01, 0.02)
    assert seen[2][0] < 0.01
    assert seen[-1] == pytest.approx((6.1558e-05, 2 * 6.1558e-05), rel=1e-4)


def test_rates_rise_in_the_warm_up_and_fall_at_every_batch() -> None:
    options = Optimiser(warmup=0.2, step="batch")
    factors = [rate_factor(options, step, 5, 20) for step in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later < before for before, later in pairwise(factors[4:]))
    assert factors[12] == pytest.approx(0.5), "half of the 16 steps behind the warm-up"
    assert 0 < factors[-1] < 0.02


@given(
    st.floats(0, 0.99), st.sampled_from(["epoch", "batch"]), st.integers(1, 9), st.integers(1, 9)
)
def test_a_rate_is_never_higher_than_in_the_recipe(
    warmup: float, step: str, steps: int, epochs: int
) -> None:
    options = Optimiser.model_validate({"warmup": warmup, "step": step})
    total = steps * epochs
    factors = [rate_factor(options, step, steps, total) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)


def test_micro_batches_of_any_size_add_up_to_the_same_step(
    colours: Dataset, tiny_backbone: str
) -> None:
    """56 photos in batches of 24: a last batch of 8, and shorter last micro-batches."""
    whole = weights(train(colours, tiny_backbone, batch=24, micro_batch=24))
    parts = weights(train(colours, tiny_backbone, batch=24, micro_batch=7))
    assert torch.allclose(whole, parts, atol=1e-5)
    assert not torch.equal(whole, weights(train(colours, tiny_backbone, batch=8)))


def test_a_loss_that_needs_the_whole_batch_sees_it_at_once() -> None:
    assert micro_batch(Recipe.model_validate({**QUICK, "batch": 64}), Processes(CPU)) == 32
    lade = Recipe.model_validate({**QUICK, "batch": 64, "loss": {"name": "lade"}})
    assert micro_batch(lade, Processes(CPU)) == 64
    assert micro_batch(lade.model_copy(update={"micro_batch": 8}), Processes(CPU)) == 8


@pytest.mark.parametrize(
    ("features", "precision"),
    [({"avx2": True}, "fp32"), ({"amx_bf16": True}, "bf16"), ({"bf16": True}, "bf16")],
)
def test_a_cpu_trains_in_bf16_if_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert resolve_precision("auto", CPU) == precision
    assert resolve_precision("fp32", CPU) == "fp32"


def test_adamw_takes_steps_as_large_as_its_rate(colours: Dataset, tiny_backbone: str) -> None:
    """Its first step is rate * sign(gradient), after a decay of rate * decay * weight."""
    options = {
        "name": "adamw",
        "head_rate": 0.001,
        "tuner_rate": 0.001,
        "head_decay": 0.0,
        "tuner_decay": 0.0,
    }
    still = {**options, "head_rate": 1e-12, "tuner_rate": 1e-12}
    runs = [
        train(colours, tiny_backbone, epochs=1, batch=56, tuners=[], optimiser=optimiser)
        for optimiser in (still, options, {**options, "head_decay": 100.0})
    ]
    start, moved, decayed = (run.model.head.weight.detach() for run in runs)
    assert torch.allclose((moved - start).abs(), torch.tensor(0.001), rtol=1e-2)
    assert torch.allclose(decayed - moved, -0.1 * start, atol=1e-5)


def test_the_average_follows_the_weights_and_is_the_result(
    colours: Dataset, tiny_backbone: str
) -> None:
    rates = {"head_rate": 0.02, "tuner_rate": 0.02}
    seen: list[Tensor] = []

    def note(optimiser: torch.optim.Optimizer, *_: object) -> None:
        seen.append(optimiser.param_groups[0]["params"][0].detach().clone())

    hook = register_optimizer_step_pre_hook(note)
    try:
        averaged = train(colours, tiny_backbone, tuners=[], optimiser={**rates, "average": 0.9})
    finally:
        hook.remove()
    last = train(colours, tiny_backbone, tuners=[], optimiser=rates).model.head.weight.detach()
    expected = seen[0]
    for step, weight in enumerate([*seen[1:], last]):
        expected = torch.lerp(expected, weight, 1 - min(0.9, (1 + step) / (10 + step)))
    assert torch.allclose(averaged.model.head.weight, expected, atol=1e-6)
    assert not torch.allclose(expected, last, atol=1e-4)
    assert ema_decay(0.99, 10**6) == 0.99


def test_half_precision_on_a_cpu_is_refused(colours: Dataset, tiny_backbone: str) -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        train(colours, tiny_backbone, precision="fp16")


def test_bfloat16_trains_about_the_same_and_leaves_float32_weights(
    colours: Dataset, tiny_backbone: str
) -> None:
    run = train(colours, tiny_backbone, precision="bf16")
    assert run.metadata.record.precision == "bf16"
    assert {tensor.dtype for tensor in run.model.parameters()} == {torch.float32}
    full = train(colours, tiny_backbone)
    assert run.losses == pytest.approx(full.losses, rel=0.05)
    assert not torch.equal(weights(run), weights(full))


@dataclass(frozen=True)
class Endless:
    """Four photos in a batch of 2^40 rows, which takes no memory until the model gets it."""

    labels: Tensor
    stage: int = 0
    rows: int = 1

    def batches(self, order: Sequence[Pick], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        del order, size
        pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
        yield pixels.expand(2**40, 32, 32, 3), self.labels[:1].expand(2**40)


def test_an_anchored_head_stays_closer_to_its_initial_weights(
    colours: Dataset, tiny_backbone: str
) -> None:
    def moved(anchor: float) -> float:
        rates = {"head_rate": 0.02, "tuner_rate": 0.02, "head_decay": 0, "head_anchor": anchor}
        model = train(colours, tiny_backbone, optimiser=rates).model
        return float((model.head.weight - start).detach().norm())

    still = {"head_rate": 1e-30, "tuner_rate": 1e-30}
    start = train(colours, tiny_backbone, epochs=1, optimiser=still).model.head.weight.detach()
    assert 0 < moved(5) < 0.7 * moved(0)


def test_weights_that_are_not_finite_after_the_last_step_end_the_run(
    colours: Dataset, tiny_backbone: str
) -> None:
    huge = {"head_rate": 0.02, "tuner_rate": 1e38, "tuner_decay": 1e5}
    with pytest.raises(UserError, match="not finite after the last step: lower the learning rates"):
        train(colours, tiny_backbone, epochs=1, batch=56, optimiser=huge)


def test_too_little_memory_is_reported_with_advice(tiny_backbone: str) -> None:
    backbone, processes = load_backbone(tiny_backbone), Processes(CPU)
    recipe = Recipe.model_validate({**QUICK, "tuners": [], "micro_batch": 2**40})
    model = build_model(backbone, recipe, torch.eye(3, 64))
    inputs, resume = Endless(torch.tensor([0, 1, 2, 0])), Resume(None, "", processes)
    message = r"batch = 8 with micro_batch = 10\d+: pass --set micro_batch="
    with pytest.raises(UserError, match=message), enough_memory(recipe, processes):
        fit(model, inputs, [2, 1, 1], recipe, recipe.epochs, processes, resume, Curves(None))


def test_other_errors_are_not_reported_as_too_little_memory() -> None:
    recipe = Recipe.model_validate(QUICK)
    with pytest.raises(RuntimeError, match="shapes"), enough_memory(recipe, Processes(CPU)):
        raise RuntimeError("shapes do not fit")


def test_every_epoch_has_every_photo_once_in_its_own_order() -> None:
    first, second = epoch_order(50, 7, 0), epoch_order(50, 7, 1)
    assert sorted(first) == [(photo, 0) for photo in range(50)]
    assert [photo for photo, _ in first] != [photo for photo, _ in second]
    assert first == epoch_order(50, 7, 0) != epoch_order(50, 8, 0)


def test_the_time_spent_waiting_for_photos_is_measured(
    colours: Dataset, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Photos.batches

    def slowly(self: Photos, order: list[Pick], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in real(self, order, size):
            time.sleep(0.05)
            yield batch

    monkeypatch.setattr(Photos, "batches", slowly)
    provenance = train(colours, tiny_backbone).metadata.record
    assert 0.05 * 21 <= provenance.waiting * provenance.seconds < provenance.seconds
