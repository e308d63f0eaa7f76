"""The commands that make a model: train, export, calibrate, compare, and recipes."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from taillift.models.errors import UserError

if TYPE_CHECKING:
    from taillift.models.bundle.manifest import Manifest
    from taillift.models.bundle.schema import Precision

app = typer.Typer()

# In the order of a reader: nothing trained, little, more, everything.
COMPARED: Final = "zero-shot,head,lift,full"

Data = Annotated[
    str,
    typer.Argument(
        help="folder with train/CLASS/*.jpg (and val/, test/), list files, a CSV file, tar shards, "
        "CIFAR-100, or wardrobe-lt"
    ),
]
BackboneName = Annotated[
    str,
    typer.Option(
        help="default, ARCH:PRETRAINED_TAG or ARCH:PATH as open_clip names them, or timm:ARCH.TAG; "
        "@SIZE behind it changes the image size, such as @224"
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="change a field of the recipe, such as epochs=5 or optimiser.tuner_rate=0.02; may be "
        "given several times",
    ),
]
Imbalance = Annotated[
    float | None,
    typer.Option(
        help="cut the training photos to a long tail in which the largest class has so many times "
        "the photos of the smallest"
    ),
]


@app.command()
def train(
    data: Data,
    recipe: Annotated[
        str, typer.Option(help="a name from `taillift recipes`, or a YAML file")
    ] = "lift",
    changes: Set = None,
    seed: Annotated[
        int | None, typer.Option(help="of initial weights, crops and order; the recipe's, or 0")
    ] = None,
    backbone: BackboneName = "default",
    out: Annotated[
        Path | None,
        typer.Option(
            help="checkpoint to write, NAME.safetensors; runs/DATA/RECIPE-SEED.safetensors if not "
            "given"
        ),
    ] = None,
    imbalance: Imbalance = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="overwrite an existing checkpoint")
    ] = False,
) -> None:
    """Fine-tune a backbone on labelled photos and write a checkpoint."""
    from taillift.models.bundle.atomic import require_writable
    from taillift.models.lift.backbone import load_backbone
    from taillift.training.data.dataset import load_dataset
    from taillift.training.fit.checkpoint import check_free, save
    from taillift.training.fit.distributed import is_first
    from taillift.training.fit.resume import resume_path
    from taillift.training.recipe.recipe import load_recipe, parse_changes
    from taillift.training.train import Trainer

    seeded = {} if seed is None else {"seed": seed}
    chosen = load_recipe(recipe, {**parse_changes(changes or []), **seeded})
    dataset = load_dataset(data, imbalance)
    path = out or Path("runs") / dataset.name / f"{chosen.name}-{chosen.seed}.safetensors"
    check_free(path, replace)
    require_writable(path)
    try:
        curves = path.parent / "tensorboard" / path.stem
        run = Trainer(dataset, load_backbone(backbone)).train(chosen, resume_path(path), curves)
    except KeyboardInterrupt:
        raise UserError(
            f"training was interrupted and {path} not written: run the same command again, and it "
            "goes on from the last epoch"
        ) from None
    save(path, run.model, run.facts, replace)
    if not is_first():
        return
    typer.echo(
        f"{path}: {run.facts.trainable_parameters:,} parameters trained on "
        f"{len(dataset.train):,} photos of {len(dataset.classes)} classes"
        + (f", loss {run.losses[-1]:.3f}" if run.losses else "")
    )


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="print this one, by its name or as a YAML file")
    ] = None,
) -> None:
    """List the recipes that come with taillift, or print one to start your own from."""
    from taillift.training.recipe.recipe import FOLDER, NAMES, load_recipe

    if name is None:
        width = max(map(len, NAMES))
        for one in NAMES:
            typer.echo(f"{one:{width}}  {load_recipe(one).title}")
    else:
        load_recipe(name)
        path = FOLDER / f"{name}.yaml" if name in NAMES else Path(name)
        typer.echo(path.read_text("utf-8"), nl=False)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="what `taillift train` wrote")],
    data: Data,
    out: Annotated[Path | None, typer.Option(help="bundle to make, bundles/NAME if not given")] = (
        None
    ),
    backbone: Annotated[
        str | None, typer.Option(help="where the backbone's weights are now, if they moved")
    ] = None,
    imbalance: Imbalance = None,
    calibration: Annotated[
        bool,
        typer.Option(
            help="fit exit rule, temperatures and prediction sets on val/, or without it by "
            "training five times without a fifth of the photos"
        ),
    ] = True,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="int8 for CPUs, fp16 for GPUs, beside fp32; may be given twice"),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="replace an existing bundle")] = False,
) -> None:
    """Merge a checkpoint into plain weights and make a bundle to serve."""
    from taillift.training.data.dataset import load_dataset
    from taillift.training.export.export import TOLERANCE
    from taillift.training.export.export import export as make

    dataset = load_dataset(data, imbalance)
    target = out or Path("bundles") / dataset.name
    exported = make(
        checkpoint, dataset, target, backbone, replace, calibration, parse_variants(variant or [])
    )
    proof = exported.proof
    typer.echo(
        f"merged against unmerged: largest logit difference {proof.merged:.1e} "
        f"on {proof.photos} photos (allowed: {TOLERANCE:g})\n"
        f"ONNX Runtime against torch: {proof.runtime:.1e}\n"
        f"graph: {proof.nodes} nodes; unmerged it would have {proof.unmerged_nodes}"
    )
    if exported.unmerged:
        typer.echo(f"not mergeable, and kept as parts of the graph: {', '.join(exported.unmerged)}")
    tell(target, exported.manifest)


@app.command()
def calibrate(
    bundle: Annotated[Path, typer.Argument(help="what `taillift export` made; it stays as it is")],
    data: Data,
    out: Annotated[Path, typer.Option(help="bundle to make")],
    replace: Annotated[bool, typer.Option("--replace", help="replace an existing bundle")] = False,
) -> None:
    """Make a bundle with the same graphs, calibrated on other photos: val/, measured on test/."""
    from taillift.training.data.dataset import load_dataset
    from taillift.training.export.recalibrate import recalibrate

    tell(out, recalibrate(bundle, load_dataset(data), out, replace))


@app.command()
def compare(
    data: Data,
    recipes: Annotated[
        str, typer.Option(help="names from `taillift recipes` or YAML files, separated by commas")
    ] = COMPARED,
    seeds: Annotated[str, typer.Option(help="separated by commas")] = "0",
    changes: Set = None,
    backbone: BackboneName = "default",
    out: Annotated[
        Path | None, typer.Option(help="folder for checkpoints and results, runs/DATA if not given")
    ] = None,
    imbalance: Imbalance = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="overwrite results in the folder that came from something else"
        ),
    ] = False,
) -> None:
    """Train several recipes on the same photos and show their accuracy along the tail.

    Runs that are finished are kept: after an interruption, or with more recipes or seeds, run it
    again. --set applies to every recipe that trains anything. The exit status is 1 where a run
    failed; the others are shown.
    """
    from rich.console import Console

    from taillift.models.lift.backbone import load_backbone
    from taillift.training.comparison.compare import CSV
    from taillift.training.comparison.compare import compare as run
    from taillift.training.comparison.table import failures, table
    from taillift.training.data.dataset import load_dataset
    from taillift.training.fit.distributed import is_first
    from taillift.training.recipe.recipe import load_recipe, parse_changes
    from taillift.training.report.comparison import write_report

    values = parse_changes(changes or [])
    if "seed" in values:
        raise UserError("--set seed: name the seeds with --seeds, such as --seeds 0,1,2")
    names = [name.strip() for name in recipes.split(",")]
    trained = {name: load_recipe(name).epochs > 0 for name in names}
    chosen = [
        load_recipe(name, {**(values if trained[name] else {}), "seed": seed})
        for seed in parse_seeds(seeds)
        for name in names
    ]
    dataset = load_dataset(data, imbalance)
    folder = out or Path("runs") / dataset.name
    console = Console(markup=False, highlight=False, quiet=not is_first())
    try:
        outcomes = run(
            dataset,
            load_backbone(backbone),
            chosen,
            folder,
            replace=replace,
            log=console.print,
        )
    except KeyboardInterrupt:
        raise UserError("interrupted: run the same command again, finished runs are kept") from None
    if not is_first():
        return
    written = write_report(folder, dataset, outcomes, shlex.join(["taillift", *sys.argv[1:]]))
    console.print(table(outcomes))
    failed = failures(outcomes)
    for line in failed:
        console.print(line)
    console.print(f"{folder} holds {', '.join([CSV, *written])}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(outcomes)} runs failed, for the reasons above: see to them and "
            "run the command again, the others are kept"
        )


@app.command()
def backbones(
    name: Annotated[
        str | None,
        typer.Argument(
            help="an architecture, or a part of the names to list, such as timm:vit_base"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list in JSON.")] = False,
) -> None:
    """List the architectures that work as backbones, and those that do not, without a download."""
    from taillift.models.lift.catalogue import describe, details, names_like, table
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


def tell(target: Path, manifest: "Manifest") -> None:
    """What is known of a bundle that was made."""
    from taillift.training.report.bundle import summary

    for precision, made in manifest.variants.items():
        for line in summary(made):
            typer.echo(f"{precision}: {line}")
    typer.echo(f"{target}: bundle {manifest.name} {manifest.version}")


def parse_variants(names: Sequence[str]) -> "list[Precision]":
    """Raises `UserError` where one is no variant."""
    from taillift.models.bundle.schema import Precision

    known = [one for one in Precision if one is not Precision.FP32]
    for name in names:
        if name not in known:
            raise UserError(f"--variant {name}: give one of {', '.join(known)}")
    return [one for one in known if one in names]


def parse_seeds(text: str) -> list[int]:
    """Raises `UserError` where one is no whole number."""
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text}: give whole numbers such as 0,1,2") from None
