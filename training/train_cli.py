"""The commands of training: train, recipes, export, calibrate and compare.

Imports are inside the commands, so that `taillift --help` does not wait for torch.
"""

import ctypes
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from taillift.models.bundle.schema import MAX_PIXELS
from taillift.models.errors import UserError
from taillift.models.terminal import MaxPixels, printable_json, say

if TYPE_CHECKING:
    from taillift.models.bundle.manifest import Manifest
    from taillift.models.bundle.schema import Precision
    from taillift.training.data.dataset import Dataset
    from taillift.training.fit.checkpoint import CheckpointMetadata
    from taillift.training.fit.progress import Log
    from taillift.training.recipe.recipe import Aim, Recipe

app = typer.Typer()

# In the order of a comparison: nothing trained, a little, more, everything.
COMPARED: Final = "zero-shot,head,lift,full"
# Instead of a recipe: these are trained, and the one to take by val/ is kept.
AUTO: Final = "auto"
AUTO_RECIPES: Final = ("head", "lift", "full-adamw", "soup")

# Options of glibc's mallopt.
TRIM_THRESHOLD: Final = -1
MMAP_MAX: Final = -4

Data = Annotated[
    str,
    typer.Argument(
        help="Photos: a folder with train/CLASS/*.jpg (and val/, test/), list files, a CSV file, "
        "tar shards, CIFAR-100, or the sample set wardrobe-lt."
    ),
]
BackboneName = Annotated[
    str,
    typer.Option(
        help="Backbone: default, ARCH:PRETRAINED_TAG or ARCH:PATH, with open_clip's names, or "
        "timm:ARCH.TAG. @SIZE behind it changes the image size, such as @224."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a field of the recipe, such as epochs=5 or optimiser.tuner_rate=0.02. May be "
        "given several times.",
    ),
]
Unlabelled = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|SHARDS",
        help="Photos without labels: a folder, tar shards, or a CSV file whose labels are only "
        "used to count how many guesses are right. Default: the folder unlabelled/ of the photos.",
    ),
]
Add = Annotated[
    list[str] | None,
    typer.Option(
        "--add",
        metavar="PHOTOS",
        help="More labelled photos to train on, such as what was labelled since: class folders or "
        "any other layout; of a CSV file, the rows that have a label. Classes may be new. May be "
        "given several times.",
    ),
]
PhotosShown = Annotated[
    bool,
    typer.Option(
        "--photos/--no-photos",
        help="Show held-out photos in report.html: up to 24, made small.",
    ),
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the photos: --set epochs=...")]
Steps = Annotated[
    int | None,
    typer.Option(help="Exactly so many steps, in as many passes as they take: --set steps=..."),
]
Effort = Annotated[
    Literal["quick", "full"] | None,
    typer.Option(
        help="quick: the recipe's own steps, in at most 7 passes over the photos. full: more steps "
        "if there are many classes, and up to 20 passes: --set effort=...",
        show_default="quick",
    ),
]
Batch = Annotated[int | None, typer.Option(help="Photos per step: --set batch=...")]
Rate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        help="Learning rate of head and tuners alike: --set optimiser.head_rate=... and "
        "optimiser.tuner_rate=... Recipes have a rate for each.",
    ),
]
Goal = Annotated[
    Literal["mean-class", "few"] | None,
    typer.Option(
        help="Accuracy to choose by, on val/: of all classes on average, or of the few-shot "
        "classes.",
        show_default="mean-class",
    ),
]
Imbalance = Annotated[
    float | None,
    typer.Option(
        help="Cut the training photos to a long tail. This is the ratio of the largest class to "
        "the smallest."
    ),
]


