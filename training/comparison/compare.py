"""Several recipes over several seeds on the same photos; a finished run is never repeated."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace as with_changes
from datetime import timedelta
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from taillift.models.bundle.atomic import require_writable
from taillift.models.bundle.ensemble import mean_over_views
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.posterior import log_shares, without_prior
from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone
from taillift.training.calibration.cross_fit import carried_prior
from taillift.training.comparison.outcome import (
    Outcome,
    failures,
    labels_of,
    read_outcome,
    read_outcomes,
    run_path,
    succeeded,
    write_csv,
    write_outcome,
    write_tau_csv,
)
from taillift.training.comparison.soup import (
    NAME,
    Parent,
    best_soup,
    can_be_averaged,
    checkpoint_of,
    finished_checkpoint,
    make_room_for_parents,
    require_photos,
    soup_recipe,
    train_soup,
)
from taillift.training.comparison.verdict import recommendation
from taillift.training.console import is_first
from taillift.training.data.dataset import Dataset, hold_out
from taillift.training.evaluation import class_accuracies, class_hits, evaluate, tau_curve
from taillift.training.fit.build import resolve_recipe
from taillift.training.fit.checkpoint import (
    CheckpointMetadata,
    checkpoint_key,
    make_room,
    read_metadata,
    restore,
    save,
)
from taillift.training.fit.distributed import Processes
from taillift.training.fit.resume import resume_path, run_key_of
from taillift.training.recipe.recipe import Aim, Recipe
from taillift.training.train import Run, Trainer

CSV = "results.csv"
TAU_CSV = "tau.csv"


def compare(
    dataset: Dataset,
    backbone: Backbone,
    recipes: Sequence[Recipe],
    out: Path,
    device: torch.device | None = None,
    replace: bool = False,
    log: Callable[[str], None] = print,
    soup: bool = False,
) -> list[Outcome]:
    """Train and evaluate every recipe, and return the outcomes in the order of `recipes`.

    With `soup`, those that tune the tower are then averaged for each seed, and the outcomes of the
    averages follow.

    Each run leaves a checkpoint and an outcome in `out`, and rows in results.csv and tau.csv. A run
    that has left an outcome is not repeated, unless it failed. A run that fails is an outcome, too.
    If `torchrun` has started several processes, all of them call this function.

    Raises `UserError` if there are no held-out photos, if a recipe is requested twice, or for what
    `soups_of` refuses. Unless
    `replace` allows overwriting, it also does so if `out` holds results on other photos, of another
    backbone, or of the same name from a different run.
    """
    if dataset.held_out is None:
        raise UserError(f"{dataset.name} has neither test/ nor val/: nothing to compare on")
    require_different(recipes)
    require_writable(out / CSV)
    recipes = [resolve_recipe(backbone, recipe, dataset.counts) for recipe in recipes]
    keys = [run_key_of(recipe, dataset, backbone) for recipe in recipes]
    finished = [
        finished_outcome(out, recipe, key) for recipe, key in zip(recipes, keys, strict=True)
    ]
    processes = Processes(device)
    soups = soups_of(recipes, dataset, processes.size) if soup else []
    # All processes use what the first has read.
    outcomes = dict(zip(keys, processes.broadcast(finished), strict=True))
    missing = [recipe for recipe, key in zip(recipes, keys, strict=True) if outcomes[key] is None]
    for recipe in missing:
        if recipe.soup is not None:
            make_room_for_parents(recipe, dataset, backbone, out, replace)
    if is_first():
        remove_other_outcomes(out, dataset, backbone, replace)
        for recipe, key in zip(recipes, keys, strict=True):
            if outcomes[key] is None:
                make_room(run_path(out, recipe, ".safetensors"), key, replace)
        for mixed in soups:
            key = soup_key([run_key_of(part, dataset, backbone) for part in mixed])
            make_room(run_path(out, soup_recipe(mixed), ".safetensors"), key, replace)
    if len(missing) < len(recipes):
        log(f"{len(recipes) - len(missing)} of {len(recipes)} runs were finished before")
    trainer = Trainer(dataset, backbone, device)
    start = time.monotonic()
    labels = labels_of(recipes)
    ordered = in_order(missing)
    for number, recipe in enumerate(ordered, 1):
        known = [outcome for outcome in outcomes.values() if outcome is not None]
        label, clock = f"{labels[recipe.name]}, seed {recipe.seed}", ""
        left = expected_seconds(ordered[number - 1 :], known)
        if left is not None:
            elapsed = timedelta(seconds=round(time.monotonic() - start))
            clock = f" ({elapsed} elapsed, about {timedelta(seconds=round(left))} left)"
        log(f"[{number}/{len(ordered)}] {label}{clock}")
        outcome = train_and_evaluate(
            trainer, recipe, backbone, out, processes.size == 1, replace, log
        )
        outcomes[outcome.key] = outcome
        log(f"    {_in_short(outcome)}")
        if is_first():
            write_outcome(run_path(out, recipe, ".json"), outcome)
            collect(out)
    finished_runs = [result for key in keys if (result := outcomes[key]) is not None]
    for mixed in soups:
        names = {(recipe.name, recipe.seed) for recipe in mixed}
        parts = [run for run in finished_runs if (run.recipe.name, run.recipe.seed) in names]
        finished_runs.append(average_and_evaluate(trainer, parts, backbone, out, log))
    if is_first():
        collect(out)
    return finished_runs


def require_different(recipes: Sequence[Recipe]) -> None:
    """Raise `UserError` if two runs would be the same."""
    requested = Counter((recipe.name, recipe.seed) for recipe in recipes)
    (name, seed), count = requested.most_common(1)[0]
    if count > 1:
        raise UserError(f"{name} with seed {seed} is asked for twice: name each recipe once")
    over_seeds = Counter(recipe.name for recipe in recipes if recipe.soup and recipe.soup.seeds)
    for name, count in over_seeds.items():
        if count > 1:
            raise UserError(
                f"{name}: soup.seeds makes the same soup with every seed: compare it with one"
            )


def choose(
    dataset: Dataset,
    backbone: Backbone,
    recipes: Sequence[Recipe],
    out: Path,
    replace: bool = False,
    log: Callable[[str], None] = print,
    aim: Aim = "mean-class",
) -> tuple[Path, str]:
    """Train each recipe, and return the checkpoint of the one to take by val/, and the reason.

    test/ is not looked at. The runs are in `out`, as those of `compare`. Without val/, a part of
    the training photos is set aside to choose on, and the recipe to take is then trained on all.
    Raises `UserError` if fewer than two recipes could be trained, if the checkpoint is no longer
    that of its run, and what `compare`, `require_photos` and `hold_out` raise.
    """
    unseen, runs = with_changes(dataset, test=None), out
    if dataset.val is None:
        unseen, runs = hold_out(unseen), out / "held-out"
    assert unseen.val is not None
    require_photos(aim, dataset, unseen.val)
    if dataset.val is None:
        log(
            f"There is no val/: {len(unseen.val)} training photos are set aside as val/ to choose "
            "on, and the recipe to take is then trained on all"
        )
    outcomes = compare(unseen, backbone, recipes, runs, replace=replace, log=log)
    chosen = recommendation(outcomes, dataset.groups, aim)
    if chosen is None:
        raise UserError(f"nothing to choose from: {'; '.join(failures(outcomes))}")
    recipe = chosen.row.recipe
    path = run_path(runs, recipe, ".safetensors")
    # Another process may be here before the first one has written it.
    if is_first():
        require_own_checkpoint(path, succeeded(chosen.row.outcomes)[0][0])
    if dataset.val is None:
        found = Processes(None).broadcast(read_metadata(path) if is_first() else None)
        assert found is not None
        recipe = resolve_recipe(backbone, as_chosen(recipe, found), dataset.counts)
        log(f"On all {len(dataset.train)} training photos:")
        if is_first():
            path, key = run_path(out, recipe, ".safetensors"), run_key_of(recipe, dataset, backbone)
            make_room(path, key, replace)
        trainer = Trainer(dataset, backbone)
        path = checkpoint_of(trainer, Parent(recipe), backbone, out, log, replace)
    return path, chosen.reason


def as_chosen(recipe: Recipe, found: CheckpointMetadata) -> Recipe:
    """Return the recipe with what its run, which left `found`, has chosen: its tau and its shares.

    The parents of a soup have the tau that each of them chose.
    """
    tau = 1.0 if found.recipe.chosen_tau is None else found.recipe.chosen_tau
    if recipe.undecided:
        recipe = recipe.with_tau(tau)
    if (soup := found.recipe.soup) is None:
        return recipe
    taus = {parent.recipe.name: parent.recipe.chosen_tau for parent in found.parents}
    parents = tuple(
        # One without a share has no part in the soup's tau.
        parent.with_tau(tau if (own := taus.get(parent.name)) is None else own)
        if parent.undecided
        else parent
        for parent in soup.parents
    )
    return recipe.model_copy(update={"soup": soup.model_copy(update={"parents": parents})})


def finished_outcome(out: Path, recipe: Recipe, key: str) -> Outcome | None:
    """Return what this very run has left; None if it failed, because the reason may be gone."""
    outcome = read_outcome(run_path(out, recipe, ".json"))
    return outcome if outcome and outcome.key == key and not outcome.failure else None


def remove_other_outcomes(out: Path, dataset: Dataset, backbone: Backbone, replace: bool) -> None:
    """Remove outcomes on other photos or of another backbone; their checkpoints stay.

    They would be rows among those of this comparison. Raises `UserError` if there are any, unless
    `replace` allows removing them.
    """
    own = dataset.fingerprint, backbone.sha256
    for path, outcome in read_outcomes(out).items():
        if (outcome.fingerprint, outcome.backbone_sha256) == own:
            continue
        if not replace:
            raise UserError(
                f"{path} is of other photos or another backbone ({outcome.data}, "
                f"{outcome.backbone}): choose another --out, or pass --replace"
            )
        path.unlink(missing_ok=True)


def require_own_checkpoint(path: Path, outcome: Outcome) -> None:
    """Raise `UserError` unless `path` is the checkpoint that this run has left."""
    if outcome.failure:
        raise UserError(f"{outcome.recipe.title} failed and has no checkpoint")
    if checkpoint_key(path) != outcome.key:
        raise UserError(
            f"{path} is not the checkpoint of the run in {path.with_suffix('.json').name}, or is "
            "gone: remove what is there of both, and run the command again"
        )


def in_order(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Sort recipes so that runs can share frozen features, of which `Trainer` keeps one kind.

    They are sorted by seed, augmentation and epochs, because each combination has its own features.
    Soups come last, so that their parents' runs are there.
    """

    def place(recipe: Recipe) -> tuple[bool, int, str, int]:
        crops = recipe.augmentation.model_dump_json()
        return recipe.soup is not None, recipe.seed, crops, recipe.epochs

    return sorted(recipes, key=place)


