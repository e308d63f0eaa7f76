"""The commands that make a model: train, export, compare."""

from pathlib import Path
from typing import Annotated

import typer

from models import UserError

app = typer.Typer()

Data = Annotated[
    str, typer.Argument(help="folder with train/CLASS/*.jpg (and val/, test/), or wardrobe-lt")
]
BackboneName = Annotated[
    str, typer.Option(help="default, ARCH:PRETRAINED_TAG or ARCH:PATH, as open_clip names them")
]
Seed = Annotated[int, typer.Option(help="of initial weights, augmentation and order")]


@app.command()
def train(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="checkpoint to write")] = None,
    method: Annotated[str, typer.Option(help="lift, head, full or zero-shot")] = "lift",
    backbone: BackboneName = "default",
    seed: Seed = 0,
    epochs: Annotated[int | None, typer.Option(help="passes over the photos")] = None,
    rank: Annotated[int | None, typer.Option(help="hidden units of each AdaptFormer")] = None,
    blocks: Annotated[int | None, typer.Option(help="tune only the last so many blocks")] = None,
    batch: Annotated[int | None, typer.Option(help="photos a step")] = None,
    head_rate: Annotated[float | None, typer.Option(help="learning rate of the head")] = None,
    tuner_rate: Annotated[float | None, typer.Option(help="learning rate in the tower")] = None,
) -> None:
    """Fine-tune a backbone on labelled photos and write a checkpoint."""
    from models.bundle.atomic import require_writable
    from models.lift.backbone import load_backbone
    from training.checkpoint import save
    from training.dataset import load_dataset
    from training.recipe import recipe_for
    from training.train import Trainer, default_device

    recipe = recipe_for(
        method,
        seed=seed,
        epochs=epochs,
        rank=rank,
        blocks=blocks,
        batch=batch,
        head_rate=head_rate,
        tuner_rate=tuner_rate,
    )
    dataset = load_dataset(data)
    path = out or Path("runs") / dataset.name / f"{method}-{seed}.safetensors"
    require_writable(path)
    try:
        run = Trainer(dataset, load_backbone(backbone), default_device()).train(recipe)
    except KeyboardInterrupt:
        raise UserError(
            f"training was interrupted and {path} not written: run the same command again"
        ) from None
    save(path, run.model, run.facts)
    typer.echo(
        f"{path}: {run.facts.trainable_parameters:,} parameters trained on "
        f"{len(dataset.train):,} photos of {len(dataset.classes)} classes"
        + (f", loss {run.losses[-1]:.3f}" if run.losses else "")
    )


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
    replace: Annotated[bool, typer.Option("--replace", help="replace an existing bundle")] = False,
) -> None:
    """Merge a checkpoint into plain weights and make a bundle to serve."""
    from training.dataset import load_dataset
    from training.export import TOLERANCE
    from training.export import export as make

    dataset = load_dataset(data)
    target = out or Path("bundles") / dataset.name
    exported = make(checkpoint, dataset, target, backbone, replace)
    manifest, proof = exported.manifest, exported.proof
    typer.echo(
        f"merged against unmerged: largest logit difference {proof.merged:.1e} "
        f"on {proof.photos} photos (allowed: {TOLERANCE:g})\n"
        f"ONNX Runtime against torch: {proof.runtime:.1e}\n"
        f"graph: {proof.nodes} nodes; unmerged it would have {proof.unmerged_nodes}"
    )
    if manifest.evaluation:
        single, full = manifest.evaluation.single, manifest.evaluation.full
        typer.echo(
            f"{manifest.evaluation.data}: mean-class {single.mean_class:.1f} % with one view, "
            f"{full.mean_class:.1f} % with five"
        )
    else:
        typer.echo("no test/ or val/ photos: the bundle says nothing of its accuracy")
    typer.echo(f"{target}: bundle {manifest.name} {manifest.version}")


@app.command()
def compare(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="folder for checkpoints and results")] = None,
    methods: Annotated[str, typer.Option(help="separated by commas")] = "zero-shot,head,full,lift",
    seeds: Annotated[str, typer.Option(help="separated by commas")] = "0",
    backbone: BackboneName = "default",
) -> None:
    """Train several methods on the same photos and show their accuracy along the tail."""
    from rich.console import Console

    from models.bundle.atomic import require_writable
    from models.lift.backbone import load_backbone
    from training.compare import compare as run
    from training.compare import table
    from training.dataset import load_dataset
    from training.recipe import recipe_for
    from training.train import default_device

    recipes = [
        recipe_for(method.strip(), seed=seed.strip())
        for method in methods.split(",")
        for seed in seeds.split(",")
    ]
    dataset = load_dataset(data)
    folder = out or Path("runs") / dataset.name
    require_writable(folder / "results.csv")
    try:
        results = run(dataset, load_backbone(backbone), recipes, folder, default_device())
    except KeyboardInterrupt:
        raise UserError("interrupted: run the same command again") from None
    Console(markup=False).print(table(results))
    typer.echo(f"{folder}/results.csv and comparison.png hold the same")
