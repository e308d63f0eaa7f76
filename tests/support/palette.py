"""A small bundle whose right answers are known: it classifies the colour of a view's upper half.

Its graph has the inputs and outputs of every bundle's graph (`pixels` in, `logits` and `features`
out). Two colours cause trouble on purpose: `SLOW` keeps the device busy for nearly a second, and
`POISON` makes ONNX Runtime fail.
"""

import io
import json
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from taillift.models.bundle.ensemble import ExitRule, Loss
from taillift.models.bundle.folder import (
    CONFUSION,
    MANIFEST,
    MODEL,
    content_version,
    file_record,
    new_bundle,
    read_manifest,
    write_golden,
    write_manifest,
)
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.manifest import (
    Accuracy,
    BackboneInfo,
    FileRecord,
    Manifest,
    Method,
    Thresholds,
    Variant,
    classes_from,
)
from taillift.models.bundle.schema import Precision, Preprocessing
from taillift.models.bundle.temperature import Calibration, Temperatures

Colour = tuple[int, int, int]

CLASSES: Final[dict[str, tuple[Colour, int]]] = {
    "red": ((255, 0, 0), 300),
    "green": ((0, 255, 0), 150),
    "blue": ((0, 0, 255), 101),
    "yellow": ((255, 255, 0), 60),
    "cyan": ((0, 255, 255), 20),
    "white": ((255, 255, 255), 12),
    "black": ((0, 0, 0), 5),
}
SLOW: Final[Colour] = (255, 128, 0)
POISON: Final[Colour] = (255, 0, 255)

SIZE: Final = 8
EXPAND: Final = 2
SHARPNESS: Final = 20.0
TEMPERATURE: Final = 2.0
# An image with a smaller margin after the centre view is classified from all five views.
MARGIN: Final = 5.0
COLD: Final = Temperatures(pooled=1.0, groups={})
WARM: Final = Temperatures(pooled=TEMPERATURE, groups={})
CALIBRATION: Final = Calibration(
    off=Temperatures(pooled=1.0, groups={}),
    full=Temperatures(pooled=TEMPERATURE, groups={}),
    adaptive={
        1: Temperatures(pooled=1.0, groups={}),
        5: Temperatures(pooled=TEMPERATURE, groups={}),
    },
    data="none",
    source="validation",
    images=0,
)
RULE: Final = ExitRule(
    stages=(1, VIEWS),
    leads=(MARGIN,),
    tolerance=0.5,
    data="none",
    source="validation",
    images=0,
    overall=Loss(photos=0, estimate=None, error=None, expected=None, bound=100),
    groups={},
    disagreement=None,
    mean_views=2.0,
    certified=False,
)

# How often a slow image multiplies a 256 x 256 matrix: this takes a little under a second.
SLOW_ROUNDS: Final = 1_000
NEAR: Final = 0.01


_NUMBERS = count()


def photo(colour: Colour, kind: str = "PNG", size: tuple[int, int] = (20, 16)) -> bytes:
    """Return an image file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def new_photo(colour: Colour) -> bytes:
    """Return an image file of one colour, of a size that no other has: copies count once."""
    number = next(_NUMBERS)
    return photo(colour, size=(20 + number % 100, 16 + number // 100))


def canvases(colours: list[Colour]) -> NDArray[np.uint8]:
    """Return one canvas of each colour, uint8 [N, S, S, 3]."""
    rows = np.array(colours, np.uint8)[:, None, None]
    return np.broadcast_to(rows, (len(colours), SIZE, SIZE, 3)).copy()


def logits_of(colours: list[Colour]) -> NDArray[np.float32]:
    """Compute the logits that the graph must give, float32 [N, C], without the graph."""
    mean = np.array(colours, np.float32) / 255
    centres = _centres()
    distances = np.square(mean[:, None] - centres).sum(-1)
    logits = SHARPNESS * (np.square(mean).sum(-1, keepdims=True) - distances)
    return np.asarray(logits, np.float32)


def write_bundle(target: Path, **changes: object) -> Path:
    """Write the bundle to `target` and return it; `changes` replace fields of the manifest."""
    colours = [colour for colour, _ in CLASSES.values()]

    def manifest(files: dict[str, FileRecord]) -> Manifest:
        return palette_manifest("", files).model_copy(update=changes)

    with new_bundle(target) as bundle:
        onnx.save(graph(), bundle.path / MODEL)
        write_golden(bundle.path, canvases(colours), logits_of(colours))
        bundle.finish(manifest)
    return target


def write_confusion(bundle: Path, photos: dict[tuple[str, str], int]) -> None:
    """Write a confusion matrix of held-out photos into the bundle's report.

    `photos` counts them by true and predicted class. Classes that are not in it were always right.
    """
    listed = {true for true, _ in photos}
    right = {(label, label): 10_000 for label in CLASSES if label not in listed}
    rows = [f"{true},{predicted},{count}" for (true, predicted), count in (photos | right).items()]
    path = bundle / CONFUSION
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["true,predicted,photos", *rows]) + "\n")
    manifest = read_manifest(bundle)
    files = {**manifest.files, CONFUSION: file_record(path)}
    write_manifest(bundle / MANIFEST, manifest.model_copy(update={"files": files}))


def make_first_schema(bundle: Path) -> Manifest:
    """Make a bundle one of schema 1, whose version stands for the files alone."""
    path = bundle / MANIFEST
    document = json.loads(path.read_text())
    files = {name: FileRecord(**record) for name, record in document["files"].items()}
    document |= {"schema_version": 1, "version": content_version(files)}
    path.write_text(json.dumps(document))
    return Manifest.model_validate(document)


def palette_manifest(version: str, files: dict[str, FileRecord]) -> Manifest:
    """Return the bundle's manifest."""
    counts = [count for _, count in CLASSES.values()]
    accuracy = Accuracy(single=90.0, full=100.0)
    return Manifest(
        name="palette",
        version=version,
        taillift_version=metadata.version("taillift"),
        backbone=BackboneInfo(architecture="mean-colour", pretrained="none", sha256="0" * 64),
        method=Method(name="none", rank=None, trainable_parameters=0, loss="none"),
        classes=classes_from(
            list(CLASSES),
            [f"a {label} thing" for label in CLASSES],
            counts,
            Thresholds(),
            [accuracy] * len(CLASSES),
        ),
        thresholds=Thresholds(),
        preprocessing=Preprocessing(
            size=SIZE,
            expand=EXPAND,
            interpolation="bicubic",
            resize_mode="shortest",
            mean=(0, 0, 0),
            std=(1, 1, 1),
        ),
        variants={Precision.FP32: Variant(exit=RULE, calibration=CALIBRATION)},
        files=files,
    )


