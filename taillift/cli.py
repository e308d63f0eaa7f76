"""The command `taillift`: the commands of training and of the service, whichever are installed."""

import logging
import signal
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from taillift.models import versions_cli
from taillift.models.errors import UserError
from taillift.models.terminal import PrintableFormatter, printable

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
