"""Soups: `taillift merge` averages finished checkpoints, and may train the head again."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from taillift.models.bundle.atomic import file_sha256
from taillift.models.bundle.manifest import Scores
from taillift.models.errors import UserError
from taillift.models.lift.average import AVERAGED, average
from taillift.models.lift.backbone import Backbone
from taillift.models.lift.model import merge
from taillift.models.lift.tuners import AdaptFormer, Full, Tuner
from taillift.models.names import canonical
from taillift.training.calibration.cross_fit import carried_prior
from taillift.training.data.dataset import Dataset
from taillift.training.evaluation import evaluate
from taillift.training.fit.build import build_model, resolve_recipe, weight_shape
from taillift.training.fit.checkpoint import ParentCheckpoint, restore
from taillift.training.fit.distributed import Processes
from taillift.training.fit.progress import Curves
from taillift.training.fit.provenance import new_provenance
from taillift.training.fit.resume import Resume
from taillift.training.recipe.recipe import Recipe, load_recipe
from taillift.training.recipe.semi_supervision import UlFine
from taillift.training.train import Run, Trainer, fit

NAME: Final = "soup"
# The shares that are tried.
GRID: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
# What a head that is trained again has from the soup's recipe.
HEAD_FIELDS: Final = ("head", "loss", "seed", "precision")
# By how much given shares may miss a sum of 1.
ROUNDING: Final = 1e-6


@dataclass(frozen=True)
class Ingredient:
    """A checkpoint to average: its file with the file's hash, and what it restores to."""

    path: Path
    sha256: str
    run: Run


def read_ingredients(paths: Sequence[Path], backbone: str | None = None) -> list[Ingredient]:
    """Restore the checkpoints; raises `UserError` if two of them cannot be averaged.

    `backbone` is for one that has moved since.
    """
    if len(paths) < 2:
        raise UserError("name two checkpoints or more: one alone has nothing to be averaged with")
    ingredients: list[Ingredient] = []
    for path in paths:
        run = Run(*restore(path, backbone))
        ingredients.append(Ingredient(path, file_sha256(path).hexdigest(), run))
        refuse_methods(ingredients[-1])
        refuse_other(ingredients[0], ingredients[-1])
    return ingredients


def refuse_methods(ingredient: Ingredient) -> None:
    """Raise `UserError` if the checkpoint was trained by a method that has no average."""
    recipe = ingredient.run.metadata.recipe
    for tuner in trained_tuners(recipe):
        if not isinstance(tuner, AVERAGED):
            raise UserError(
                f"{ingredient.path} has {tuner.name}, which has no average: take checkpoints of "
                "lift, full, lora or another method that folds into plain weights"
            )
    if isinstance(recipe.teaching, UlFine):
        raise UserError(f"{ingredient.path} has the two fused heads of ulfine, which stay apart")


def refuse_other(first: Ingredient, other: Ingredient) -> None:
    """Raise `UserError` if the checkpoints differ in what an average must have in common."""
    one, two = first.run.metadata, other.run.metadata
    head, other_head = one.recipe.head, two.recipe.head
    priors = [carried_prior(each.recipe, each.prior_counts) for each in (one, two)]
    reasons = {
        "other classes": one.classes != two.classes,
        "other numbers of training photos": one.counts != two.counts,
        "another backbone": one.backbone_sha256 != two.backbone_sha256,
        "another preprocessing": one.preprocessing != two.preprocessing,
        f"a head of another kind ({other_head.kind}, not {head.kind})": head.kind
        != other_head.kind,
        f"a head in another space ({other_head.space}, not {head.space})": head.space
        != other_head.space,
        f"a head of another scale ({other_head.scale}, not {head.scale})": head.scale
        != other_head.scale,
        "a loss that leaves another prior in the logits": len(priors[0]) == len(priors[1])
        and not np.allclose(priors[0], priors[1]),
    }
    for reason, differs in reasons.items():
        if differs:
            raise UserError(f"{other.path} has {reason} than {first.path}: they have no average")


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
    metadata = used[0][0].run.metadata
    recipe = soup_recipe([one.run.metadata.recipe for one, _ in used])
    tails = [one.run.metadata.recipe.loss.tail for one, _ in used]
    if any(tails):
        tail = sum(share * tail for (_, share), tail in zip(used, tails, strict=True))
        recipe = recipe.with_tau(1 + tail)
    if len(used) == 1:
        model = copy.deepcopy(used[0][0].run.model)
    else:
        shape = weight_shape(backbone, recipe.head, len(metadata.classes))
        model = build_model(backbone, recipe, torch.zeros(shape))
        average([one.run.model for one, _ in used], [share for _, share in used], model)
    record = new_provenance(Processes(torch.device("cpu")), None)
    seconds = sum(one.run.metadata.record.seconds for one, _ in used)
    changes = {
        "recipe": recipe,
        "key": "",
        "pool_sha256": "",
        "trainable_parameters": model.trainable_parameters,
        "record": record.model_copy(update={"seconds": seconds}),
        "parents": tuple(parent_of(one, share) for one, share in used),
    }
    return Run(model.eval(), metadata.model_copy(update=changes))


