"""Runs that are interrupted, their curves, and photos that are set aside."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event
from torch import Tensor

from taillift.models.errors import UserError
from taillift.models.lift.backbone import load_backbone
from taillift.training.calibration.cross_fit import answered_prior
from taillift.training.data.dataset import Dataset
from taillift.training.evaluation import TAUS
from taillift.training.fit.optimisation import OptimisationState
from taillift.training.recipe.losses import Cues, LogitAdjusted
from taillift.training.recipe.recipe import Recipe
from taillift.training.train import Run, Trainer
from tests.support.trainings import interrupt

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 3 * 4
RECIPE = Recipe.model_validate(
    {
        "name": "run",
        "tuners": [{"name": "adaptformer", "rank": 2}],
        "epochs": 3,
        "batch": 15,
        "precision": "fp32",
        "optimiser": {
            "name": "adamw",
            "head_rate": 1e-3,
            "tuner_rate": 5e-4,
            "warmup": 0.2,
            "step": "batch",
            "average": 0.9,
        },
    }
)


@pytest.fixture(scope="module")
def trainer(colours: Dataset, tiny_backbone: str) -> Trainer:
    return Trainer(colours, load_backbone(tiny_backbone), torch.device("cpu"))


@pytest.fixture(scope="module")
def whole(trainer: Trainer) -> Run:
    return trainer.train(RECIPE)


def weights(run: Run) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in run.model.trained().values()])


def test_exact_steps_end_within_an_epoch_and_continue_to_the_same_weights(
    trainer: Trainer, tmp_path: Path
) -> None:
    """56 photos in batches of 15 are four steps an epoch."""
    exact = RECIPE.model_copy(update={"steps": 6, "bounded": False})
    whole, state = trainer.train(exact), tmp_path / "exact.resume"
    interrupt(trainer, exact, state, 5)
    continued = trainer.train(exact, state)
    assert torch.equal(weights(continued), weights(whole))
    assert continued.losses == whole.losses
    assert len(whole.losses) == whole.metadata.recipe.epochs == 2
    assert torch.load(state)["progress"]["done"] == 6


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(after=st.integers(1, STEPS - 1))
def test_a_run_interrupted_anywhere_ends_with_the_same_weights(
    trainer: Trainer, whole: Run, tmp_path: Path, after: int
) -> None:
    state = tmp_path / f"{after}.resume"
    interrupt(trainer, RECIPE, state, after)
    continued = trainer.train(RECIPE, state)
    assert torch.equal(weights(continued), weights(whole))
    assert continued.losses == whole.losses


def test_a_finished_run_whose_checkpoint_was_lost_is_not_repeated(
    trainer: Trainer, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.train(RECIPE, tmp_path / "run.resume")
    monkeypatch.setattr(OptimisationState, "update", lambda *_: pytest.fail("trained again"))
    again = trainer.train(RECIPE, tmp_path / "run.resume")
    assert torch.equal(weights(again), weights(whole))


def test_another_runs_resume_file_is_refused_and_stays(trainer: Trainer, tmp_path: Path) -> None:
    state = tmp_path / "run.resume"
    interrupt(trainer, RECIPE, state, 2)
    before = state.read_bytes()
    other = RECIPE.model_copy(update={"seed": 1})
    with pytest.raises(UserError, match=r"run\.resume was left by an interrupted run with another"):
        trainer.train(other, state)
    assert state.read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_resume_file_is_refused(trainer: Trainer, tmp_path: Path, share: float) -> None:
    state = tmp_path / "run.resume"
    interrupt(trainer, RECIPE, state, 2)
    data = state.read_bytes()
    state.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"cannot be read: remove it"):
        trainer.train(RECIPE, state)


def test_the_curves_hold_every_step_and_the_accuracy_at_the_end(
    trainer: Trainer, tmp_path: Path
) -> None:
    run = trainer.train(RECIPE, curves_folder=tmp_path)
    curves = read_curves(tmp_path)
    steps = [loss for _, loss in curves["loss/step"]]
    assert [step for step, _ in curves["loss/step"]] == list(range(STEPS))
    photos = [15, 15, 15, 11]
    means = [
        sum(loss * count for loss, count in zip(steps[at : at + 4], photos, strict=True)) / 56
        for at in (0, 4, 8)
    ]
    assert means == pytest.approx(run.losses, rel=1e-5)
    assert [loss for _, loss in curves["loss/epoch"]] == pytest.approx(run.losses)
    rates = [rate for _, rate in curves["rate/tower"]]
    assert rates[:3] == pytest.approx([5e-4 / 3, 2 * 5e-4 / 3, 5e-4])
    assert [rate for _, rate in curves["rate/head"]] == pytest.approx([2 * rate for rate in rates])
    ((_, accuracy),) = curves["validation/single"]
    assert accuracy == pytest.approx(100 * round(6 * accuracy / 100) / 6)


def test_the_curves_of_a_continued_run_have_every_step_once(
    trainer: Trainer, tmp_path: Path
) -> None:
    interrupt(trainer, RECIPE, tmp_path / "run.resume", 5, tmp_path)
    trainer.train(RECIPE, tmp_path / "run.resume", tmp_path)
    assert [step for step, _ in read_curves(tmp_path)["loss/step"]] == list(range(STEPS))


def test_a_run_from_the_beginning_replaces_old_curves(trainer: Trainer, tmp_path: Path) -> None:
    for _ in range(2):
        trainer.train(RECIPE, curves_folder=tmp_path)
    assert [step for step, _ in read_curves(tmp_path)["loss/step"]] == list(range(STEPS))


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read TFRecords: length (8 bytes), checksum (4), an event, checksum (4)."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                curves.setdefault(value.tag, []).append((event.step, value.simple_value))
            data = data[16 + length :]
    return curves


@pytest.mark.parametrize("initial", ["text", "prototypes"])
def test_photos_set_aside_do_not_affect_the_weights(
    colours: Dataset, tiny_backbone: str, initial: str
) -> None:
    """Neither by their pixels nor, for a loss that counts photos, by their number."""
    recipe = RECIPE.model_copy(
        update={"head": RECIPE.head.model_validate({"initial": {"name": initial}})}
    )
    aside = [0, 1, colours.train.labels.index(2)]
    photos = list(colours.train.photos)
    for index in aside:
        photos[index] = colours.train.photos[-1 - index]
    changed = replace(colours, train=replace(colours.train, photos=tuple(photos)))
    trainers = [
        Trainer(dataset, load_backbone(tiny_backbone), torch.device("cpu"))
        for dataset in (colours, changed)
    ]
    first, second = (weights(trainer.train(recipe, without=aside)) for trainer in trainers)
    assert torch.equal(first, second)
    assert not torch.equal(*(weights(trainer.train(recipe)) for trainer in trainers))


def test_tau_is_chosen_on_val_after_a_training_with_tau_1(
    trainer: Trainer, whole: Run, colours: Dataset, tmp_path: Path
) -> None:
    recipe = RECIPE.model_copy(update={"loss": LogitAdjusted(tau="auto")})
    interrupt(trainer, recipe, tmp_path / "auto.resume", 5)
    run = trainer.train(recipe, tmp_path / "auto.resume")
    assert torch.equal(weights(run), weights(whole))
    # Every tau by itself, on the mean of the five views.
    assert colours.val is not None
    raw = trainer.view_logits(run, colours.val).mean(1)
    shares = np.array(colours.counts) / sum(colours.counts)
    labels = np.array(colours.val.labels)
    accuracy = {
        tau: np.mean((raw - (tau - 1) * np.log(shares)).argmax(1) == labels) for tau in TAUS
    }
    best = [tau for tau in TAUS if np.isclose(accuracy[tau], max(accuracy.values()))]
    tau = min(best, key=lambda tau: abs(tau - 1))
    assert run.metadata.recipe.chosen_tau == tau
    moved = Run(run.model, run.metadata.model_copy(update={"recipe": recipe.with_tau(1.75)}))
    assert np.allclose(moved.answers(raw), raw - 0.75 * np.log(shares), atol=1e-5)
    # A bundle takes this out of the logits, to answer likewise.
    prior = answered_prior(moved.metadata.recipe, colours.counts)
    assert prior == pytest.approx(shares**0.75 / sum(shares**0.75))


def test_tau_is_not_chosen_without_val_and_nothing_is_trained(
    colours: Dataset, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OptimisationState, "update", lambda *_: pytest.fail("trained"))
    blind = Trainer(replace(colours, val=None), load_backbone(tiny_backbone), torch.device("cpu"))
    recipe = RECIPE.model_copy(update={"loss": LogitAdjusted(tau="auto")})
    with pytest.raises(UserError, match=r"loss\.tau = auto is chosen on val/ and there is none"):
        blind.train(recipe)


def test_cues_change_the_training_exactly_if_their_gate_is_open(
    trainer: Trainer, whole: Run
) -> None:
    def cued(cues: Cues) -> Run:
        return trainer.train(RECIPE.model_copy(update={"loss": LogitAdjusted(cues=cues)}))

    # Of three classes, no first quarter holds any: only a gate of 0 is open.
    off, on = cued(Cues()), cued(Cues(gate=0, count=1))
    assert torch.equal(weights(off), weights(whole))
    assert off.losses == whole.losses
    assert not torch.equal(weights(on), weights(whole))
    assert min(np.subtract(on.losses, whole.losses)) > 0, "a binary loss was added"
    switched = [run.metadata.record.cues for run in (off, on)]
    assert [(one.on, one.photos) for one in switched if one] == [(False, 5), (True, 5)]
    assert whole.metadata.record.cues is None


def test_cues_of_a_backbone_without_text_are_refused_before_anything_is_computed(
    colours: Dataset, tiny_backbone: str
) -> None:
    textless = Trainer(colours, replace(load_backbone(tiny_backbone), _clip=None))
    head = RECIPE.head.model_validate({"initial": {"name": "random"}})
    recipe = RECIPE.model_copy(update={"head": head, "loss": LogitAdjusted(cues=Cues())})
    with pytest.raises(UserError, match=r"loss\.cues ask zero-shot CLIP, and backbone .* no text"):
        textless.train(recipe)