def _centres() -> NDArray[np.float32]:
    return np.array([colour for colour, _ in CLASSES.values()], np.float32) / np.float32(255)


def graph() -> onnx.ModelProto:
    """Return the graph: logits = sharpness * (2 mean · centre - |centre|^2).

    Two zeros are added to the logits; computing them is what causes the trouble.
    """
    centres = _centres()
    constants = {
        "weights": 2 * SHARPNESS * centres.T,
        "bias": -SHARPNESS * np.square(centres).sum(-1),
        "top": np.array([0], np.int64),
        "middle": np.array([SIZE // 2], np.int64),
        "rows": np.array([1], np.int64),
        "levels": np.float32(255),
        "places": np.array([1, 2], np.int64),
        "channels": np.array([1], np.int64),
        "everything": np.array([0], np.int64),
        "tiny": np.float32(1e-6),
        "near": np.float32(NEAR),
        "slow": np.array([SLOW], np.float32) / 255,
        "poison": np.array([POISON], np.float32) / 255,
        "rounds": np.array(SLOW_ROUNDS, np.int64),
        "beyond": np.array(1_000, np.int64),
        "zeros": np.zeros(1, np.float32),
        "nothing": np.float32(0),
        "square": np.eye(256, dtype=np.float32),
        "always": np.array(True),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["floats", "top", "middle", "rows"], ["upper"]),
        helper.make_node("ReduceMean", ["upper", "places"], ["level"], keepdims=0),
        helper.make_node("Div", ["level", "levels"], ["mean"]),
        helper.make_node("Gemm", ["mean", "weights", "bias"], ["scores"]),
        helper.make_node("ReduceL2", ["mean", "channels"], ["length"], keepdims=1),
        helper.make_node("Add", ["length", "tiny"], ["divisor"]),
        helper.make_node("Div", ["mean", "divisor"], ["features"]),
        *_is_near("slow"),
        helper.make_node("ReduceMax", ["is_slow", "everything"], ["any_slow"], keepdims=0),
        helper.make_node("Mul", ["any_slow", "rounds"], ["trips"]),
        helper.make_node("Loop", ["trips", "always", "square"], ["product"], body=_loop_body()),
        helper.make_node("ReduceMax", ["product"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "nothing"], ["slow_zero"]),
        *_is_near("poison"),
        helper.make_node("Mul", ["is_poison", "beyond"], ["index"]),
        helper.make_node("Gather", ["zeros", "index"], ["poison_zero"]),
        helper.make_node("Unsqueeze", ["poison_zero", "channels"], ["poison_zeros"]),
        helper.make_node("Add", ["scores", "slow_zero"], ["slowed"]),
        helper.make_node("Add", ["slowed", "poison_zeros"], ["logits"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", SIZE, SIZE, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES)])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])
    initializers = [
        numpy_helper.from_array(np.asarray(value, getattr(value, "dtype", None)), name)
        for name, value in constants.items()
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "palette", [pixels], [logits, features], initializers),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model


def _is_near(name: str) -> list[onnx.NodeProto]:
    """Return nodes for `is_NAME`, int64 [N]: 1 if the mean colour is the constant `NAME`."""
    return [
        helper.make_node("Sub", ["mean", name], [f"{name}_gap"]),
        helper.make_node(
            "ReduceSumSquare", [f"{name}_gap", "channels"], [f"{name}_far"], keepdims=0
        ),
        helper.make_node("Less", [f"{name}_far", "near"], [f"{name}_here"]),
        helper.make_node("Cast", [f"{name}_here"], [f"is_{name}"], to=TensorProto.INT64),
    ]


def _loop_body() -> onnx.GraphProto:
    def value(name: str, kind: int, shape: list[int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    return helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("MatMul", ["before", "before"], ["after"]),
        ],
        "round",
        [
            value("round", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("before", TensorProto.FLOAT, [256, 256]),
        ],
        [value("still_going", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, [256, 256])],
    )
