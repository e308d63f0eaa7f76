"""Soups: one model as the average of several.

`taillift merge` averages finished checkpoints. A recipe with a part `soup` trains them first.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final
from zlib import crc32

import numpy as np
import torch

from taillift.models.bundle.arrays import Flags
from taillift.models.bundle.atomic import file_sha256
from taillift.models.bundle.manifest import Scores
from taillift.models.errors import UserError
from taillift.models.lift.average import AVERAGED, Average
from taillift.models.lift.backbone import Backbone
from taillift.models.lift.model import Model, merge
from taillift.models.lift.tuners import AdaptFormer, Full, Tuner
from taillift.models.release.paired import PairedCounts
from taillift.training.calibration.cross_fit import carried_prior
from taillift.training.comparison.outcome import run_path
from taillift.training.comparison.verdict import members
from taillift.training.data.dataset import Dataset, Split
from taillift.training.evaluation import evaluate, predictions
from taillift.training.fit.build import build_model, resolve_recipe, weight_shape
from taillift.training.fit.checkpoint import (
    CheckpointMetadata,
    ParentCheckpoint,
    checkpoint_key,
    checkpoint_stem,
    make_room,
    restore,
    save,
)
from taillift.training.fit.distributed import Processes
from taillift.training.fit.progress import Curves
from taillift.training.fit.provenance import new_provenance
from taillift.training.fit.resume import Resume, resume_path, run_key_of
from taillift.training.recipe.recipe import SHARE_ROUNDING, Aim, Recipe, Soup, load_recipe
from taillift.training.recipe.semi_supervision import UlFine
from taillift.training.train import Run, Trainer, fit

NAME: Final = "soup"
NEW_HEAD: Final = ", new head"
# The shares that are tried.
GRID: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
# What a head that is trained again has from the soup's recipe.
HEAD_FIELDS: Final = ("head", "loss", "seed", "precision")
# LT-Soups: the share of each further subset, and the fewest steps on one.
SUBSET_SHARE: Final = 0.7
SUBSET_STEPS: Final = 100


@dataclass(frozen=True)
class Ingredient:
    """A checkpoint to average: its file with the file's hash, and its metadata.

    `load` restores its model, which takes memory only while it is used.
    """

    path: Path
    sha256: str
    metadata: CheckpointMetadata
    load: Callable[[], Model]


def read_ingredients(paths: Sequence[Path], backbone: str | None = None) -> list[Ingredient]:
    """Restore the checkpoints; raises `UserError` if two of them cannot be averaged.

    `backbone` is for one that has moved since.
    """
    if len(paths) < 2:
        raise UserError("name two checkpoints or more: one alone has nothing to be averaged with")
    ingredients: list[Ingredient] = []
    for path in paths:
        metadata = restore(path, backbone)[1]
        load = partial(restored_model, path, backbone)
        ingredients.append(Ingredient(path, file_sha256(path).hexdigest(), metadata, load))
        refuse_methods(str(path), metadata.recipe)
        refuse_other(ingredients[0], ingredients[-1])
    return ingredients


def restored_model(path: Path, backbone: str | None) -> Model:
    """Return the model of a checkpoint; raises what `restore` raises."""
    return restore(path, backbone)[0]


def refuse_methods(name: str, recipe: Recipe) -> None:
    """Raise `UserError` if what is called `name` was trained by a method that has no average."""
    for tuner in trained_tuners(recipe):
        if not isinstance(tuner, AVERAGED):
            raise UserError(
                f"{name} has {tuner.name}, which has no average: take lift, full, lora or another "
                "method that folds into plain weights"
            )
    if isinstance(recipe.teaching, UlFine):
        raise UserError(f"{name} has the two fused heads of ulfine, which stay apart")


def refuse_other(first: Ingredient, other: Ingredient) -> None:
    """Raise `UserError` if the checkpoints differ in what an average must have in common."""
    one, two = first.metadata, other.metadata
    priors = [carried_prior(each.recipe, each.prior_counts) for each in (one, two)]
    reasons = {
        "other classes": one.classes != two.classes,
        "other numbers of training photos": one.counts != two.counts,
        "another backbone": one.backbone_sha256 != two.backbone_sha256,
        "another preprocessing": one.preprocessing != two.preprocessing,
    }
    for reason, differs in (reasons | recipe_differences(one.recipe, two.recipe, priors)).items():
        if differs:
            raise UserError(f"{other.path} has {reason} than {first.path}: they have no average")


def recipe_differences(
    one: Recipe, two: Recipe, priors: Sequence[Sequence[float]]
) -> dict[str, bool]:
    """Return what models of two recipes may differ in so that they have no average.

    `priors` are the shares of the classes that each leaves in its logits.
    """
    head, other_head = one.head, two.head
    return {
        f"a head of another kind ({other_head.kind}, not {head.kind})": head.kind
        != other_head.kind,
        f"a head in another space ({other_head.space}, not {head.space})": head.space
        != other_head.space,
        f"a head of another scale ({other_head.scale}, not {head.scale})": head.scale
        != other_head.scale,
        "a loss that leaves another prior in the logits": len(priors[0]) == len(priors[1])
        and not np.allclose(priors[0], priors[1]),
    }


def trained_tuners(recipe: Recipe) -> tuple[Tuner, ...]:
    """Return the recipe's tuners; none if it trains nothing."""
    return recipe.tuners if recipe.epochs else ()