@app.command()
def train(
    data: Data,
    recipe: Annotated[
        str,
        typer.Option(
            help="A name from `taillift recipes`, such as lift, or lift+loft to use unlabelled "
            "photos; or a YAML file. soup: several recipes are trained and averaged. auto: head, "
            "lift, full-adamw and soup are trained; the soup is kept if it may be the best on "
            "val/, or else the cheapest of those that may be."
        ),
    ] = "lift",
    changes: Set = None,
    effort: Effort = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Rate = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of initial weights, crops and order of the photos. Default: the recipe's, "
            "or 0."
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds of a soup's parents, separated by commas: the models of each are added "
            "unless that is worse on val/. --set soup.seeds=..."
        ),
    ] = None,
    aim: Goal = None,
    backbone: BackboneName = "default",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint to write, NAME.safetensors. Default: "
            "runs/DATA/RECIPE-SEED.safetensors, or RECIPE-BACKBONE-SEED with --backbone."
        ),
    ] = None,
    imbalance: Imbalance = None,
    add: Add = None,
    unlabelled: Unlabelled = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite an existing checkpoint.")
    ] = False,
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="wandb|mlflow",
            help="Send the curves there, too: TensorBoard's files are always written. May be given "
            "twice. Needs the extra of that name: pip install 'taillift[wandb]'.",
        ),
    ] = None,
) -> None:
    """Fine-tune a backbone on labelled photos and write a checkpoint.

    After an interruption, run the same command again: it continues after the last finished epoch.
    """
    from taillift.models.bundle.atomic import require_writable
    from taillift.models.lift.backbone import load_backbone
    from taillift.training.comparison.soup import train_soup
    from taillift.training.console import duration, is_first, note
    from taillift.training.data.dataset import load_dataset
    from taillift.training.fit.checkpoint import (
        check_free,
        checkpoint_stem,
        save,
    )
    from taillift.training.fit.progress import require_installed
    from taillift.training.fit.resume import resume_path
    from taillift.training.recipe.recipe import load_recipe
    from taillift.training.train import Trainer

    keep_freed_memory()
    logs = requested_logs(log or [])
    seeded = {} if seed is None else {"seed": seed}
    values = recipe_changes(changes, epochs, steps, batch, lr, effort) | seeded
    if recipe == AUTO:
        if logs or unlabelled:
            raise UserError(f"--recipe {AUTO} takes neither --log nor --unlabelled: name a recipe")
        if seeds:
            raise UserError(f"--recipe {AUTO} trains each recipe once: leave --seeds out")
        photos = load_dataset(data, imbalance, max_pixels, add or ())
        train_auto(photos, values, backbone, out, replace, aim or "mean-class")
        return
    chosen = load_recipe(recipe, values)
    if chosen.soup is not None and logs:
        raise UserError(f"--recipe {recipe} makes a soup, which has no curves: leave --log out")
    require_installed(logs)
    if chosen.soup is not None:
        chosen = load_recipe(recipe, values | soup_changes(seeds, aim))
    elif seeds or aim:
        raise UserError(
            "--seeds and --aim choose on val/ what goes into a soup: name a recipe with a part "
            "soup, such as --recipe soup (or --recipe auto for --aim alone)"
        )
    photos = load_dataset(data, imbalance, max_pixels, add or ())
    dataset = with_pool(photos, [chosen], data, unlabelled)
    stem = checkpoint_stem(chosen, backbone)
    path = out or Path("runs") / dataset.folder / f"{stem}.safetensors"
    check_free(path, replace)
    require_writable(path)
    try:
        curves = path.parent / "tensorboard" / path.stem
        tower = load_backbone(backbone)
        trainer = Trainer(dataset, tower)
        note(f"Training {chosen.title} on {dataset.name}: {duration(trainer.seconds(chosen))}")
        if chosen.soup is None:
            run = trainer.train(chosen, resume_path(path), curves, logs=logs)
        else:
            runs = path.with_suffix("")
            run = train_soup(trainer, chosen, tower, runs, replace, note)
    except KeyboardInterrupt:
        raise UserError(
            f"training was interrupted and {path} was not written: run the same command again to "
            "continue after the last finished epoch"
        ) from None
    statistics = trainer.statistics(run.model, run.metadata)
    save(path, run.model, run.metadata, replace, statistics)
    if not is_first():
        return
    guessed, tau = run.metadata.record.pseudo_labels, run.metadata.recipe.chosen_tau
    if run.metadata.parents:
        say(f"{run.metadata.recipe.title} ({shares_in_words(run.metadata)})")
    say(
        f"{path}: {run.metadata.trainable_parameters:,} parameters trained on "
        f"{len(dataset.train):,} photos of {len(dataset.classes)} classes"
        + (f", loss {run.losses[-1]:.3f}" if run.losses else "")
        + (f"; {guessed[-1]} in the last epoch" if guessed else "")
        + (f"; answers with tau = {tau:g}, trained with 1" if tau is not None else "")
    )


