"""Several recipes over several seeds on the same photos; what is finished is never run again."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from taillift.models.bundle.atomic import require_writable
from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone
from taillift.training.comparison.outcome import (
    Outcome,
    place_of,
    read_outcome,
    read_outcomes,
    write_outcome,
)
from taillift.training.comparison.table import labels_of, write_csv
from taillift.training.data.dataset import Dataset
from taillift.training.evaluation import class_accuracies, evaluate
from taillift.training.fit.build import resolve
from taillift.training.fit.checkpoint import read_metadata, restore, save
from taillift.training.fit.distributed import Processes, is_first
from taillift.training.fit.resume import read_state, resume_path, run_key
from taillift.training.recipe.recipe import Recipe
from taillift.training.train import Run, Trainer

CSV = "results.csv"


def compare(
    dataset: Dataset,
    backbone: Backbone,
    recipes: Sequence[Recipe],
    out: Path,
    device: torch.device | None = None,
    replace: bool = False,
    tell: Callable[[str], None] = print,
) -> list[Outcome]:
    """Train and measure every recipe; the outcomes are in the order of `recipes`.

    Each run leaves a checkpoint and an outcome in `out`, and a row in results.csv; runs that have
    left an outcome are not repeated, unless they failed. A run that fails is an outcome, too.
    Raises `UserError` where there are no held-out photos, where a recipe is asked for twice, and
    where `out` holds results on other photos or of another backbone, or of the same name that
    came from something else, unless `replace` allows to overwrite them. Where `torchrun` has
    started several processes, all of them call it.
    """
    if dataset.held_out is None:
        raise UserError(f"{dataset.name} has neither test/ nor val/: nothing to compare on")
    _check_names(recipes)
    require_writable(out / CSV)
    recipes = [resolve(backbone, one, dataset.counts) for one in recipes]
    keys = [run_key(one, dataset.fingerprint, backbone.sha256) for one in recipes]
    found = [_finished(out, recipe, key) for recipe, key in zip(recipes, keys, strict=True)]
    processes = Processes(device)
    # All processes go by what the first has found.
    outcomes = dict(zip(keys, processes.broadcast(found), strict=True))
    missing = [one for one, key in zip(recipes, keys, strict=True) if outcomes[key] is None]
    if is_first():
        _clear_others(out, dataset, backbone, replace)
        for recipe, key in zip(recipes, keys, strict=True):
            if outcomes[key] is None:
                _make_room(out, recipe, key, replace)
    if len(missing) < len(recipes):
        tell(f"{len(recipes) - len(missing)} of {len(recipes)} runs were finished before")
    trainer = Trainer(dataset, backbone, device)
    start = time.monotonic()
    labels = labels_of(recipes)
    ordered = in_order(missing)
    for place, recipe in enumerate(ordered):
        known = [one for one in outcomes.values() if one is not None]
        gone, left = time.monotonic() - start, expected_seconds(ordered[place:], known)
        label = f"{labels[recipe.name]}, seed {recipe.seed}"
        tell(f"[{place + 1}/{len(ordered)}] {label}{_clock(gone, left)}")
        outcome = _run(trainer, recipe, backbone, out, processes.size == 1, replace)
        outcomes[outcome.key] = outcome
        tell(f"    {_in_short(outcome)}")
        if is_first():
            write_outcome(place_of(out, recipe, ".json"), outcome)
            collect(out)
    if is_first():
        collect(out)
    return [one for key in keys if (one := outcomes[key]) is not None]


def in_order(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Such that runs can share the rows behind frozen stages, of which `Trainer` keeps one kind.

    By seed, augmentation and epochs, for these have rows of their own.
    """
    return sorted(
        recipes, key=lambda one: (one.seed, one.augmentation.model_dump_json(), one.epochs)
    )


def expected_seconds(recipes: Sequence[Recipe], known: Sequence[Outcome]) -> float | None:
    """How long the runs will take: as the same recipe's others did, or the average run."""
    if not known:
        return None
    average = mean(one.seconds for one in known)
    by_name = {one.recipe.name: one.seconds for one in known}
    return sum(by_name.get(one.name, average) for one in recipes)


def collect(out: Path) -> None:
    """Write results.csv from all outcomes in the folder.

    Another process may add its own meanwhile: then once more, so that whoever writes last has
    seen all.
    """
    written = None
    while (outcomes := read_outcomes(out)) != written:
        write_csv(out / CSV, list(outcomes.values()))
        written = outcomes