def can_be_averaged(recipe: Recipe) -> bool:
    """Return whether the recipe tunes the tower in a way that can be averaged."""
    tuners, fused = trained_tuners(recipe), isinstance(recipe.teaching, UlFine)
    return bool(tuners) and all(isinstance(tuner, AVERAGED) for tuner in tuners) and not fused


def averaged(ingredients: Sequence[Ingredient], shares: Sequence[float], backbone: Backbone) -> Run:
    """Return the average of the checkpoints, weighted by `shares`, which sum to 1.

    With a share of 1, it is that checkpoint's model itself.
    """
    used = [(one, share) for one, share in zip(ingredients, shares, strict=True) if share > 0]
    metadata = used[0][0].metadata
    recipe = soup_recipe([one.metadata.recipe for one, _ in used])
    tails = [one.metadata.recipe.loss.tail for one, _ in used]
    if any(tails):
        tail = sum(share * tail for (_, share), tail in zip(used, tails, strict=True))
        recipe = recipe.with_tau(1 + tail)
    if len(used) == 1:
        model = used[0][0].load()
    else:
        shape = weight_shape(backbone, recipe.head, len(metadata.classes))
        mixture = Average(build_model(backbone, recipe, torch.zeros(shape)))
        for one, share in used:
            mixture.add(one.load(), share)
        model = mixture.finish()
    record = new_provenance(Processes(torch.device("cpu")), None)
    seconds = sum(one.metadata.record.seconds for one, _ in used)
    changes = {
        "recipe": recipe,
        "key": "",
        "pool_sha256": "",
        "trainable_parameters": model.trainable_parameters,
        "record": record.model_copy(update={"seconds": seconds}),
        "parents": tuple(parent_of(one, share) for one, share in used),
        "extended": tuple(change for one, _ in used for change in one.metadata.extended),
    }
    return Run(model.eval(), metadata.model_copy(update=changes))


def soup_recipe(recipes: Sequence[Recipe]) -> Recipe:
    """Return a recipe whose model can hold the average of the recipes' models.

    The head, the loss and the crops are those of the first. One recipe alone keeps its tuners.
    """
    titles = " and ".join(dict.fromkeys(recipe.title for recipe in recipes))
    # Its steps were taken by its parents.
    settled = {"unlabelled": None, "soup": None, "steps": None, "effort": "quick"}
    named = recipes[0].model_copy(update={"name": NAME, "title": f"soup of {titles}", **settled})
    if len(recipes) == 1:
        return named
    tuning = [recipe for recipe in recipes if trained_tuners(recipe)]
    tuners = [tuner for recipe in tuning for tuner in recipe.tuners]
    rank = sum(tuner.rank or 0 for tuner in tuners if isinstance(tuner, AdaptFormer))
    plain = any(not isinstance(tuner, AdaptFormer) for tuner in tuners)
    blocks = [recipe.blocks for recipe in tuning]
    most = max((number for number in blocks if number), default=None)
    return named.model_copy(
        update={
            "tuners": (*([Full()] if plain else []), *([AdaptFormer(rank=rank)] if rank else [])),
            "blocks": None if None in blocks else most,
            "epochs": max(1, *(recipe.epochs for recipe in recipes)),
        }
    )


