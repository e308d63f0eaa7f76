"""Measure what int8 and fp16 cost in accuracy and save in time.

    python -m benchmarks.precision speed --architecture ViT-B-16
    python -m benchmarks.precision accuracy docker/demo-bundle.tar.gz wardrobe-lt
    python -m benchmarks.precision accuracy BUNDLE wardrobe-lt --openvino

`speed` times an open_clip tower with random weights. `accuracy` times a trained bundle, and also
measures each of its graphs on the set's held-out photos with five views. Every graph runs on one
thread, and the time is the processor time of this process. The graphs take turns, a batch each, so
that the ratios hold under other load, too. The fp16 graph is meant for GPUs: a CPU computes most of
it in fp32. With --openvino, which needs onnxruntime-openvino in place of onnxruntime, the fp32
graph and two int8 graphs run on OpenVINO as well, and the fp32 graph in bfloat16, too.
"""

import argparse
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import onnxruntime as ort
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.bundles import random_bundle
from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.device import EXECUTION_PROVIDERS, Device, Provider
from taillift.models.bundle.folder import MANIFEST, MODEL
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.schema import FILES, Precision, Preprocessing
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from taillift.training.data.dataset import Split, load_dataset
from taillift.training.evaluation import evaluate
from taillift.training.export.fp16 import halve
from taillift.training.export.int8 import FORMS, calibrate, quantise, write_int8
from taillift.training.export.onnx_graph import fidelity, folded, logits_of, products
from taillift.training.fit.inputs import evaluation_photos, first_copies

