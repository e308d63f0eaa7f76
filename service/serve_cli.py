"""The commands that serve, classify, embed, watch and change bundles without training."""

# Imports here slow down every `taillift --help`: the commands import the heavy modules themselves.
import inspect
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import typer

from taillift.models.bundle.schema import MAX_PIXELS
from taillift.models.errors import UserError, end_in_one_line
from taillift.models.terminal import MaxPixels, printable_json, say
from taillift.service.settings import PREFIX, Settings, cores, default_text, group_of, read_settings

if TYPE_CHECKING:
    from taillift.models.bundle.arrays import Doubles
    from taillift.service.http.schemas import ClassifiedImage
    from taillift.service.monitoring.replay import Report

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Command = TypeVar("Command", bound=Callable[..., None])

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="JPEG, PNG or WebP files; folders of them; globs in quotes; @FILE or FILE.txt, a list "
        "with one path a line; - for such a list on standard input.",
    ),
]
Recursive = Annotated[
    bool, typer.Option("--recursive", help="Look into the folders inside a folder, too.")
]

# A secret must not be a flag: every user of a machine can list its processes with their flags.
NOT_FLAGS: Final = frozenset({"keys", "feedback_key"})
ARGUMENTS: Final = frozenset({"bundle"})
# The page of `suggest` in its folder.
SHEET: Final = "label.html"


def takes_settings(*names: str) -> Callable[[Command], Command]:
    """Give a command one parameter for each of these settings, in place of its `**given`.

    Each has the setting's own type, description, environment variable and default. What the user
    leaves out arrives as None, so that `read_settings` can tell it from a given value.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        flags = [setting_parameter(name) for name in names]
        parameters = [
            parameter.replace(kind=parameter.KEYWORD_ONLY)
            for parameter in (*signature.parameters.values(), *flags)
            if parameter.kind is not parameter.VAR_KEYWORD
        ]
        signature = signature.replace(parameters=parameters)
        command.__signature__ = signature  # type: ignore[attr-defined]
        return command

    return decorate


def setting_parameter(name: str) -> inspect.Parameter:
    """Return the command-line parameter of a setting: a flag, or one of the `ARGUMENTS`."""
    field = Settings.model_fields[name]
    variable, kind = f"{PREFIX}{name.upper()}", inspect.Parameter.KEYWORD_ONLY
    annotation: Any = field.annotation
    if name in ARGUMENTS:
        argument = typer.Argument(envvar=variable, help=field.description, show_default=False)
        return inspect.Parameter(
            name, kind, default=None, annotation=Annotated[annotation, argument]
        )
    option = typer.Option(
        envvar=variable,
        help=field.description,
        show_default=default_text(name) or False,
        rich_help_panel=group_of(name),
    )
    return inspect.Parameter(
        name, kind, default=None, annotation=Annotated[annotation | None, option]
    )


@app.command()
@takes_settings(*(name for name in Settings.model_fields if name not in NOT_FLAGS))
def serve(**given: Any) -> None:
    """Serve a bundle, or the champion of a store, over HTTP until stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_in_one_line)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # Nothing has been read yet.
    settings = read_settings(**given)
    if settings.admin_keys_file is not None and settings.store is None:
        raise UserError("admin_keys_file is for changing versions: name their store with --store")
    from taillift.service import server

    server.serve(settings)