def parent_of(ingredient: Ingredient, share: float) -> ParentCheckpoint:
    """Return what the average's metadata keep of one of its parents."""
    metadata = ingredient.metadata
    return ParentCheckpoint(
        file=ingredient.path.name,
        sha256=ingredient.sha256,
        share=share,
        recipe=metadata.recipe,
        record=metadata.record,
        parents=metadata.parents,
    )


def chosen_shares(
    ingredients: Sequence[Ingredient],
    trainer: Trainer,
    backbone: Backbone,
    log: Callable[[str], None] = print,
    aim: Aim = "mean-class",
) -> list[float]:
    """Return the shares to average with: even ones, unless others are surely better on val/.

    Each checkpoint in turn is mixed into those before it. The accuracy is that which is aimed at,
    with five views. The best share of `GRID` replaces the even one if the 95 % interval of their
    paired difference is above 0: a few hundred photos are too few to tell shares apart by their
    accuracy alone. test/ is not looked at. Raises `UserError` without val/.
    """
    if trainer.dataset.val is None:
        raise UserError(
            f"{trainer.dataset.name} has no val/ to choose the share on: add val/, or pass "
            "--share 0.5"
        )
    shares = (1.0, *[0.0] * (len(ingredients) - 1))
    found: dict[tuple[float, ...], OnVal] = {}
    for number in range(1, len(ingredients)):
        even, tried = 1 / (number + 1), dict[float, tuple[float, ...]]()
        for share in sorted({*GRID, even}):
            mixed = [(1 - share) * each for each in shares]
            mixed[number] = share
            tried[share] = tuple(mixed)
            # A share of 0 leaves what the turn before has found.
            if tried[share] not in found:
                found[tried[share]] = on_val(averaged(ingredients, mixed, backbone), trainer)
                log(f"shares {in_words(mixed)}: {accuracy_in_words(found[tried[share]].scores)}")
        best = max(tried, key=lambda share: accuracy(found[tried[share]].scores, aim))
        surely = is_surely_better(found[tried[best]], found[tried[even]], trainer.dataset, aim)
        shares = tried[best if surely else even]
    return list(shares)


@dataclass(frozen=True)
class OnVal:
    """How a model does on val/, with five views: its accuracy, and which photos [N] are right."""

    scores: Scores
    right: Flags


def on_val(run: Run, trainer: Trainer) -> OnVal:
    """Return how the model does on the photos of val/, which there must be."""
    val = trainer.dataset.val
    assert val is not None
    labels, groups = np.asarray(val.labels), trainer.dataset.groups
    logits = run.answers(trainer.view_logits(run, val))
    _, full = predictions(logits)
    return OnVal(evaluate("val", logits, labels, groups).full, full == labels)


def is_surely_better(one: OnVal, other: OnVal, dataset: Dataset, aim: Aim) -> bool:
    """Return whether the accuracy that is aimed at is better on val/, beyond noise."""
    assert dataset.val is not None
    labels = np.asarray(dataset.val.labels)
    aimed = members(dataset.groups, aim)[labels]
    counts = PairedCounts.of(labels[aimed], other.right[aimed], one.right[aimed])
    return counts.interval.low > 0


def accuracy(found: Scores, aim: Aim) -> float:
    """Return the accuracy that is aimed at, in per cent; `require_photos` says if there is one."""
    value = found.few if aim == "few" else found.mean_class
    assert value is not None
    return value


def require_photos(aim: Aim, dataset: Dataset, split: Split) -> None:
    """Raise `UserError` if few-shot accuracy is aimed at and no photo of the split is few-shot."""
    few = {label for label, group in enumerate(dataset.groups) if group == "few"}
    if aim == "few" and few.isdisjoint(split.labels):
        raise UserError(
            f"--aim few: {dataset.name} holds out no photo of a few-shot class to choose on: leave "
            "it out"
        )


