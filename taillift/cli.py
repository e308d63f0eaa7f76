"""The command `taillift`: the commands of training and of the service, whichever are installed.

Those that take a checkpoint or a bundle, and so belong to both, are here.
"""

import logging
import signal
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from taillift.models import versions_cli
from taillift.models.bundle.schema import MAX_PIXELS
from taillift.models.errors import UserError
from taillift.models.terminal import MaxPixels, PrintableFormatter, printable, say

if TYPE_CHECKING:
    from taillift.models.bundle.extension import ChangedBundle
    from taillift.training.fit.checkpoint import CheckpointMetadata

# The commands as `taillift --help` shows them, in the order in which they are used.
PANELS: Final = {
    "Train": ("check", "train", "compare", "merge", "recipes", "backbones"),
    "Make a bundle": (
        "export",
        "calibrate",
        "adapt-prior",
        "extend",
        "forget",
        "upgrade-bundle",
    ),
    "Use a bundle": ("serve", "classify", "embed", "watch"),
    "Label": ("review", "feedback", "suggest"),
    "Release": ("compare-bundles", "models", "pack", "unpack", "sign", "verify-signature"),
}

app = typer.Typer(
    help="Fine-tune CLIP on long-tailed photos, export one ONNX file, serve it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# The serving image is built without training.
for module in (
    "taillift.training.train_cli",
    "taillift.models.release.release_cli",
    "taillift.service.serve_cli",
):
    if find_spec(module.rpartition(".")[0]):
        app.add_typer(import_module(module).app)
app.add_typer(versions_cli.app, name="models", help="Keep versions of a bundle in a store.")
if find_spec("taillift.service"):
    feedback = import_module("taillift.service.feedback_cli").app
    app.add_typer(feedback, name="feedback", help="Read and write labels that came back.")
    queue = import_module("taillift.service.review.review_cli").app
    app.add_typer(queue, name="review", help="Export and import the photos kept for labelling.")


def print_version(wanted: bool) -> None:
    """Print the version and exit, if the user asked for it."""
    if wanted:
        print(f"taillift {version('taillift')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


Source = Annotated[
    Path,
    typer.Argument(metavar="CHECKPOINT|BUNDLE", help="What to change; it stays as it is."),
]
Out = Annotated[Path, typer.Option(help="Checkpoint (NAME.safetensors) or bundle to make.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace what exists at --out.")]
Backbone = Annotated[
    str | None,
    typer.Option(help="For a checkpoint: where the backbone's weights are now, if moved."),
]


@app.command()
def extend(
    source: Source,
    photos: Annotated[
        Path,
        typer.Argument(help="Folder with the new photos, CLASS/*.jpg or train/CLASS/*.jpg."),
    ],
    out: Out,
    more: Annotated[
        bool, typer.Option("--more", help="Photos may be of classes that are known already.")
    ] = False,
    old_photos: Annotated[
        str | None,
        typer.Option(
            help="For a checkpoint that an older taillift made: the photos it was trained on."
        ),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(metavar="PHOTOS", help="With --old-photos: the --add of its training."),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="For a checkpoint, from 100 new photos on: train its tuners, too. It takes "
            "minutes; in docs/extend.md old classes lost more by it than new ones gained.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of draws and order of the photos.")] = 0,
    backbone: Backbone = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    replace: Replace = False,
) -> None:
    """Add classes to a checkpoint or a bundle, without the photos it was trained on.

    The image tower stays as it is, without --tune. Only the head is trained, in seconds: on the new
    photos, and on features that are drawn from the statistics of the old classes.
    """
    if not is_checkpoint(source):
        from taillift.models.bundle import extension

        given = {"--backbone": backbone, "--old-photos": old_photos, "--add": add, "--tune": tune}
        refuse_for_bundle(source, given)
        print_changed_bundle(
            out,
            extension.extend(
                source, photos, out, more=more, replace=replace, seed=seed, max_pixels=max_pixels
            ),
        )
        return
    from taillift.training.data.dataset import load_dataset
    from taillift.training.fit import checkpoint

    old = None
    if old_photos is not None:
        old = load_dataset(old_photos, max_pixels=max_pixels, add=add or ())
    changed = checkpoint.extend(
        source,
        photos,
        out,
        more=more,
        replace=replace,
        seed=seed,
        backbone=backbone,
        old=old,
        max_pixels=max_pixels,
        tune=tune,
    )
    print_changed_checkpoint(out, changed)


@app.command()
def forget(
    source: Source,
    classes: Annotated[list[str], typer.Argument(metavar="CLASS...", help="Classes to remove.")],
    out: Out,
    backbone: Backbone = None,
    replace: Replace = False,
) -> None:
    """Remove classes from a checkpoint or a bundle, without training."""
    if not is_checkpoint(source):
        from taillift.models.bundle import extension

        refuse_for_bundle(source, {"--backbone": backbone})
        print_changed_bundle(out, extension.forget(source, classes, out, replace=replace))
        return
    from taillift.training.fit import checkpoint

    changed = checkpoint.forget(source, classes, out, replace=replace, backbone=backbone)
    print_changed_checkpoint(out, changed)


def is_checkpoint(source: Path) -> bool:
    """Return whether what is to be changed is a checkpoint, or is called like one."""
    return source.is_file() or source.suffix == ".safetensors"


def refuse_for_bundle(bundle: Path, options: Mapping[str, object]) -> None:
    """Raise `UserError` if one of the options of a checkpoint was given for a bundle."""
    for name, value in options.items():
        if value:
            raise UserError(f"{name} is for a checkpoint, and {bundle} is a folder: leave it out")


def print_changed_bundle(out: Path, changed: "ChangedBundle") -> None:
    """Print what a bundle with other classes has, and what not."""
    for line in changed.left_out:
        say(f"left out: {line}")
    manifest = changed.manifest
    say(f"{out}: bundle {manifest.name} {manifest.version}, {len(manifest.classes)} classes")


def print_changed_checkpoint(out: Path, metadata: "CheckpointMetadata") -> None:
    """Print what a checkpoint with other classes has, and what to do with it."""
    say(
        f"{out}: {len(metadata.classes)} classes; {metadata.extended[-1]}; make a bundle of it by "
        f"`taillift export {out} PHOTOS`"
    )


def main() -> None:
    """Run a command; print an error that the user can fix as one line and exit with status 1."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    # The readers of photos say what they have found.
    logging.getLogger("taillift.training.data").setLevel(logging.INFO)
    try:
        commands()()
    except UserError as error:
        fail(str(error))
    except OSError as error:  # A folder may not be entered, a name is too long, the disk is gone.
        fail(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}")
    except ModuleNotFoundError as error:
        fail(
            f"{error.name} is not installed: install taillift[train,cpu] to train, taillift[cpu] "
            "or taillift[gpu] to serve"
        )


def commands() -> TyperGroup:
    """Return the commands; Ctrl-C interrupts each one in its own code, and not before."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for panel, names in PANELS.items():
        # The parts of taillift that are not installed have no commands.
        for name in filter(group.commands.__contains__, names):
            command = group.commands[name] = group.commands.pop(name)  # To the end of the list.
            assert isinstance(command, (TyperCommand, TyperGroup))
            command.rich_help_panel = panel
    groups = [group, *(one for one in group.commands.values() if isinstance(one, TyperGroup))]
    for command in (command for one in groups for command in one.commands.values()):
        if not isinstance(command, TyperGroup):
            assert command.callback is not None
            command.callback = interruptible(command.callback)
    return group


def interruptible(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that lets Ctrl-C raise `KeyboardInterrupt` and then calls `run`."""

    @wraps(run)
    def interruptibly(**options: Any) -> Any:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return run(**options)

    return interruptibly


def fail(line: str) -> NoReturn:
    """Print an error and exit with status 1."""
    # A progress bar that was interrupted at its start may have replaced sys.stderr.
    print(printable(f"error: {line}"), file=sys.__stderr__)
    sys.exit(1)