def expected_seconds(recipes: Sequence[Recipe], known: Sequence[Outcome]) -> float | None:
    """Estimate the time of the runs from other runs of the same recipe, or from the average run.

    None if no run is known.
    """
    if not known:
        return None
    average = mean(outcome.seconds for outcome in known)
    by_name = {outcome.recipe.name: outcome.seconds for outcome in known}
    return sum(by_name.get(recipe.name, average) for recipe in recipes)


def train_and_evaluate(
    trainer: Trainer,
    recipe: Recipe,
    backbone: Backbone,
    out: Path,
    alone: bool,
    replace: bool,
    log: Callable[[str], None],
) -> Outcome:
    """Train and evaluate a recipe, and save its checkpoint.

    A checkpoint that `taillift train` has left is only evaluated, unless `replace` is set. If this
    process is not `alone`, an error is raised instead of returned as a failure: the other processes
    would wait forever for the one that failed.
    """
    dataset = trainer.dataset
    assert dataset.held_out is not None
    checkpoint = run_path(out, recipe, ".safetensors")
    key = run_key_of(recipe, dataset, backbone)
    outcome = new_outcome(recipe, key, dataset, backbone)
    start = time.monotonic()
    trained_before = 0.0
    try:
        left = finished_checkpoint(out, recipe, key, backbone.name)
        if alone and not replace and left:
            run = Run(*restore(left, backbone.name))
            trained_before = run.metadata.record.seconds
        elif recipe.soup is not None:
            run = train_soup(
                trainer, recipe, backbone, out, replace, lambda line: log(f"    {line}")
            )
            # Most of the time is that of its parents, which may have been trained before.
            trained_before = max(0.0, run.metadata.record.seconds - time.monotonic() + start)
        else:
            run = trainer.train(recipe, resume_path(checkpoint))
    except UserError as error:
        if not alone:
            raise
        seconds = round(time.monotonic() - start, 1)
        return outcome.model_copy(update={"failure": str(error), "seconds": seconds})
    seconds = trained_before + time.monotonic() - start
    outcome = evaluated(trainer, run, outcome, seconds)
    # `make_room` has checked, before any work, whether a checkpoint may be overwritten.
    statistics = trainer.statistics(run.model, run.metadata)
    save(checkpoint, run.model, run.metadata, replace=True, statistics=statistics)
    return outcome