def accuracy_in_words(found: Scores) -> str:
    """Return the mean-class and few-shot accuracy on val/ as a line's part."""
    few = "" if found.few is None else f", few {found.few:.1f} %"
    return f"mean-class {found.mean_class:.1f} %{few} on val/"


def in_words(shares: Sequence[float]) -> str:
    """Return shares as the command takes them."""
    return ",".join(f"{share:.4g}" for share in shares)


def given_shares(text: str, checkpoints: int) -> list[float]:
    """Return the shares in a text: one for each checkpoint, or that of the second of two.

    Raises `UserError` if there are others, or if they do not sum to 1.
    """
    refusal = UserError(
        f"--share {text!r} for {checkpoints} checkpoints: give auto, a number from 0 to 1, or one "
        "for each checkpoint that sum to 1"
    )
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        raise refusal from None
    if len(shares) == 1 and checkpoints == 2:
        shares = [1 - shares[0], shares[0]]
    in_range = all(0 <= share <= 1 for share in shares)
    if len(shares) != checkpoints or not in_range or abs(sum(shares) - 1) > SHARE_ROUNDING:
        raise refusal
    return shares


def with_new_head(soup: Run, dataset: Dataset, backbone: Backbone) -> Run:
    """Return the run with its head trained again on its own features, from where it is.

    The tower does not change. Rates and steps are those of the recipe `head`, the loss that of the
    first parent.
    """
    metadata = soup.metadata
    shared = {name: getattr(metadata.recipe, name) for name in HEAD_FIELDS}
    recipe = resolve_recipe(backbone, load_recipe("head").model_copy(update=shared), dataset.counts)
    model, frozen = copy.deepcopy(soup.model), merge(soup.model)
    frozen.head = copy.deepcopy(soup.model.head).requires_grad_(True)
    trainer = Trainer(dataset, replace(backbone, tower=frozen.tower))
    crops = trainer.frozen_crops(recipe, metadata.preprocessing)
    inputs, processes = crops.inputs_for(frozen, metadata.preprocessing.size), Processes(None)
    steps = recipe.total_steps(len(dataset.train), len(dataset.train))
    counts, resume = dataset.counts, Resume(None, "", processes)
    progress = fit(frozen, inputs, counts, recipe, steps, processes, resume, Curves())
    model.head.load_state_dict(frozen.head.state_dict())
    record = new_provenance(processes, progress)
    changes = {
        "recipe": metadata.recipe.model_copy(
            update={"title": f"{metadata.recipe.title}{NEW_HEAD}"}
        ),
        "record": record.model_copy(update={"seconds": record.seconds + metadata.record.seconds}),
        # Its loss has seen labelled photos alone.
        "pseudo_counts": (),
    }
    return Run(model.eval(), metadata.model_copy(update=changes))


def best_soup(
    paths: Sequence[Path],
    trainer: Trainer,
    backbone: Backbone,
    log: Callable[[str], None] = print,
) -> Run:
    """Return the average of the checkpoints: even, unless other shares are surely better on val/.

    It has a new head if that is surely better on val/. Raises `UserError` if the
    checkpoints have no average, or without val/.
    """
    ingredients = read_ingredients(paths, backbone.name)
    soup = averaged(ingredients, chosen_shares(ingredients, trainer, backbone, log), backbone)
    return better_head(soup, trainer, backbone, "mean-class", log)


def better_head(
    soup: Run, trainer: Trainer, backbone: Backbone, aim: Aim, log: Callable[[str], None]
) -> Run:
    """Return the run with a new head if that is surely better on val/, else as it is."""
    renewed = with_new_head(soup, trainer.dataset, backbone)
    before, after = on_val(soup, trainer), on_val(renewed, trainer)
    log(f"a new head: {accuracy_in_words(after.scores)}")
    return renewed if is_surely_better(after, before, trainer.dataset, aim) else soup


