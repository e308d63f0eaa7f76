"""A small bundle with a cosine head and statistics, whose features are those of an image's colour.

Its graph has the inputs and outputs of every bundle's graph. Unit `features` are a fixed random
projection of the view's pixels.
"""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from taillift.models.bundle.feature_statistics import FeatureStatistics, unit
from taillift.models.bundle.folder import DELTA, MODEL, new_bundle, write_golden
from taillift.models.bundle.images import load, views
from taillift.models.bundle.manifest import FileRecord, Manifest, Thresholds, Variant, classes_from
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.bundle.session import Session
from tests.support.palette import SIZE, palette_manifest

WIDTH: Final = 24
SCALE: Final = 16.0
COLOURS: Final = {
    "red": (200, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 60, 200),
    "orange": (220, 140, 30),
    "purple": (130, 40, 150),
    "grey": (120, 120, 120),
    "pink": (230, 130, 170),
    "teal": (30, 130, 130),
}


def write_colours(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write COLOUR/*.png under `root` and return it."""
    for name, count in counts.items():
        for index in range(count):
            number = 1_000 * list(COLOURS).index(name) + index + 100_000 * seed
            noise = np.random.default_rng(number).integers(-30, 30, (24, 32, 3))
            pixels = (np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)
            path = root / name / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


def write_cosine_bundle(target: Path, photos: Path, old: bool = False) -> Path:
    """Write a bundle of the classes of `photos`, whose rows are their mean features.

    It has a variant int8, a copy of the graph. An `old` one has no statistics.
    """
    manifest = palette_manifest("", {})
    folders = sorted(photos.iterdir(), key=lambda place: (-len(list(place.iterdir())), place.name))
    counts = [len(list(folder.iterdir())) for folder in folders]
    labels = [folder.name for folder in folders]
    pixels = np.stack(
        [
            views(load(photo.read_bytes(), manifest.preprocessing), SIZE)[0]
            for folder in folders
            for photo in sorted(folder.iterdir())
        ]
    )
    indices = np.repeat(np.arange(len(counts)), counts)
    with new_bundle(target) as bundle:
        onnx.save(graph(np.ones((len(labels), WIDTH), np.float32)), bundle.path / MODEL)
        features = Session(bundle.path / MODEL).run(pixels).features
        statistics = FeatureStatistics.of(features, indices, len(labels))
        rows = SCALE * unit(statistics.means)
        onnx.save(graph(rows), bundle.path / MODEL)
        golden = pixels[:: max(1, len(pixels) // 4)]
        logits = Session(bundle.path / MODEL).run(golden).logits
        shutil.copyfile(bundle.path / MODEL, bundle.path / FILES[Precision.INT8])
        write_golden(bundle.path, golden, dict.fromkeys(Precision, logits))
        if not old:
            statistics.save(bundle.path)
        document = {"classes": labels, "names": labels, "counts": counts, "prompts": labels}
        save_file({"head.weight": rows}, bundle.path / DELTA, {"taillift": json.dumps(document)})
        classes = classes_from(labels, labels, counts, Thresholds(), [None] * len(labels))
        variants = {**manifest.variants, Precision.INT8: Variant(made="a copy")}

        def finished(files: dict[str, FileRecord]) -> Manifest:
            changes = {"name": "colours", "classes": classes, "variants": variants, "files": files}
            return manifest.model_copy(update={**changes, "taillift_version": version("taillift")})

        bundle.finish(finished)
    return target


def graph(rows: NDArray[np.float32]) -> onnx.ModelProto:
    """Return the graph with these rows [C, WIDTH] of the head."""
    random = np.random.default_rng(0)
    projection = random.standard_normal((SIZE * SIZE * 3, WIDTH)).astype(np.float32)
    constants = {
        "shape": np.array([-1, SIZE * SIZE * 3], np.int64),
        "middle": np.float32(110),
        "projection": projection,
        "last": np.array([1], np.int64),
        "tiny": np.float32(1e-6),
        "head.weight": rows,
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "shape"], ["flat"]),
        helper.make_node("Sub", ["flat", "middle"], ["centred"]),
        helper.make_node("MatMul", ["centred", "projection"], ["projected"]),
        helper.make_node("ReduceL2", ["projected", "last"], ["length"], keepdims=1),
        helper.make_node("Add", ["length", "tiny"], ["divisor"]),
        helper.make_node("Div", ["projected", "divisor"], ["features"]),
        helper.make_node("Gemm", ["features", "head.weight"], ["logits"], transB=1),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", SIZE, SIZE, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(rows)])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", WIDTH])
    initializers = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    ]
    return helper.make_model(
        helper.make_graph(nodes, "colours", [pixels], [logits, features], initializers),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