@app.command()
def classify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    sources: Sources,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv|.jsonl|.parquet|FOLDER",
            help="Write a row for each image to this file instead of printing, or files "
            "part-*.parquet to this folder; sources may then also be Parquet tables, tar shards "
            "and addresses such as s3://. If a run was broken off, the same command goes on after "
            "its last row.",
            show_default=False,
        ),
    ] = None,
    share: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="With a folder for --out: classify only the I-th of N shares of its parts. N "
            "commands, on machines that see the folder, then do the whole.",
            show_default=False,
        ),
    ] = "1/1",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="With a folder for --out: classify the parts on this Ray cluster, whose nodes all "
            "see the folders; local starts one on this machine.",
            show_default=False,
        ),
    ] = None,
    recursive: Recursive = False,
    top_k: Annotated[
        int, typer.Option(min=1, help="Number of classes to name, the most probable first.")
    ] = 3,
    ensemble: Annotated[
        Literal["full", "off", "adaptive"] | None,
        typer.Option(
            help="full: the mean of five views; off: the centre view only; adaptive: the other "
            "views only if the centre view leaves doubt.",
            show_default="adaptive if it saves at least a quarter of the views, else full",
        ),
    ] = None,
    prior: Annotated[
        str,
        typer.Option(
            metavar="uniform|train|many:W,…",
            help="How often the classes are expected: equally, as often as in training, or by "
            "weights of the groups, such as many:0.6,medium:0.3,few:0.1.",
        ),
    ] = "uniform",
    tail: Annotated[
        float,
        typer.Option(
            help="Lean toward the rare classes, 0 to 1: as if trained with tau = 1 + tail."
        ),
    ] = 0.0,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Which of the bundle's graphs to run.")
    ] = "fp32",
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Add a set of labels that contains the right one with this probability, 0.5 to "
            "0.99.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL,LABEL…",
            help="Classes that the images may show, if fewer than all.",
            show_default=False,
        ),
    ] = None,
    counts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="How many of the images show each class (columns label,count; a count may be "
            "12±2, the label `other` stands for none of the classes): each image is also assigned "
            "the class that fits the counts best.",
            show_default=False,
        ),
    ] = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON that POST /classify would return.")
    ] = False,
) -> None:
    """Classify images without a server.

    The exit status is 1 if an image cannot be used; with --out its row has the reason, and the
    exit status is 0 once every image has its row.
    """
    from functools import partial

    from taillift.models.bundle import conveyor
    from taillift.models.bundle.classifier import Classifier
    from taillift.models.bundle.device import Device
    from taillift.models.bundle.ensemble import Ensemble
    from taillift.models.bundle.images import ImageError
    from taillift.models.bundle.known_counts import KnownCounts
    from taillift.models.bundle.photo_sources import find_photos
    from taillift.models.bundle.posterior import among, leaning, prior_of
    from taillift.models.bundle.schema import Precision
    from taillift.models.errors import UserError
    from taillift.models.names import indices_of_names
    from taillift.service.http.schemas import (
        Classification,
        ClassifiedImage,
        FailedImage,
        add_assigned,
        classified,
        model_id,
    )
    from taillift.service.inference import folder_run, part_folder, photo_parts, row_file
    from taillift.service.problems import image_problem

    if out is not None and as_json:
        raise UserError("--json prints and --out writes a file: leave one of them out")
    to_folder = out is not None and (out.is_dir() or not out.suffix)
    if out is not None and not to_folder:
        row_file.check_out(out, folder_run.PREDICTIONS)
    if to_folder and counts is not None:
        raise UserError("--counts looks at all images at once: give --out a file, not a folder")
    shares = part_folder.parse_share(share)
    if ray is not None and (not to_folder or shares != (0, 1)):
        raise UserError("--ray needs a folder for --out, and shares the parts out by itself")
    if not to_folder and (large := [name for name in sources if photo_parts.is_large(name)]):
        name = photo_parts.printable_path(large[0])
        raise UserError(f"{name} is read in parts: give --out a folder")
    parts = photo_parts.parts_of(sources, recursive, out) if to_folder else []
    photos = [] if to_folder else find_photos(sources, recursive)
    classifier = Classifier.open(bundle, precision=Precision(precision), max_pixels=max_pixels)
    manifest = classifier.manifest
    chosen = Ensemble(ensemble) if ensemble else classifier.predictor.usual_ensemble
    classifier.check_coverage(coverage)
    expected = leaning(prior_of(prior, manifest), tail, manifest.counts)
    target = None if prior == "uniform" and not tail else expected
    allowed = indices_of_names([classes], manifest.labels, "--classes") if classes else []
    if allowed:
        target = among(expected, allowed)
        top_k = min(top_k, len(allowed))
    known = KnownCounts.from_csv(counts, manifest.labels) if counts is not None else None
    if known is not None:
        known.check(len(photos))
    if out is not None:
        names = tuple(manifest.labels[index] for index in allowed)
        asked = folder_run.Asked(chosen, top_k, prior, target, coverage, names, known, tail)
        if to_folder:
            table = folder_run.PredictionRows(classifier, asked)
            folder = part_folder.PartFolder(out, parts, table)
            if ray is None:
                folder.classify(shares)
            else:
                kind, one = Precision(precision), Device(threads=1)
                opener = partial(Classifier.open, bundle.absolute(), one, kind, max_pixels)
                folder.classify_on_ray(ray, opener)
        else:
            found_photos = photo_parts.photo_list(photos)
            folder_run.classify_photos(classifier, found_photos, out, asked)
        return
    results: list[ClassifiedImage | FailedImage] = []
    uniform: list[Doubles | None] = []
    found = conveyor.predictions(classifier, photos, chosen, cores(), target, coverage)
    for photo, prediction in zip(photos, found, strict=True):
        uniform.append(None if isinstance(prediction, ImageError) else prediction.uniform)
        name = photo_parts.printable_path(photo)
        if isinstance(prediction, ImageError):
            problem = image_problem(prediction)
            say(f"{name}: {problem.detail}", err=True)
            results.append(FailedImage(filename=name, error=problem.document()))
        else:
            results.append(
                classified(
                    name,
                    prediction.requested,
                    manifest.classes,
                    top_k,
                    prediction.views,
                    prediction.reason,
                    prediction.members,
                )
            )
    if known is not None:
        add_assigned(results, known.assign(uniform), manifest.classes)
    good = [result for result in results if isinstance(result, ClassifiedImage)]
    if as_json:
        everything = Classification(
            model=model_id(manifest),
            ensemble=chosen,
            prior=prior,
            tail=tail,
            classes=[manifest.labels[index] for index in allowed] or None,
            results=results,
        )
        print(printable_json(everything.model_dump_json(indent=2)))
    elif known is not None:
        _print_assigned(good)
    elif good:
        _print_table(good)
    if len(good) < len(results):
        raise typer.Exit(1)


