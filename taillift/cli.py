"""The command's front door. Each room brings its own commands; the serving image lacks training."""

import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import NoReturn

import typer

from taillift.models.errors import UserError

app = typer.Typer(
    help="Fine-tune CLIP on long-tailed photos, export one ONNX file, serve it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in ("taillift.training.train_cli", "taillift.service.serve_cli"):
    if find_spec(module.rpartition(".")[0]):
        app.add_typer(import_module(module).app)


def main() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except UserError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        fail(
            f"{error.name} is not installed: install taillift[train,cpu] to train, taillift[cpu] "
            "or taillift[gpu] to serve"
        )


def fail(line: str) -> NoReturn:
    # A progress bar that was interrupted as it began may still hold sys.stderr.
    print(f"error: {line}", file=sys.__stderr__)
    sys.exit(1)
