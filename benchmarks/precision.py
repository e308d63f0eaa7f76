"""What int8 and fp16 cost and save.

    python -m benchmarks.precision speed --architecture ViT-B-16
    python -m benchmarks.precision accuracy docker/demo-bundle.tar.gz wardrobe-lt

`speed` times an open_clip tower with random weights, `accuracy` a trained bundle, of which it also
measures every graph on the set's held-out photos with five views. Every graph runs on one thread;
what counts is that thread's processor time, a batch of each graph in turn, so that the ratios hold
whatever else the machine does. The fp16 graph is meant for GPUs: a CPU computes most of it in fp32.
"""

import argparse
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.bundles import random_bundle
from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.device import Device
from taillift.models.bundle.folder import MANIFEST, MODEL
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.manifest import Scores
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
    ways = parser.add_subparsers(dest="way", required=True)
    speed = ways.add_parser("speed")
    speed.add_argument("--architecture", default="ViT-B-16")
    accuracy = ways.add_parser("accuracy")
    accuracy.add_argument("bundle", type=Path, help="a bundle, or a tar file of one")
    accuracy.add_argument("data", help="the photos that it was trained on")
    for one in (speed, accuracy):
        one.add_argument("--batch", type=int, default=8)
        one.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure = measure_speed if options.way == "speed" else measure_accuracy
        measure(options, Path(folder))


def measure_speed(options: argparse.Namespace, folder: Path) -> None:
    bundle = random_bundle(options.architecture, folder / "bundle")
    size = json.loads((bundle / MANIFEST).read_text("utf-8"))["preprocessing"]["size"]
    pixels = np.random.default_rng(0).integers(
        0, 256, (CALIBRATION_VIEWS + options.batch, size, size, 3), np.uint8
    )
    graphs = all_forms(bundle / MODEL, folder, pixels[:CALIBRATION_VIEWS])
    title = f"{options.architecture}, random weights"
    show_speed(title, graphs, pixels[CALIBRATION_VIEWS:], options)


def measure_accuracy(options: argparse.Namespace, folder: Path) -> None:
    bundle = unpacked(options.bundle, folder)
    manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
    preprocessing = Preprocessing.model_validate(manifest["preprocessing"])
    dataset = load_dataset(options.data)
    assert dataset.held_out is not None
    name, held_out = dataset.held_out
    training = all_views(dataset.train, preprocessing)[::VIEWS]
    graphs = all_forms(bundle / MODEL, folder, training)
    kept = folder / FILES[Precision.INT8]
    done = quantise(bundle / MODEL, kept, training).kept
    graphs[f"int8 as exported: {done.form}, {len(done.in_float)} products in float"] = kept
    show_speed(manifest["name"], graphs, training[: options.batch], options)
    pixels = all_views(held_out, preprocessing)
    groups = dataset.groups
    grid = columns(
        f"{dataset.name} {name}, {len(held_out)} photos, five views",
        *(one.replace("_", "-") for one in MEASURES),
        "answers kept",
        "error",
    )
    expected = logits_of(Session(graphs["fp32"]), pixels)
    for graph, path in graphs.items():
        logits = logits_of(Session(path), pixels)
        every = logits.reshape(len(held_out), VIEWS, -1)
        scores = evaluate(name, every, np.asarray(held_out.labels), groups).full
        near = fidelity(logits, expected)
        grid.add_row(graph, *cells(scores), f"{100 * near.agreement:.1f} %", f"{near.error:.4f}")
    Console(width=140).print(grid)


def all_forms(graph: Path, folder: Path, pixels: Pixels) -> dict[str, Path]:
    """fp32, fp16, and int8 in every form with all products in integers."""
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


def show_speed(
    title: str, graphs: Mapping[str, Path], pixels: Pixels, options: argparse.Namespace
) -> None:
    sessions = {name: Session(path, ONE_THREAD) for name, path in graphs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    # The first round warms up.
    for turn in range(options.rounds + 1):
        for name, session in sessions.items():
            start = time.thread_time()
            session.run(pixels)
            if turn:
                seconds[name].append((time.thread_time() - start) / len(pixels))
    grid = columns(f"{title}, batch {len(pixels)}", "MB", "ms a view", "times as fast", "spread")
    for name, path in graphs.items():
        ratios = [ours / its for ours, its in zip(seconds["fp32"], seconds[name], strict=True)]
        grid.add_row(
            name,
            f"{path.stat().st_size / 1e6:.1f}",
            f"{1000 * median(seconds[name]):.1f}",
            f"{median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        )
    Console(width=140).print(grid)


def all_views(split: Split, preprocessing: Preprocessing) -> Pixels:
    """uint8 [N * 5, S, S, 3]."""
    photos = evaluation_photos(split, preprocessing)
    parts = [rows.numpy() for rows, _ in photos.batches(first_copies(len(split)), 8)]
    return np.concatenate(parts)


def unpacked(bundle: Path, folder: Path) -> Path:
    if bundle.is_dir():
        return bundle
    with tarfile.open(bundle) as archive:
        archive.extractall(folder / "bundle", filter="data")
    (manifest,) = (folder / "bundle").rglob(MANIFEST)
    return manifest.parent


def cells(scores: Scores) -> list[str]:
    values = [getattr(scores, one) for one in MEASURES]
    return ["" if one is None else f"{one:.1f}" for one in values]


def columns(title: str, *names: str) -> Table:
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