@app.command()
def adapt_prior(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    sources: Sources,
    out: Annotated[
        Path, typer.Option(metavar="FILE.json", help="File to write, for the setting `priors`.")
    ],
    recursive: Recursive = False,
    name: Annotated[str, typer.Option(help="Name of the prior.")] = "adapted",
    per_class: Annotated[
        bool,
        typer.Option(
            "--per-class",
            help="Estimate the share of each class and not only of each group; this needs 20 "
            "photos a class.",
        ),
    ] = False,
    ensemble: Annotated[
        Literal["full", "off"], typer.Option(help="Views of each photo, as for `classify`.")
    ] = "full",
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Estimate from photos without labels how often the groups occur, as a prior to classify with.

    It is written only if it also fits photos that it was not estimated from. If the gain may be
    chance, the exit status is 1.
    """
    from taillift.models.bundle import conveyor
    from taillift.models.bundle.atomic import atomic_file, require_writable
    from taillift.models.bundle.classifier import Classifier
    from taillift.models.bundle.ensemble import Ensemble
    from taillift.models.bundle.images import ImageError
    from taillift.models.bundle.photo_sources import find_photos
    from taillift.service.inference import adapted_prior

    adapted_prior.refuse_taken(out, name)
    require_writable(out)
    photos = find_photos(sources, recursive)
    classifier = Classifier.open(bundle, max_pixels=max_pixels)
    found = conveyor.predictions(classifier, photos, Ensemble(ensemble), cores())
    rows = [None if isinstance(one, ImageError) else one.uniform for one in found]
    for photo, row in zip(photos, rows, strict=True):
        if row is None:
            say(f"{photo}: cannot be used, and is left out", err=True)
    good = [row for row in rows if row is not None]
    adapted = adapted_prior.adapt_prior(good, classifier.manifest, per_class)
    for line in adapted.lines:
        print(line)
    if not adapted.is_sure:
        say(f"{out} is not written: the gain may be chance; give more photos, or stay with uniform")
        raise typer.Exit(1)
    with atomic_file(out) as file:
        file.write_text(adapted_prior.as_priors_file(adapted, classifier.manifest, name), "utf-8")
    say(f"{out}: serve with --priors {out}, and ask for prior={name}")


@app.command()
def suggest(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    sources: Sources,
    photos: Annotated[int, typer.Option(min=1, help="Number of photos to suggest.")] = 50,
    out: Annotated[
        Path, typer.Option(help="Folder to make, with copies of the photos and the page.")
    ] = Path("suggested"),
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Photos that have a label already, in folders at any depth or in the column path "
            "of a CSV file: they are not suggested again. May be given several times.",
        ),
    ] = None,
    recursive: Recursive = False,
    ensemble: Annotated[
        Literal["full", "off", "adaptive"] | None,
        typer.Option(help="Views of each photo, as for `classify`.", show_default=False),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Which of the bundle's graphs to run.")
    ] = "fp32",
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Choose which photos without labels to label next, for the few-shot classes.

    Makes a folder with copies of them, suggestions.csv and label.html, a page to label them in
    without a server. It saves labels.csv for `taillift train --add`.
    """
    from taillift.models.bundle.atomic import atomic_folder
    from taillift.models.bundle.classifier import Classifier
    from taillift.models.bundle.ensemble import Ensemble
    from taillift.models.bundle.photo_sources import find_photos
    from taillift.models.bundle.schema import Precision
    from taillift.service.inference import suggestion
    from taillift.service.page import page_to_label

    if out.exists():
        raise UserError(f"{out} exists already: choose another name for --out")
    pool, labelled = find_photos(sources, recursive), suggestion.labelled_photos(without or [])
    classifier = Classifier.open(bundle, precision=Precision(precision), max_pixels=max_pixels)
    manifest = classifier.manifest
    views = Ensemble(ensemble) if ensemble else classifier.predictor.usual_ensemble
    found = suggestion.suggest(classifier, pool, photos, views, labelled)
    with atomic_folder(out) as folder:
        suggestion.write_suggestions(folder, found, manifest)
        content = suggestion.sheet_content(found, manifest)
        page = page_to_label(f"Photos to label for {manifest.name}", content)
        (folder / SHEET).write_text(page, "utf-8")
    for line in suggestion.lines(found):
        say(line)
    say(f"{out}: open {out / SHEET} in a browser to label them")


@app.command()
def embed(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    sources: Sources,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE.npz|.parquet|.csv|.jsonl",
            help="File to write. If a run was broken off, the same command goes on.",
        ),
    ],
    recursive: Recursive = False,
    ensemble: Annotated[
        Literal["full", "off", "adaptive"],
        typer.Option(help="Views over which the features are averaged, as for `classify`."),
    ] = "full",
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Which of the bundle's graphs to run.")
    ] = "fp32",
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Write the model's features of images, at unit length, to a file."""
    from taillift.models.bundle.classifier import Classifier
    from taillift.models.bundle.ensemble import Ensemble
    from taillift.models.bundle.photo_sources import find_photos
    from taillift.models.bundle.schema import Precision
    from taillift.service.inference import folder_run, row_file

    row_file.check_out(out, folder_run.FEATURES)
    photos = find_photos(sources, recursive)
    classifier = Classifier.open(bundle, precision=Precision(precision), max_pixels=max_pixels)
    folder_run.embed_photos(classifier, photos, out, Ensemble(ensemble))