def train_auto(
    dataset: "Dataset",
    values: dict[str, Any],
    backbone: str,
    out: Path | None,
    replace: bool,
    aim: "Aim",
) -> None:
    """Train each of `AUTO_RECIPES`, changed by `values`, and keep the one to take by val/.

    After an interruption, finished runs are kept.
    """
    from taillift.models.bundle.atomic import require_writable
    from taillift.models.lift.backbone import load_backbone
    from taillift.training.comparison.compare import choose
    from taillift.training.console import is_first, note
    from taillift.training.fit.checkpoint import (
        check_free,
        checkpoint_stem,
        read_statistics,
        restore,
        save,
    )
    from taillift.training.fit.distributed import Processes
    from taillift.training.recipe.recipe import load_recipe

    unchanged = [load_recipe(name) for name in AUTO_RECIPES]
    values = {**soup_changes(None, aim), **values}
    recipes = [
        load_recipe(recipe.name, changes_for(recipe, values, unchanged)) for recipe in unchanged
    ]
    if Processes(None).size > 1:
        note("The soup is left out: models are averaged in one process")
        recipes = [recipe for recipe in recipes if recipe.soup is None]
    stem = checkpoint_stem(recipes[0].model_copy(update={"name": AUTO}), backbone)
    path = out or Path("runs") / dataset.folder / f"{stem}.safetensors"
    check_free(path, replace)
    require_writable(path)
    tower, runs = load_backbone(backbone), path.with_suffix("")
    try:
        checkpoint, reason = choose(dataset, tower, recipes, runs, replace, note, aim)
    except KeyboardInterrupt:
        raise UserError("interrupted: run the same command again, finished runs are kept") from None
    if is_first():
        save(path, *restore(checkpoint, backbone), replace, read_statistics(checkpoint))
        say(f"{path}: {reason}")


@app.command()
def merge(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="A.safetensors B.safetensors...",
            help="Checkpoints of one backbone, trained on the same photos.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint to write, NAME.safetensors.")],
    share: Annotated[
        str,
        typer.Option(
            metavar="auto|X",
            help="Share of the second of two checkpoints, 0 to 1, or a share for each, such as "
            "0.2,0.3,0.5. auto: equal ones, unless others are surely better on val/ of --data.",
        ),
    ] = "auto",
    data: Annotated[
        str | None,
        typer.Option(
            help="The photos that the checkpoints were trained on, for --share auto and --head."
        ),
    ] = None,
    head: Annotated[
        bool, typer.Option("--head", help="Train the head again on the average's features.")
    ] = False,
    backbone: Annotated[
        str | None, typer.Option(help="Where the backbone's weights are now, if they were moved.")
    ] = None,
    imbalance: Imbalance = None,
    add: Add = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite an existing checkpoint.")
    ] = False,
) -> None:
    """Average the weights of several checkpoints into one that is as fast as each of them."""
    from taillift.models.bundle.atomic import require_writable
    from taillift.models.lift.backbone import load_backbone
    from taillift.training.comparison import soup
    from taillift.training.data.dataset import load_dataset
    from taillift.training.fit.checkpoint import (
        check_free,
        measured_statistics,
        own_photos,
        save,
    )
    from taillift.training.train import Trainer

    keep_freed_memory()
    check_free(out, replace)
    require_writable(out)
    shares = None if share == "auto" else soup.given_shares(share, len(checkpoints))
    if data is None and (head or shares is None):
        what = "--head trains" if head else "--share auto chooses"
        raise UserError(f"{what} on photos: name those of the checkpoints with --data")
    ingredients = soup.read_ingredients(checkpoints, backbone)
    tower = load_backbone(backbone or ingredients[0].metadata.backbone)
    dataset = None if data is None else load_dataset(data, imbalance, max_pixels, add or ())
    if dataset is not None:
        dataset = own_photos(ingredients[0].path, ingredients[0].metadata, dataset)
        shares = shares or soup.chosen_shares(ingredients, Trainer(dataset, tower), tower, say)
    assert shares is not None
    made = soup.averaged(ingredients, shares, tower)
    statistics = None
    if dataset is not None:
        made = soup.with_new_head(made, dataset, tower) if head else made
        statistics = measured_statistics(made.model, made.metadata, dataset)
    save(out, made.model, made.metadata, replace, statistics)
    say(f"{out}: {made.metadata.recipe.title} ({shares_in_words(made.metadata)})")