def new_outcome(recipe: Recipe, key: str, dataset: Dataset, backbone: Backbone) -> Outcome:
    """Return the outcome of a run that has not begun."""
    return Outcome(
        key=key,
        recipe=recipe,
        data=dataset.name,
        fingerprint=dataset.fingerprint,
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        seconds=0.0,
    )


def evaluated(trainer: Trainer, run: Run, outcome: Outcome, seconds: float) -> Outcome:
    """Return the outcome with the accuracy of its run, which took so many `seconds`.

    Recipes are chosen on val/ if there is one, else on the photos that are compared on.
    """
    dataset, metadata = trainer.dataset, run.metadata
    assert dataset.held_out is not None
    start = time.monotonic()
    name, split = dataset.held_out
    labels, groups = np.asarray(split.labels), dataset.groups
    raw = trainer.view_logits(run, split)
    logits = run.answers(raw)
    counts = metadata.prior_counts
    carried = log_shares(carried_prior(metadata.recipe, counts))
    full = mean_over_views(raw.reshape(-1, len(groups)), VIEWS)
    chosen_on, hits = f"{dataset.name} {name}", class_hits(logits, labels, len(groups))
    if dataset.val is not None and dataset.test is not None:
        # test/ shows what val/ has chosen.
        chosen_on, val = f"{dataset.name} val", dataset.val
        answers = run.answers(trainer.view_logits(run, val))
        hits = class_hits(answers, np.asarray(val.labels), len(groups))
    return outcome.model_copy(
        update={
            "trainable_parameters": metadata.trainable_parameters,
            "seconds": round(seconds + time.monotonic() - start, 1),
            "record": metadata.record,
            "evaluation": evaluate(f"{dataset.name} {name}", logits, labels, groups),
            "accuracies": tuple(class_accuracies(logits, labels, len(groups))),
            "tau_curve": tau_curve(without_prior(full, carried), labels, groups, counts),
            "chosen_on": chosen_on,
            "hits": hits,
        }
    )