@app.command()
@takes_settings("reference", "tail_level", "tail_window_seconds", "host", "class_metrics")
def watch(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    past: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER|FILE.csv",
            help="A folder of images to classify, or past predictions with the columns "
            "label,confidence and, optionally, time,thing (rows of one thing count once).",
            show_default=False,
        ),
    ] = None,
    prometheus: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Watch all replicas of a service together, from now on, by what this Prometheus "
            "scrapes of them.",
            show_default=False,
            rich_help_panel="A fleet",
        ),
    ] = None,
    select: Annotated[
        str,
        typer.Option(
            metavar="MATCHERS",
            help='Which replicas, as in PromQL: namespace="shop".',
            show_default="all that serve the bundle",
            rich_help_panel="A fleet",
        ),
    ] = "",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port of the fleet's metrics.", rich_help_panel="A fleet"
        ),
    ] = 9101,
    interval: Annotated[
        float,
        typer.Option(min=1, help="Seconds between two looks.", rich_help_panel="A fleet"),
    ] = 60,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Annotated[bool, typer.Option("--json", help="Print the full report as JSON.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Write the report to this file as well, as a page like the service's tab Tail.",
            show_default=False,
        ),
    ] = None,
    **given: Any,
) -> None:
    """Replay past predictions through the drift monitor, or watch a service of many replicas."""
    from taillift.models.bundle.atomic import require_writable
    from taillift.service.monitoring.replay import replay, show

    settings = read_settings(bundle=bundle, **given)
    if (past is None) == (prometheus is None):
        raise UserError("name past predictions, or a Prometheus with --prometheus, but not both")
    if prometheus is not None:
        if as_json or html is not None:
            raise UserError("--json and --html are for past predictions")
        _watch_fleet(settings, prometheus, select, port, interval)
        return
    assert past is not None
    if html is not None:
        require_writable(html)
    level, window = settings.tail_level, settings.tail_window_seconds
    report = replay(bundle, past, settings.reference, level, window, max_pixels)
    show(report, as_json)
    if html is not None:
        _write_page(html, bundle, report)