@app.command()
def check(
    data: Data,
    add: Add = None,
    unlabelled: Unlabelled = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as one JSON object.")
    ] = False,
) -> None:
    """Report on a set of photos before training, without training anything.

    The report shows what is read and what is not used, the photos of each class and group, copies,
    photos that cannot be used, prompts that are the same, colour profiles and sizes. The exit
    status is 1 if training would refuse the set.
    """
    from taillift.training.data.survey import survey
    from taillift.training.data.survey_text import survey_text

    made = survey(data, max_pixels, unlabelled, add or ())
    document = json.dumps(made.model_dump(), ensure_ascii=False, indent=2)
    typer.echo(printable_json(document) if as_json else survey_text(made))
    if made.refusals:
        raise typer.Exit(1)


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Recipe to print: a name, or a YAML file.")
    ] = None,
) -> None:
    """List the recipes that come with taillift, or print one to start your own from."""
    from taillift.training.recipe.recipe import FOLDER, NAMES, load_recipe

    if name is None:
        width = max(map(len, NAMES))
        for recipe_name in NAMES:
            say(f"{recipe_name:{width}}  {load_recipe(recipe_name).title}")
    else:
        # A recipe with a mistake is refused, not printed.
        load_recipe(name)
        base, plus, method = name.partition("+")
        path = FOLDER / f"{base}.yaml" if base in NAMES else Path(name)
        say(path.read_text("utf-8").removesuffix("\n"))
        if plus and base in NAMES:
            say(f"unlabelled: {{name: {method}}}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint that `taillift train` wrote.")],
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Bundle to make. Default: bundles/DATA.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Where the backbone's weights are now, if they were moved.")
    ] = None,
    imbalance: Imbalance = None,
    add: Add = None,
    unlabelled: Unlabelled = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    calibration: Annotated[
        bool,
        typer.Option(
            help="Fit exit rule, temperatures, prediction sets and review thresholds on val/. "
            "Without val/, by cross-fitting: five trainings that each leave out a fifth of the "
            "photos."
        ),
    ] = True,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="Another graph besides fp32: int8 for CPUs, fp16 for GPUs. May be given twice."
        ),
    ] = None,
    photos: PhotosShown = True,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing bundle.")] = False,
) -> None:
    """Merge a checkpoint's tuners into the backbone and make a bundle to serve."""
    from taillift.models.release.comparison_text import print_comparison
    from taillift.training.data.dataset import load_dataset
    from taillift.training.export.export import TOLERANCE
    from taillift.training.export.export import export as make_bundle
    from taillift.training.fit.checkpoint import read_metadata

    keep_freed_memory()
    metadata = read_metadata(checkpoint)
    # After `taillift extend` the photos of one new class are enough.
    dataset = load_dataset(data, imbalance, max_pixels, add or (), 1 if metadata.extended else 2)
    if dataset.val is None and calibration and not metadata.extended:
        # Without val/, calibration trains again.
        dataset = with_pool(dataset, [metadata.recipe], data, unlabelled)
    target = out or Path("bundles") / dataset.folder
    variants = requested_variants(variant or [])
    exported = make_bundle(
        checkpoint, dataset, target, backbone, replace, calibration, variants, photos
    )
    proof = exported.proof
    say(
        f"merged against unmerged: largest logit difference {proof.merged:.1e} "
        f"on {proof.photos} photos (allowed: {TOLERANCE:g})\n"
        f"ONNX Runtime against torch: {proof.runtime:.1e}\n"
        f"graph: {proof.nodes} nodes"
    )
    if exported.unmerged:
        say(f"not mergeable, and kept as parts of the graph: {', '.join(exported.unmerged)}")
    for comparison in exported.comparisons.values():
        print_comparison(comparison)
    print_summary(target, exported.manifest)


@app.command()
def calibrate(
    bundle: Annotated[
        Path, typer.Argument(help="Bundle that `taillift export` made. It is not changed.")
    ],
    data: Data,
    out: Annotated[Path, typer.Option(help="Bundle to make.")],
    max_pixels: MaxPixels = MAX_PIXELS,
    photos: PhotosShown = True,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing bundle.")] = False,
) -> None:
    """Make a bundle with the same graphs, calibrated on other photos.

    The calibration is fitted on their val/ and measured on their test/.
    """
    from taillift.training.data.dataset import load_dataset
    from taillift.training.export.recalibrate import recalibrate

    dataset = load_dataset(data, max_pixels=max_pixels)
    print_summary(out, recalibrate(bundle, dataset, out, replace, photos))


