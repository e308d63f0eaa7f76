"""A bundle with the classes and the report of the demo bundle, but with a graph that sees colours.

Each class has a colour, and a photo of this colour is classified as this class. So a test can send
real requests that repeat the predictions which the demo bundle's report records.
"""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from taillift.models.bundle.folder import MODEL, new_bundle, write_golden
from taillift.models.bundle.manifest import FileRecord, Manifest, Thresholds, classes_from
from tests.support.palette import SHARPNESS, SIZE, Colour, palette_manifest

DEMO: Final = Path(__file__).parents[2] / "docker" / "demo-bundle.tar.gz"

# The number of photos by (true class, predicted class).
Predictions = Mapping[tuple[str, str], int]


@cache
def _member(name: str) -> str:
    with tarfile.open(DEMO) as archive:
        file = archive.extractfile(f"./{name}")
        assert file is not None
        return file.read().decode()


def read_counts() -> dict[str, int]:
    """Return the number of training photos of each class."""
    classes = json.loads(_member("manifest.json"))["classes"]
    return {entry["label"]: entry["count"] for entry in classes}


def read_predictions() -> Predictions:
    """Return the demo bundle's predictions for all test photos, as `taillift export` wrote them."""
    table = csv.DictReader(io.StringIO(_member("report/confusion.csv")))
    return {(row["true"], row["predicted"]): int(row["photos"]) for row in table}


def colours() -> dict[str, Colour]:
    """Return a colour for each class, far apart from each other."""
    level = (0, 128, 255)
    levels: Iterable[Colour] = product(level, level, level)
    return dict(zip(read_counts(), levels, strict=False))


def write_wardrobe(target: Path) -> Path:
    """Write the bundle to `target`, and return `target`."""
    counts = read_counts()
    numbers, nothing = list(counts.values()), [None] * len(counts)
    classes = classes_from(list(counts), list(counts), numbers, Thresholds(), nothing)
    canvases = np.array(list(colours().values()), np.uint8)[:, None, None]
    canvases = np.broadcast_to(canvases, (len(counts), SIZE, SIZE, 3)).copy()

    def manifest(files: dict[str, FileRecord]) -> Manifest:
        return palette_manifest("", files).model_copy(update={"classes": classes})

    with new_bundle(target) as bundle:
        onnx.save(_graph(), bundle.path / MODEL)
        write_golden(bundle.path, canvases, _logits())
        (bundle.path / "report").mkdir(exist_ok=True)
        (bundle.path / "report" / "confusion.csv").write_text(_member("report/confusion.csv"))
        bundle.finish(manifest)
    return target


def draw(
    rng: np.random.Generator, size: int, predictions: Predictions, without: str = ""
) -> list[str]:
    """Draw the predictions of `size` photos, with all classes except `without` equally frequent."""
    labels = list(read_counts())
    true = [label for label in labels if label != without]
    photos = np.array([[predictions.get((row, column), 0) for column in labels] for row in true])
    mix = (photos / photos.sum(1, keepdims=True)).mean(0)
    return [labels[index] for index in rng.choice(len(labels), size, p=mix)]


def _centres() -> NDArray[np.float32]:
    return np.array(list(colours().values()), np.float32) / np.float32(255)


def _logits() -> NDArray[np.float32]:
    centres = _centres()
    biases = np.square(centres).sum(-1)
    return np.asarray(SHARPNESS * (2 * centres @ centres.T - biases), np.float32)


def _graph() -> onnx.ModelProto:
    """Return the graph: logits = sharpness * (2 mean · centre - |centre|^2)."""
    centres = _centres()
    constants = {
        "weights": 2 * SHARPNESS * centres.T,
        "bias": -SHARPNESS * np.square(centres).sum(-1),
        "places": np.array([1, 2], np.int64),
        "levels": np.float32(255),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "places"], ["level"], keepdims=0),
        helper.make_node("Div", ["level", "levels"], ["features"]),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", SIZE, SIZE, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(centres)])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])
    initializers = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    ]
    return helper.make_model(
        helper.make_graph(nodes, "wardrobe", [pixels], [logits, features], initializers),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