ONE_THREAD: Final = Device(threads=1)
CALIBRATION_VIEWS: Final = 16
MEASURES: Final = ("overall", "mean_class", "many", "medium", "few")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("--architecture", default="ViT-B-16")
    accuracy = commands.add_parser("accuracy")
    accuracy.add_argument("bundle", type=Path, help="a bundle, or a tar archive of one")
    accuracy.add_argument("data", help="the photos that the bundle was trained on")
    for command in (speed, accuracy):
        command.add_argument("--batch", type=int, default=8)
        command.add_argument("--rounds", type=int, default=5)
        command.add_argument("--openvino", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure = measure_speed if options.command == "speed" else measure_accuracy
        measure(options, Path(folder))


def measure_speed(options: argparse.Namespace, folder: Path) -> None:
    """Print the speed of every graph of a random bundle."""
    bundle = random_bundle(options.architecture, folder / "bundle")
    size = json.loads((bundle / MANIFEST).read_text("utf-8"))["preprocessing"]["size"]
    pixels = np.random.default_rng(0).integers(
        0, 256, (CALIBRATION_VIEWS + options.batch, size, size, 3), np.uint8
    )
    graphs = all_forms(bundle / MODEL, folder, pixels[:CALIBRATION_VIEWS])
    title = f"{options.architecture}, random weights"
    show_speed(title, ways_of(graphs, options.openvino), pixels[CALIBRATION_VIEWS:], options)


def measure_accuracy(options: argparse.Namespace, folder: Path) -> None:
    """Print the speed of every graph of a trained bundle, and its accuracy on held-out photos."""
    bundle = options.bundle
    if not bundle.is_dir():
        with tarfile.open(bundle) as archive:
            archive.extractall(folder / "bundle", filter="data")
        (path,) = (folder / "bundle").rglob(MANIFEST)
        bundle = path.parent
    manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
    preprocessing = Preprocessing.model_validate(manifest["preprocessing"])
    dataset = load_dataset(options.data)
    assert dataset.held_out is not None
    name, held_out = dataset.held_out
    training = all_views(dataset.train, preprocessing)[::VIEWS]
    graphs = all_forms(bundle / MODEL, folder, training)
    kept = folder / FILES[Precision.INT8]
    int8 = quantise(bundle / MODEL, kept, training).kept
    graphs[f"int8 as exported: {int8.form}, {len(int8.in_float)} products in float"] = kept
    if options.openvino:
        graphs = {graph: graphs[graph] for graph in ("fp32", "int8 static", [*graphs][-1])}
    ways = ways_of(graphs, options.openvino)
    show_speed(manifest["name"], ways, training[: options.batch], options)
    pixels = all_views(held_out, preprocessing)
    groups = dataset.groups
    grid = table_with(
        f"{dataset.name} {name}, {len(held_out)} photos, five views",
        *(measure.replace("_", "-") for measure in MEASURES),
        "answers kept",
        "error",
        "largest",
    )
    expected = logits_of(ways["fp32"].session, pixels)
    for name_of_way, way in ways.items():
        logits = logits_of(way.session, pixels)
        view_logits = logits.reshape(len(held_out), VIEWS, -1)
        scores = evaluate(name, view_logits, np.asarray(held_out.labels), groups).full
        accuracies = [getattr(scores, measure) for measure in MEASURES]
        near = fidelity(logits, expected)
        grid.add_row(
            name_of_way,
            *("" if accuracy is None else f"{accuracy:.1f}" for accuracy in accuracies),
            f"{100 * near.agreement:.1f} %",
            f"{near.error:.4f}",
            f"{np.abs(logits - expected).max():.1e}",
        )
    Console(width=140).print(grid)


def all_forms(graph: Path, folder: Path, pixels: Pixels) -> dict[str, Path]:
    """Make fp32, fp16, and int8 in every form with all products in integers."""
    graphs = {"fp32": graph}
    model = folded(graph)
    ranges = calibrate(model, pixels, folder)
    nodes = {node.name for node in products(model)}
    for form in FORMS:
        path = graphs[f"int8 {form}"] = folder / f"{form}.onnx"
        write_int8(form, model, ranges, nodes, path)
    graphs["fp16"] = folder / FILES[Precision.FP16]
    halve(graph, graphs["fp16"], pixels[:8])
    return graphs


@dataclass(frozen=True)
class Way:
    """A graph's file, and what runs it on one thread."""

    path: Path
    session: Session


class Bfloat16Session(Session):
    """OpenVINO's session that computes in bfloat16, which the service never asks for."""

    def __init__(self, path: Path) -> None:
        self.batches = None
        config = {"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}
        options = {"device_type": "CPU", "num_of_threads": "1", "load_config": json.dumps(config)}
        provider = EXECUTION_PROVIDERS[Provider.OPENVINO]
        self._graph = ort.InferenceSession(str(path), providers=[(provider, options)])


def ways_of(graphs: Mapping[str, Path], openvino: bool) -> dict[str, Way]:
    """Open every graph, and perhaps again on OpenVINO; says which graphs that does not take."""
    ways = {name: Way(path, Session(path, ONE_THREAD)) for name, path in graphs.items()}
    if openvino:
        for name, path in graphs.items():
            try:
                session = Session(path, Device(Provider.OPENVINO, threads=1))
            except UserError as error:
                print(f"{name} does not run on OpenVINO: {error}")
            else:
                ways[f"{name}, OpenVINO"] = Way(path, session)
        ways["bf16, OpenVINO"] = Way(graphs["fp32"], Bfloat16Session(graphs["fp32"]))
    return ways


def show_speed(
    title: str, ways: Mapping[str, Way], pixels: Pixels, options: argparse.Namespace
) -> None:
    """Print each graph's size, and how many times as fast as fp32 it is."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    # The first round warms up.
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way.session.run(pixels)
            if turn:
                seconds[name].append((time.process_time() - start) / len(pixels))
    grid = table_with(f"{title}, batch {len(pixels)}", "MB", "ms a view", "times as fast", "spread")
    for name, way in ways.items():
        ratios = [fp32 / own for fp32, own in zip(seconds["fp32"], seconds[name], strict=True)]
        grid.add_row(
            name,
            f"{way.path.stat().st_size / 1e6:.1f}",
            f"{1000 * median(seconds[name]):.1f}",
            f"{median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        )
    Console(width=140).print(grid)


def all_views(split: Split, preprocessing: Preprocessing) -> Pixels:
    """Return all five views of every photo, uint8 [N * 5, S, S, 3]."""
    photos = evaluation_photos(split, preprocessing)
    parts = [rows.numpy() for rows, _ in photos.batches(first_copies(len(split)), 8)]
    return np.concatenate(parts)


def table_with(title: str, *names: str) -> Table:
    """Return an empty table with a column for the graphs and these columns of figures."""
    grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    grid.add_column("")
    for name in names:
        grid.add_column(name, justify="right")
    return grid


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