@app.command()
def compare(
    data: Data,
    recipes: Annotated[
        str, typer.Option(help="Names from `taillift recipes` or YAML files, separated by commas.")
    ] = COMPARED,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    changes: Set = None,
    effort: Effort = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Rate = None,
    backbone: BackboneName = "default",
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and results. Default: runs/DATA.")
    ] = None,
    imbalance: Imbalance = None,
    add: Add = None,
    unlabelled: Unlabelled = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    aim: Goal = None,
    soup: Annotated[
        bool,
        typer.Option(
            "--soup",
            help="For each seed, also average the recipes that tune the tower, with shares and "
            "head chosen on val/.",
        ),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Overwrite results of other settings in the folder."),
    ] = False,
) -> None:
    """Train several recipes on the same photos and show their accuracy along the tail.

    Finished runs are kept: run the command again after an interruption, or with more recipes or
    seeds. --set applies to every recipe that trains anything, and its fields of `unlabelled` to
    those that have them, such as lift+loft. If a run fails, the others are shown
    and the exit status is 1.
    """
    from taillift.models.lift.backbone import load_backbone
    from taillift.models.terminal import PlainConsole
    from taillift.training.comparison.compare import CSV, TAU_CSV
    from taillift.training.comparison.compare import compare as run
    from taillift.training.comparison.outcome import failures, table
    from taillift.training.comparison.soup import require_photos
    from taillift.training.comparison.verdict import recommendation
    from taillift.training.console import is_first
    from taillift.training.data.dataset import load_dataset
    from taillift.training.recipe.recipe import load_recipe
    from taillift.training.report.comparison import write_report

    keep_freed_memory()
    values = recipe_changes(changes, epochs, steps, batch, lr, effort)
    if "seed" in values:
        raise UserError("--set seed: name the seeds with --seeds, such as --seeds 0,1,2")
    names = [name.strip() for name in recipes.split(",")]
    unchanged = {name: load_recipe(name) for name in names}
    if aim and any(recipe.soup for recipe in unchanged.values()):
        values = soup_changes(None, aim) | values
    chosen = [
        load_recipe(
            name, {**changes_for(unchanged[name], values, unchanged.values()), "seed": seed}
        )
        for seed in seeds_from(seeds)
        for name in names
    ]
    photos = load_dataset(data, imbalance, max_pixels, add or ())
    dataset = with_pool(photos, chosen, data, unlabelled)
    choice = dataset.val or dataset.test
    if aim and choice:
        require_photos(aim, dataset, choice)
    folder = out or Path("runs") / dataset.folder
    console = PlainConsole(quiet=not is_first())
    try:
        outcomes = run(
            dataset,
            load_backbone(backbone),
            chosen,
            folder,
            replace=replace,
            log=console.print,
            soup=soup,
        )
    except KeyboardInterrupt:
        raise UserError("interrupted: run the same command again, finished runs are kept") from None
    if not is_first():
        return
    command = shlex.join(["taillift", *sys.argv[1:]])
    written = write_report(folder, dataset, outcomes, command, aim or "mean-class")
    console.print(table(outcomes))
    failed = failures(outcomes)
    for line in failed:
        console.print(line)
    if advice := recommendation(outcomes, dataset.groups, aim or "mean-class"):
        console.print(advice.sentence)
    console.print(f"{folder} holds {', '.join([CSV, TAU_CSV, *written])}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(outcomes)} runs failed, for the reasons above: fix them and "
            "run the command again, the other runs are kept"
        )