@dataclass(frozen=True)
class Parent:
    """A run of a soup's recipe: the recipe to train, without the training photos at some indices.

    The recipe's name says which photos are left out, so that the name and the photos of the set
    together tell a run from others.
    """

    recipe: Recipe
    without: frozenset[int] = frozenset()


def parents_of(recipe: Recipe, dataset: Dataset) -> list[list[Parent]]:
    """Return the runs that a soup is the average of, a list for each of its seeds.

    `recipe` is resolved. With subsets, each list begins with the untrained model. Raises
    `UserError` if there is only one run, or if they have no average.
    """
    assert recipe.soup is not None
    names = Counter(parent.name for parent in recipe.soup.parents)
    (name, times) = names.most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{recipe.name}: soup.parents names {name} twice: name it once, with several soup.seeds"
        )
    by_seed = []
    for seed in dict.fromkeys(recipe.soup.seeds or (recipe.seed,)):
        recipes = [parent.model_copy(update={"seed": seed}) for parent in recipe.soup.parents]
        if recipe.soup.subsets:
            by_seed.append(on_subsets(recipes, recipe.soup.subsets, dataset))
        else:
            by_seed.append([Parent(parent) for parent in recipes])
    parents = [parent.recipe for group in by_seed for parent in group]
    if len(parents) < 2:
        raise UserError(
            f"{recipe.name} has one parent with one seed: name two or more in soup.parents, or "
            "several seeds, such as --seeds 0,1,2"
        )
    first, prior = parents[0], carried_prior(parents[0], dataset.counts)
    for parent in parents:
        refuse_methods(f"soup.parents: {parent.name}", parent)
        priors = [prior, carried_prior(parent, dataset.counts)]
        reasons = recipe_differences(first, parent, priors)
        interpolations = {one.augmentation.interpolation for one in (first, parent)}
        reasons["another preprocessing"] = len(interpolations) > 1
        for reason, differs in reasons.items():
            if differs:
                raise UserError(
                    f"soup.parents: {parent.name} has {reason} than {first.name}: they have no "
                    "average"
                )
    return by_seed


def on_subsets(recipes: Sequence[Recipe], subsets: int, dataset: Dataset) -> list[Parent]:
    """Return the untrained model, then each recipe on each of ever longer-tailed subsets.

    Subset i has at most n 2^i photos of a class, n being those of the rarest. There are no more
    after the first with all photos.
    """
    nothing = {"tuners": (), "epochs": 0, "steps": None, "effort": "quick", "unlabelled": None}
    named = {"name": f"{recipes[0].name}-start", "title": "untrained"}
    parents = [Parent(recipes[0].model_copy(update={**nothing, **named}))]
    most = min(dataset.counts)
    for _ in range(subsets):
        parents += [on_subset(recipe, most, dataset) for recipe in recipes]
        if most >= max(dataset.counts):
            break
        most *= 2
    return parents