def soup_recipe(recipes: Sequence[Recipe]) -> Recipe:
    """Return a recipe whose model can hold the average of the recipes' models.

    The head, the loss and the crops are those of the first. One recipe alone keeps its tuners.
    """
    titles = " and ".join(recipe.title for recipe in recipes)
    # Its steps were taken by its parents.
    settled = {"unlabelled": None, "steps": None, "effort": "quick"}
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
    metadata = ingredient.run.metadata
    return ParentCheckpoint(
        file=ingredient.path.name,
        sha256=ingredient.sha256,
        share=share,
        recipe=metadata.recipe,
        record=metadata.record,
        parents=metadata.parents,
    )


def require_own_photos(ingredients: Sequence[Ingredient], dataset: Dataset) -> None:
    """Raise `UserError` unless the training photos may be those of the checkpoints.

    val/ and test/ may be others than when they were trained.
    """
    metadata = ingredients[0].run.metadata
    classes = tuple(map(canonical, metadata.classes))
    if (classes, metadata.counts) != (dataset.classes, tuple(dataset.counts)):
        raise UserError(
            f"{ingredients[0].path} was trained on other photos ({metadata.sources}) than those of "
            f"{dataset.folder}: name the photos it was trained on, with the same --add"
        )


def chosen_shares(
    ingredients: Sequence[Ingredient],
    trainer: Trainer,
    backbone: Backbone,
    log: Callable[[str], None] = print,
) -> list[float]:
    """Return the shares with the best mean-class accuracy on val/, with five views.

    Each checkpoint in turn is mixed into those before it, with the best share of `GRID`; of equally
    good ones, the most even. test/ is not looked at. Raises `UserError` without val/.
    """
    if trainer.dataset.val is None:
        raise UserError(
            f"{trainer.dataset.name} has no val/ to choose the share on: add val/, or pass "
            "--share 0.5"
        )
    shares = [1.0] + [0.0] * (len(ingredients) - 1)
    for number in range(1, len(ingredients)):
        tried: list[tuple[float, float, list[float]]] = []
        for share in GRID:
            mixed = [(1 - share) * each for each in shares]
            mixed[number] = share
            found = on_val(averaged(ingredients, mixed, backbone), trainer)
            log(f"shares {in_words(mixed)}: {accuracy_in_words(found)}")
            tried.append((found.mean_class, -abs(share - 0.5), mixed))
        shares = max(tried)[2]
    return shares


def on_val(run: Run, trainer: Trainer) -> Scores:
    """Return the accuracy on the photos of val/, which there must be, with five views."""
    val = trainer.dataset.val
    assert val is not None
    labels, groups = np.asarray(val.labels), trainer.dataset.groups
    logits = run.answers(trainer.view_logits(run, val))
    return evaluate("val", logits, labels, groups).full


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
    if len(shares) != checkpoints or not in_range or abs(sum(shares) - 1) > ROUNDING:
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
            update={"title": f"{metadata.recipe.title}, new head"}
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
    """Return the average of the checkpoints with the best shares on val/.

    It has a new head if that has the better mean-class accuracy on val/. Raises `UserError` if the
    checkpoints have no average, or without val/.
    """
    ingredients = read_ingredients(paths, backbone.name)
    soup = averaged(ingredients, chosen_shares(ingredients, trainer, backbone, log), backbone)
    renewed = with_new_head(soup, trainer.dataset, backbone)
    before, after = on_val(soup, trainer), on_val(renewed, trainer)
    log(f"a new head: {accuracy_in_words(after)}")
    return renewed if after.mean_class > before.mean_class else soup