def _watch_fleet(
    settings: Settings, prometheus: str, select: str, port: int, interval: float
) -> None:
    """Watch all replicas until a signal, and export what is found."""
    from threading import Event

    from prometheus_client import disable_created_metrics

    from taillift.models.bundle.folder import read_manifest
    from taillift.service.monitoring.exporter import class_series
    from taillift.service.monitoring.fleet import Fleet, FleetWatch
    from taillift.service.monitoring.prometheus import PrometheusHistory
    from taillift.service.monitoring.recorder import model_profile, parse_reference
    from taillift.service.tail.monitor import Rules

    ended = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    manifest = read_manifest(settings.folder)
    history = PrometheusHistory(prometheus, manifest.labels, select)
    rules = Rules(
        parse_reference(settings.reference),
        settings.tail_level,
        window_seconds=settings.tail_window_seconds,
    )
    profile = model_profile(settings.folder, manifest)
    fleet = FleetWatch(history, Fleet(profile, rules, lambda line: say(line, err=True)), interval)
    disable_created_metrics()  # type: ignore[no-untyped-call]
    which = class_series(settings.class_metrics, len(manifest.labels))
    taken = fleet.serve(settings.host, port, which)
    say(f"{manifest.name} {manifest.version}: http://{settings.host}:{taken}/metrics")
    fleet.run(ended)


def _write_page(path: Path, bundle: Path, report: "Report") -> None:
    """Write a page with the report. Without times in the predictions, it has none either."""
    from taillift.models.bundle.atomic import atomic_file
    from taillift.models.bundle.folder import read_manifest
    from taillift.service.http.class_report import classes, take_snapshot
    from taillift.service.monitoring.replay import summary_of
    from taillift.service.page import page_of_report

    manifest = read_manifest(bundle)
    snapshot = take_snapshot(manifest, report.monitor)
    document = classes(snapshot).model_dump(mode="json") | {"summary": summary_of(report)}
    timed = bool((report.monitor.last_seen > 0).any())
    for info in document["classes"]:
        if not timed:
            del info["live"]["last_seen"]
        if (after := report.first_found.get(info["label"])) is not None:
            info["live"]["found_after"] = after
    with atomic_file(path) as file:
        file.write_text(page_of_report(f"The tail of {manifest.name}", document), "utf-8")


@app.command()
def upgrade_bundle(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    out: Annotated[
        Path | None,
        typer.Argument(
            help="Folder for the new bundle.", show_default="replace the manifest of BUNDLE"
        ),
    ] = None,
) -> None:
    """Bring a bundle of version 0.1.0 to schema 2: its version then covers the manifest, too."""
    from taillift.models.bundle.folder import upgrade

    manifest = upgrade(bundle, out)
    say(f"{out or bundle}: bundle {manifest.name} {manifest.version}, schema 2")


def _print_table(results: Sequence["ClassifiedImage"]) -> None:
    from rich.table import Table

    from taillift.models.terminal import PlainConsole

    table = Table("image", "label", "group")
    table.add_column("confidence", justify="right")
    for result in results:
        for rank, prediction in enumerate(result.predictions):
            name = result.filename if rank == 0 else ""
            table.add_row(name, prediction.label, prediction.group, f"{prediction.confidence:.1%}")
        table.add_section()
    PlainConsole().print(table)


def _print_assigned(results: Sequence["ClassifiedImage"]) -> None:
    """Print the class of each image by the counts, the least certain first."""
    from rich.table import Table

    from taillift.models.terminal import PlainConsole

    table = Table("image", "assigned", "alone", "next best")
    table.add_column("confidence", justify="right")
    found = [(result, result.assigned) for result in results if result.assigned]
    for result, one in sorted(found, key=lambda pair: pair[1].confidence):
        alone = result.predictions[0].label
        table.add_row(result.filename, one.label, alone, one.instead, f"{one.confidence:.1%}")
    PlainConsole().print(table)