def _run(
    trainer: Trainer, recipe: Recipe, backbone: Backbone, out: Path, alone: bool, replace: bool
) -> Outcome:
    """Train and measure; only measure what `taillift train` has left, unless it is to `replace`.

    Of several processes one may fail `alone`, and the others would wait for it for ever: then the
    error is raised.
    """
    dataset = trainer.dataset
    checkpoint = place_of(out, recipe, ".safetensors")
    key = run_key(recipe, dataset.fingerprint, backbone.sha256)
    outcome = Outcome(
        key=key,
        recipe=recipe,
        data=dataset.name,
        fingerprint=dataset.fingerprint,
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        seconds=0.0,
    )
    start = time.monotonic()
    before = 0.0
    try:
        if alone and not replace and _key_of(checkpoint) == key:
            run = Run(*restore(checkpoint, backbone.name))
            before = run.facts.record.seconds
        else:
            run = trainer.train(recipe, resume_path(checkpoint))
    except UserError as error:
        if not alone:
            raise
        return outcome.model_copy(update={"failure": str(error), "seconds": _since(start)})
    measured = _measure(trainer, run)
    seconds = round(before + _since(start), 1)
    # Whether one may be overwritten was asked before all the work.
    save(checkpoint, run.model, run.facts, replace=True)
    return outcome.model_copy(
        update={
            "trainable_parameters": run.facts.trainable_parameters,
            "seconds": seconds,
            "record": run.facts.record,
            **measured,
        }
    )


def _measure(trainer: Trainer, run: Run) -> dict[str, object]:
    dataset = trainer.dataset
    assert dataset.held_out is not None
    name, split = dataset.held_out
    labels = np.asarray(split.labels)
    logits = trainer.view_logits(run, split)
    groups = dataset.groups
    return {
        "evaluation": evaluate(f"{dataset.name} {name}", logits, labels, groups),
        "accuracies": tuple(class_accuracies(logits, labels, len(groups))),
    }


def _check_names(recipes: Sequence[Recipe]) -> None:
    (name, seed), count = Counter((one.name, one.seed) for one in recipes).most_common(1)[0]
    if count > 1:
        raise UserError(f"{name} with seed {seed} is asked for twice: name each recipe once")


def _finished(out: Path, recipe: Recipe, key: str) -> Outcome | None:
    """What this very run has left; None where it failed, for the reason may be gone."""
    found = read_outcome(place_of(out, recipe, ".json"))
    return found if found is not None and found.key == key and not found.failure else None


def _clear_others(out: Path, dataset: Dataset, backbone: Backbone, replace: bool) -> None:
    """Raises `UserError` where outcomes on other photos or of another backbone are there.

    They would be rows among this comparison's. To `replace` removes them; their checkpoints stay.
    """
    ours = dataset.fingerprint, backbone.sha256
    for path, outcome in read_outcomes(out).items():
        if (outcome.fingerprint, outcome.backbone_sha256) == ours:
            continue
        if not replace:
            raise UserError(
                f"{path} is of other photos or another backbone ({outcome.data}, "
                f"{outcome.backbone}): choose another --out, or pass --replace"
            )
        path.unlink(missing_ok=True)


def _make_room(out: Path, recipe: Recipe, key: str, replace: bool) -> None:
    """Raises `UserError` where another run's checkpoint is in the way, unless `replace`."""
    checkpoint = place_of(out, recipe, ".safetensors")
    if checkpoint.exists() and not replace and _key_of(checkpoint) != key:
        raise UserError(
            f"{checkpoint} is of another recipe, data or backbone: choose another --out, or pass "
            "--replace"
        )
    if replace:
        _forget_other(resume_path(checkpoint), key)


def _key_of(checkpoint: Path) -> str | None:
    """Of the run that ended in it; None where there is none that can be read."""
    try:
        return read_metadata(checkpoint).key
    except UserError:
        return None


def _forget_other(state: Path, key: str) -> None:
    """Remove what another run left when it was interrupted."""
    try:
        read_state(state, key)
    except UserError:
        state.unlink()


def _since(start: float) -> float:
    return round(time.monotonic() - start, 1)


def _clock(gone: float, left: float | None) -> str:
    if left is None:
        return ""
    return f" ({_duration(gone)} gone, about {_duration(left)} left)"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _in_short(outcome: Outcome) -> str:
    if outcome.evaluation is None:
        return f"failed: {outcome.failure}"
    full = outcome.evaluation.full
    few = "" if full.few is None else f", few {full.few:.1f} %"
    return f"mean-class {full.mean_class:.1f} %{few} in {outcome.seconds:.0f} s"