def on_subset(recipe: Recipe, most: int, dataset: Dataset) -> Parent:
    """Return the recipe on at most so many photos of each class.

    Each recipe draws its own, by its name and seed alone, so that what is trained does not depend
    on the soup's other parents. It takes as many passes as on all photos, but at least
    `SUBSET_STEPS` steps.
    """
    labels = np.asarray(dataset.train.labels)
    name = crc32(recipe.name.encode())
    order = np.random.default_rng((recipe.seed, name, most)).permutation(len(labels))
    kept = [
        photo
        for label in range(len(dataset.classes))
        for photo in order[labels[order] == label][:most].tolist()
    ]
    epochs = max(recipe.epochs, -(-SUBSET_STEPS // recipe.steps_per_epoch(len(kept))))
    changes = {
        "name": f"{recipe.name}-at-most-{most}",
        "title": f"{recipe.title}, at most {most} a class",
        "epochs": epochs,
        "steps": None,
        "effort": "quick",
    }
    without = frozenset(range(len(labels))).difference(kept)
    return Parent(recipe.model_copy(update=changes), without)


def subset_shares(subsets: int, branches: int, share: float) -> list[float]:
    """Return the share of the untrained model, then of each branch on each subset (LT-Soups).

    The soup w begins as the untrained model and becomes (1 - share) w + share times the mean of the
    branches on each subset in turn.
    """
    means = [share * (1 - share) ** (subsets - 1 - number) for number in range(subsets)]
    return [(1 - share) ** subsets, *(mean / branches for mean in means for _ in range(branches))]


def finished_checkpoint(folder: Path, recipe: Recipe, key: str, backbone: str) -> Path | None:
    """Return the checkpoint of the run with this key, which `train` or `compare` has left."""
    # `taillift train` has the backbone in the names of its checkpoints.
    named = folder / f"{checkpoint_stem(recipe, backbone)}.safetensors"
    paths = (run_path(folder, recipe, ".safetensors"), named)
    return next((path for path in paths if checkpoint_key(path) == key), None)


def make_room_for_parents(
    recipe: Recipe, dataset: Dataset, backbone: Backbone, runs: Path, replace: bool
) -> None:
    """Prepare the runs of a resolved soup's parents in `runs`, before any is trained.

    Raises what `parents_of` and `make_room` raise, and `UserError` in several processes or without
    a photo to choose the shares on as the soup says.
    """
    assert recipe.soup is not None
    if dataset.val is not None:
        require_photos(recipe.soup.aim, dataset, dataset.val)
    if Processes(None).size > 1:
        raise UserError(
            f"{recipe.name} averages in one process: train its parents under torchrun by `taillift "
            "compare`, then run this without torchrun"
        )
    for parent in (parent for group in parents_of(recipe, dataset) for parent in group):
        key = run_key_of(parent.recipe, dataset, backbone)
        make_room(run_path(runs, parent.recipe, ".safetensors"), key, replace)


def train_soup(
    trainer: Trainer,
    recipe: Recipe,
    backbone: Backbone,
    runs: Path,
    replace: bool = False,
    log: Callable[[str], None] = print,
) -> Run:
    """Train the parents of a soup's recipe, average them, and train the head again if it says so.

    The parents' checkpoints are in `runs`; those that are finished are not trained again, and one
    that was interrupted is continued. Without val/, shares that are not given are equal, and the
    head stays. Raises what training and `make_room_for_parents` raise.
    """
    dataset = trainer.dataset
    recipe = resolve_recipe(backbone, recipe, dataset.counts)
    make_room_for_parents(recipe, dataset, backbone, runs, replace)
    soup, by_seed = recipe.soup, parents_of(recipe, dataset)
    assert soup is not None
    paths = [[checkpoint_of(trainer, one, backbone, runs, log) for one in g] for g in by_seed]
    ingredients = read_ingredients([path for group in paths for path in group], backbone.name)

    # The shares of each seed's models, then those of the seeds.
    size = len(by_seed[0])
    by_seed_shares = [
        seed_shares(soup, ingredients[start : start + size], trainer, backbone, log)
        for start in range(0, len(ingredients), size)
    ]
    mixtures = np.kron(np.eye(len(by_seed)), np.ones(size)) * np.concatenate(by_seed_shares)
    if len(by_seed) == 1:
        shares = by_seed_shares[0]
    elif dataset.val is None:
        log("There is no val/ to choose seeds on: all have the same share")
        shares = mixtures.mean(0).tolist()
    else:

        def score(mixture: Sequence[float]) -> float:
            found = on_val(averaged(ingredients, mixture, backbone), trainer).scores
            log(f"shares {in_words(mixture)}: {accuracy_in_words(found)}")
            return accuracy(found, soup.aim)

        shares = greedy_mixture(mixtures.tolist(), score)

    plain = averaged(ingredients, shares, backbone)
    if soup.new_head == "auto" and dataset.val is not None and not soup.subsets:
        made = better_head(plain, trainer, backbone, soup.aim, log)
    # LT-Soups' head has to see all photos.
    elif soup.new_head is True or (soup.new_head == "auto" and soup.subsets):
        made = with_new_head(plain, dataset, backbone)
    else:
        made = plain
    return with_provenance(made, recipe, run_key_of(recipe, dataset, backbone), ingredients, shares)


def checkpoint_of(
    trainer: Trainer,
    parent: Parent,
    backbone: Backbone,
    runs: Path,
    log: Callable[[str], None],
    replace: bool = False,
) -> Path:
    """Return the checkpoint of a run in `runs`; it is trained unless it is there.

    With `replace`, the parents of a soup may overwrite other checkpoints.
    """
    recipe, path = parent.recipe, run_path(runs, parent.recipe, ".safetensors")
    key = run_key_of(recipe, trainer.dataset, backbone)
    if (finished := finished_checkpoint(runs, recipe, key, backbone.name)) is not None:
        log(f"{recipe.title}, seed {recipe.seed}: trained before")
        return finished
    log(f"{recipe.title}, seed {recipe.seed}")
    if recipe.soup is None:
        run = trainer.train(recipe, resume_path(path), without=parent.without)
    else:
        run = train_soup(trainer, recipe, backbone, runs, replace, log)
    statistics = trainer.statistics(run.model, run.metadata)
    save(path, run.model, run.metadata, replace=True, statistics=statistics)
    return path


def seed_shares(
    soup: Soup,
    ingredients: Sequence[Ingredient],
    trainer: Trainer,
    backbone: Backbone,
    log: Callable[[str], None],
) -> list[float]:
    """Return the shares of the parents with one seed: those given, else those of `chosen_shares`.

    Without val/, parents have equal shares.
    """
    branches = len(soup.parents)
    if soup.subsets:
        share = SUBSET_SHARE if soup.shares is None else soup.shares[1]
        return subset_shares((len(ingredients) - 1) // branches, branches, share)
    if soup.shares is not None:
        return list(soup.shares)
    if trainer.dataset.val is None:
        # The towers have seen all training photos, so these cannot say which share is best.
        if branches > 1:
            log(
                "There is no val/ to choose the share on: each parent has the same "
                f"({1 / branches:.3g}), and soup.share sets others"
            )
        return [1 / branches] * branches
    return chosen_shares(ingredients, trainer, backbone, log, soup.aim)


def greedy_mixture(
    mixtures: Sequence[Sequence[float]], score: Callable[[Sequence[float]], float]
) -> list[float]:
    """Return the mean of the mixtures that together have the best score (Wortsman et al. 2022).

    The best begins, and each of the others, the better ones first, is added unless the mean is then
    worse. So the result is never worse than the best of them.
    """
    scores = [score(mixture) for mixture in mixtures]
    best, *others = sorted(range(len(mixtures)), key=lambda number: -scores[number])
    kept, reached = [mixtures[best]], scores[best]
    for number in others:
        tried = score(np.mean([*kept, mixtures[number]], axis=0).tolist())
        if tried >= reached:
            kept.append(mixtures[number])
            reached = tried
    shares: list[float] = np.mean(kept, axis=0).tolist()
    return shares


def with_provenance(
    made: Run, recipe: Recipe, key: str, ingredients: Sequence[Ingredient], shares: Sequence[float]
) -> Run:
    """Return a soup with the name and the key of its recipe, and what all its parents cost.

    Its recipe keeps the shares that were chosen, if they are those of the parents alone.
    """
    metadata, soup, title = made.metadata, recipe.soup, made.metadata.recipe.title
    assert soup is not None
    renewed = title.endswith(NEW_HEAD)
    if soup.subsets:
        parents = " and ".join(parent.title for parent in soup.parents)
        title = f"soup of {parents} on {soup.subsets} subsets{NEW_HEAD * renewed}"
    if len(shares) == len(soup.parents):
        soup = soup.model_copy(update={"share": tuple(shares), "new_head": renewed})
    unused = [one for one, share in zip(ingredients, shares, strict=True) if share <= 0]
    seconds = sum(one.metadata.record.seconds for one in unused) + metadata.record.seconds
    changes = {
        "recipe": metadata.recipe.model_copy(
            update={"name": recipe.name, "title": title, "seed": recipe.seed, "soup": soup}
        ),
        "key": key,
        "trainable_parameters": sum(one.metadata.trainable_parameters for one in ingredients),
        "record": metadata.record.model_copy(update={"seconds": seconds}),
    }
    return Run(made.model, metadata.model_copy(update=changes))
