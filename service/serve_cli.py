"""The commands `serve`, `classify` and `watch`."""

# What is imported here slows down every `taillift --help`: the heavy parts are in the commands.
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from taillift.service.settings import Settings, read_settings

if TYPE_CHECKING:
    from taillift.service.http.schemas import ClassifiedImage

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def flag(name: str) -> "typer.models.OptionInfo":
    """The flag of a setting, with the setting's own description, default and variable."""
    field = Settings.model_fields[name]
    option: typer.models.OptionInfo = typer.Option(
        help=field.description,
        envvar=f"TAILLIFT_{name.upper()}",
        show_default=str(field.get_default(call_default_factory=True, validated_data={})),
    )
    return option


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(envvar="TAILLIFT_BUNDLE", help="The bundle's folder.")],
    host: Annotated[str | None, flag("host")] = None,
    port: Annotated[int | None, flag("port")] = None,
    metrics_port: Annotated[int | None, flag("metrics_port")] = None,
    provider: Annotated[
        Literal["cpu", "cuda", "tensorrt", "openvino"] | None, flag("provider")
    ] = None,
    precision: Annotated[Literal["auto", "fp32", "fp16", "int8"] | None, flag("precision")] = None,
    device_memory_bytes: Annotated[int | None, flag("device_memory_bytes")] = None,
    engines: Annotated[Path | None, flag("engines")] = None,
    threads: Annotated[int | None, flag("threads")] = None,
    decode_threads: Annotated[int | None, flag("decode_threads")] = None,
    keys_file: Annotated[Path | None, flag("keys_file")] = None,
    priors: Annotated[Path | None, flag("priors")] = None,
    max_connections: Annotated[int | None, flag("max_connections")] = None,
    max_header_bytes: Annotated[int | None, flag("max_header_bytes")] = None,
    max_headers: Annotated[int | None, flag("max_headers")] = None,
    header_seconds: Annotated[float | None, flag("header_seconds")] = None,
    max_body_bytes: Annotated[int | None, flag("max_body_bytes")] = None,
    body_seconds: Annotated[float | None, flag("body_seconds")] = None,
    max_images: Annotated[int | None, flag("max_images")] = None,
    max_pixels: Annotated[int | None, flag("max_pixels")] = None,
    decode_pixels: Annotated[int | None, flag("decode_pixels")] = None,
    answer_seconds: Annotated[float | None, flag("answer_seconds")] = None,
    batch_views: Annotated[int | None, flag("batch_views")] = None,
    queue_views: Annotated[int | None, flag("queue_views")] = None,
    queue_bytes: Annotated[int | None, flag("queue_bytes")] = None,
    stall_seconds: Annotated[float | None, flag("stall_seconds")] = None,
    drain_seconds: Annotated[int | None, flag("drain_seconds")] = None,
    class_metrics: Annotated[Literal["auto", "on", "off"] | None, flag("class_metrics")] = None,
    reference: Annotated[str | None, flag("reference")] = None,
    tail_window_seconds: Annotated[float | None, flag("tail_window_seconds")] = None,
    tail_level: Annotated[float | None, flag("tail_level")] = None,
    tail_file: Annotated[Path | None, flag("tail_file")] = None,
) -> None:
    """Serve a bundle over HTTP until stopped."""
    settings = read_settings(**locals())
    from taillift.service import server

    server.serve(settings)


@app.command()
def classify(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="JPEG, PNG or WebP.")],
    top_k: Annotated[int, typer.Option(min=1, help="Classes to name, the surest first.")] = 3,
    ensemble: Annotated[
        Literal["full", "off", "adaptive"] | None,
        typer.Option(
            help="full: the mean of five views; off: the centre view only; adaptive: the others "
            "only where they are worth their cost.",
            show_default="adaptive where the bundle has a rule for it, else full",
        ),
    ] = None,
    prior: Annotated[
        Literal["uniform", "train"],
        typer.Option(help="How often the classes are expected: equally, or as in training."),
    ] = "uniform",
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Which of the bundle's graphs.")
    ] = "fp32",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what POST /classify would answer.")
    ] = False,
) -> None:
    """Classify photos without a server; ends with 1 where a photo cannot be used."""
    from taillift.models.bundle.classifier import Classifier
    from taillift.models.bundle.ensemble import Ensemble
    from taillift.models.bundle.images import ImageError
    from taillift.models.bundle.posterior import Prior, log_prior
    from taillift.models.bundle.schema import Precision
    from taillift.service.http.schemas import (
        Classification,
        ClassifiedImage,
        FailedImage,
        classified,
        model_id,
    )
    from taillift.service.problems import image_problem

    classifier = Classifier.open(bundle, precision=Precision(precision))
    manifest = classifier.manifest
    chosen = Ensemble(ensemble) if ensemble else classifier.predictor.usual_ensemble
    target = None if prior == "uniform" else log_prior(Prior(prior), manifest.counts)
    results: list[ClassifiedImage | FailedImage] = []
    for photo, prediction in zip(
        photos, classifier.predictions(photos, chosen, target), strict=True
    ):
        if isinstance(prediction, ImageError):
            problem = image_problem(prediction)
            typer.echo(f"{photo}: {problem.detail}", err=True)
            results.append(FailedImage(filename=str(photo), error=problem.document()))
        else:
            results.append(
                classified(
                    str(photo),
                    prediction.requested,
                    manifest.classes,
                    top_k,
                    prediction.views,
                    prediction.decision,
                )
            )
    good = [result for result in results if isinstance(result, ClassifiedImage)]
    if as_json:
        everything = Classification(
            model=model_id(manifest), ensemble=chosen, prior=prior, results=results
        )
        print(everything.model_dump_json(indent=2))
    elif good:
        _print_table(good)
    if len(good) < len(results):
        raise typer.Exit(1)


@app.command()
def watch(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    past: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|FILE.csv",
            help="Photos to classify, or past predictions: label, confidence and perhaps time.",
        ),
    ],
    reference: Annotated[str, flag("reference")] = "train",
    tail_level: Annotated[float, flag("tail_level")] = 0.05,
    tail_window_seconds: Annotated[float, flag("tail_window_seconds")] = 604_800,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, as JSON.")] = False,
) -> None:
    """Tell what became of the rare classes, by the statistics that watch the service."""
    from taillift.service.monitoring.replay import replay, show

    settings = read_settings(
        bundle=bundle,
        reference=reference,
        tail_level=tail_level,
        tail_window_seconds=tail_window_seconds,
    )
    show(
        replay(bundle, past, settings.reference, settings.tail_level, settings.tail_window_seconds),
        as_json,
    )


def _print_table(results: Sequence["ClassifiedImage"]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("photo", "label", "group")
    table.add_column("confidence", justify="right")
    for result in results:
        for rank, one in enumerate(result.predictions):
            name = result.filename if rank == 0 else ""
            table.add_row(name, one.label, one.group, f"{one.confidence:.1%}")
        table.add_section()
    # Labels and paths are anybody's text: "[/x]" is no markup and ":x:" no emoji.
    Console(markup=False, emoji=False, highlight=False).print(table)