def soups_of(recipes: Sequence[Recipe], dataset: Dataset, processes: int) -> list[list[Recipe]]:
    """Return the recipes to average for each seed: those that tune the tower and have an average.

    Raises `UserError` if there are fewer than two, if a recipe has the soups' name, without val/ to
    choose shares on or test/ to compare on, or in several processes.
    """
    if processes > 1:
        raise UserError("--soup works in one process: run it without torchrun, once all runs ended")
    if dataset.val is None or dataset.test is None:
        raise UserError(
            f"--soup chooses on val/ and compares on test/, and {dataset.name} lacks one of them"
        )
    if any(recipe.name == NAME for recipe in recipes):
        raise UserError(f"a recipe is called {NAME}, as what --soup makes: rename it")
    by_seed: dict[int, list[Recipe]] = {}
    for recipe in recipes:
        if can_be_averaged(recipe):
            by_seed.setdefault(recipe.seed, []).append(recipe)
    if not by_seed or min(map(len, by_seed.values())) < 2:
        raise UserError(
            "--soup averages recipes that tune the tower: name two or more, such as "
            "--recipes lift,full-adamw"
        )
    return list(by_seed.values())


def soup_key(keys: Sequence[str]) -> str:
    """Return the fingerprint of the soup of runs with these fingerprints."""
    return hashlib.sha256(" ".join(["soup", *keys]).encode()).hexdigest()