@app.command()
def backbones(
    name: Annotated[
        str | None,
        typer.Argument(help="Architecture, or a part of the names to list, such as timm:vit_base."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list in JSON.")] = False,
) -> None:
    """List the architectures that work as backbones, and those that do not, without a download."""
    from taillift.models.architectures import details, published, table

    entries = published(name)
    if entries is None:
        from taillift.models.lift.catalogue import describe, names_like
        from taillift.training.console import track

        names = names_like(name)
        entries = [describe(one) for one in track(names, "looking at architectures", len(names))]
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    for line in details(entries[0]) if len(entries) == 1 else table(entries):
        typer.echo(line)
    if name is None:
        typer.echo("`taillift backbones timm:` lists the towers of timm, which have no text.")


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees until it ends; only glibc has to be told.

    torch takes and frees hundreds of megabytes for each batch. Given back to the system each time,
    they cost a convolution more in page faults than in arithmetic.
    """
    if (call := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        call(MMAP_MAX, 0)
        call(TRIM_THRESHOLD, 2**31 - 1)


def changes_for(
    recipe: "Recipe", values: dict[str, Any], compared: Iterable["Recipe"]
) -> dict[str, Any]:
    """Return the values that apply to one of the `compared` recipes: none if it trains nothing.

    A field of `unlabelled` applies to the recipes that have it. If none has, it applies to all with
    unlabelled photos, or to all recipes, so that a wrong name is refused. Fields of `soup` apply to
    soups, if there are any.
    """
    if not recipe.epochs:
        return {}
    if recipe.soup is None and any(one.soup for one in compared):
        values = {key: values[key] for key in values if not key.startswith("soup.")}
    own, known = (
        {field for one in recipes if one.unlabelled for field in type(one.unlabelled).model_fields}
        for recipes in ([recipe], list(compared))
    )
    applying = {}
    for key, value in values.items():
        part, _, field = key.partition(".")
        field = field.split(".")[0]
        wrong = field not in known and bool(own) == bool(known)
        if part != "unlabelled" or field in own or wrong:
            applying[key] = value
    return applying


def soup_changes(seeds: str | None, aim: str | None) -> dict[str, Any]:
    """Return the fields of a soup that --seeds and --aim change."""
    chosen = {"soup.seeds": seeds_from(seeds)} if seeds else {}
    return {**chosen, **({"soup.aim": aim} if aim else {})}


def shares_in_words(metadata: "CheckpointMetadata") -> str:
    """Return how much of which checkpoints an average consists of."""
    return ", ".join(f"{one.share:.4g} of {one.file}" for one in metadata.parents)


def with_pool(
    dataset: "Dataset", recipes: "Sequence[Recipe]", data: str, unlabelled: str | None
) -> "Dataset":
    """Return the set with its unlabelled photos, or those of --unlabelled, if a recipe uses them.

    Raises `UserError` if --unlabelled is given and no recipe does, or if photos are needed and
    there are none.
    """
    from taillift.training.data.pool import own_pool, with_unlabelled

    if not any(recipe.unlabelled for recipe in recipes):
        if unlabelled:
            raise UserError(
                "--unlabelled: no recipe here uses unlabelled photos: give one such as lift+loft, "
                "or leave the option out"
            )
        return dataset
    source = unlabelled or own_pool(data)
    if source is None:
        raise UserError(
            f"the recipe uses unlabelled photos: put them into {data}/unlabelled, or pass "
            "--unlabelled"
        )
    max_pixels = dataset.train.max_pixels
    return with_unlabelled(dataset, source, max_pixels)


def recipe_changes(
    assignments: Sequence[str] | None,
    epochs: int | None,
    steps: int | None,
    batch: int | None,
    rate: float | None,
    effort: str | None = None,
) -> dict[str, Any]:
    """Return the fields that --set and the options with names of their own change in a recipe.

    Raises `UserError` if a field is given twice.
    """
    from taillift.training.recipe.recipe import parse_changes

    named: dict[str, dict[str, float | str | None]] = {
        "--effort": {"effort": effort},
        "--epochs": {"epochs": epochs},
        "--steps": {"steps": steps},
        "--batch": {"batch": batch},
        "--lr": {"optimiser.head_rate": rate, "optimiser.tuner_rate": rate},
    }
    changes = parse_changes(assignments or [])
    for option, fields in named.items():
        for field, value in fields.items():
            if value is None:
                continue
            if field in changes:
                raise UserError(f"{option} and --set {field} change the same field: give one")
            changes[field] = value
    return changes


def print_summary(target: Path, manifest: "Manifest") -> None:
    """Print what is known of a new bundle, and its name and version."""
    from taillift.training.report.summary import summary

    for precision, variant in manifest.variants.items():
        for line in summary(variant):
            say(f"{precision}: {line}")
    say(f"{target}: bundle {manifest.name} {manifest.version}")


def requested_variants(names: Sequence[str]) -> "list[Precision]":
    """Return the precisions that --variant names; raise `UserError` if one does not exist."""
    from taillift.models.bundle.schema import Precision

    variants = [precision for precision in Precision if precision is not Precision.FP32]
    for name in names:
        if name not in variants:
            raise UserError(f"--variant {name}: give one of {', '.join(variants)}")
    return [variant for variant in variants if variant in names]


def requested_logs(names: Sequence[str]) -> "list[Log]":
    """Return the logs that --log names; raise `UserError` if one does not exist."""
    from taillift.training.fit.progress import Log

    for name in names:
        if name not in list(Log):
            raise UserError(f"--log {name}: give one of {', '.join(Log)}")
    return [Log(name) for name in names]


def seeds_from(text: str) -> list[int]:
    """Return the seeds in a text such as 0,1,2; raise `UserError` if it holds anything else."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text}: give whole numbers such as 0,1,2") from None
