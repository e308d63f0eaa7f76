"""`taillift watch`: past predictions, or photos classified now, through the tail's statistics."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console

from models import UserError
from models.bundle.folder import read_manifest
from service.monitoring import facts, source
from service.tail.monitor import Rules
from service.tail.replay import Prediction, classify_folder, read_predictions
from service.tail.watch import Report, print_report, watch


def replay(bundle: Path, past: Path, reference: str, level: float, window: float) -> Report:
    """Of a folder of photos or a CSV file; raises `UserError`."""
    manifest = read_manifest(bundle)
    known = facts(bundle, manifest)
    rules = Rules(source(reference), level, window_seconds=window)
    return watch(known, _predictions(bundle, past, manifest.labels), rules)


def show(report: Report, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_plain(report), indent=2))
    else:
        # Labels are anybody's text: "[/x]" is no markup and ":x:" no emoji.
        print_report(report, Console(markup=False, emoji=False, highlight=False))


def as_plain(report: Report) -> Any:
    """Everything of the report, as JSON can say it: what is not finite is null."""
    return _plain(asdict(report))


def _predictions(bundle: Path, past: Path, labels: list[str]) -> Iterable[Prediction]:
    if past.is_dir():
        return classify_folder(bundle, past, _refused)
    if past.suffix.lower() != ".csv":
        raise UserError(f"{past} is neither a folder of photos nor a file that ends in .csv")
    return read_predictions(past, labels)


def _refused(photo: Path, detail: str) -> None:
    typer.echo(f"{photo}: {detail}", err=True)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(name): _plain(one) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case np.ndarray():
            return _plain(value.tolist())
        case float() if not np.isfinite(value):
            return None
        case _:
            return value