def average_and_evaluate(
    trainer: Trainer,
    parts: Sequence[Outcome],
    backbone: Backbone,
    out: Path,
    log: Callable[[str], None],
) -> Outcome:
    """Average the checkpoints of finished runs, unless that was done before, and evaluate it."""
    recipe, key = soup_recipe([part.recipe for part in parts]), soup_key([p.key for p in parts])
    log(f"{recipe.title}, seed {recipe.seed}")
    if (before := finished_outcome(out, recipe, key)) is not None:
        return before
    outcome, start = new_outcome(recipe, key, trainer.dataset, backbone), time.monotonic()
    paths = [run_path(out, part.recipe, ".safetensors") for part in parts]
    try:
        for path, part in zip(paths, parts, strict=True):
            require_own_checkpoint(path, part)
        made = best_soup(paths, trainer, backbone, lambda line: log(f"    {line}"))
    except UserError as error:
        outcome = outcome.model_copy(update={"failure": str(error)})
    else:
        metadata = made.metadata.model_copy(update={"key": key})
        path = run_path(out, recipe, ".safetensors")
        statistics = trainer.statistics(made.model, metadata)
        save(path, made.model, metadata, replace=True, statistics=statistics)
        seconds = sum(part.seconds for part in parts) + time.monotonic() - start
        outcome = evaluated(trainer, made, outcome, seconds)
        # All parts have to be trained for it, also those of which it has no share.
        trained = sum(part.trainable_parameters for part in parts)
        outcome = outcome.model_copy(update={"trainable_parameters": trained})
    log(f"    {_in_short(outcome)}")
    write_outcome(run_path(out, recipe, ".json"), outcome)
    return outcome


def _in_short(outcome: Outcome) -> str:
    """Return a line on what a run gave."""
    if outcome.evaluation is None:
        return f"failed: {outcome.failure}"
    full = outcome.evaluation.full
    few = "" if full.few is None else f", few {full.few:.1f} %"
    epochs = outcome.record.pseudo_labels if outcome.record else ()
    guessed = f"; {epochs[-1]}" if epochs else ""
    cues = f"; {outcome.record.cues}" if outcome.record and outcome.record.cues else ""
    return f"mean-class {full.mean_class:.1f} %{few} in {outcome.seconds:.0f} s{guessed}{cues}"


def collect(out: Path) -> None:
    """Write results.csv and tau.csv from all outcomes in the folder.

    If another process adds an outcome meanwhile, write again, so that whichever process writes last
    has seen all outcomes.
    """
    written = None
    while (outcomes := read_outcomes(out)) != written:
        write_csv(out / CSV, list(outcomes.values()))
        write_tau_csv(out / TAU_CSV, list(outcomes.values()))
        written = outcomes
