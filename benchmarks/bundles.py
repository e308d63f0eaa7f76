"""Bundles to measure time with: a real architecture with random weights."""

from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from taillift.models.bundle.folder import MODEL, new_bundle, write_golden
from taillift.models.bundle.manifest import (
    BackboneInfo,
    FileRecord,
    Manifest,
    Method,
    Thresholds,
    Variant,
    classes_from,
)
from taillift.models.bundle.schema import Precision, Preprocessing
from taillift.models.bundle.session import Session
from taillift.models.lift.convert import convert
from taillift.models.lift.head import CosineHead
from taillift.models.lift.model import Model, Normalise
from taillift.models.lift.onnx_export import write_graph

CLASSES: Final = 100
SCALE: Final = 25.0
EXPAND: Final = 24
MEAN = STD = (0.5, 0.5, 0.5)


def random_bundle(architecture: str, target: Path, classes: int = CLASSES) -> Path:
    """Export an open_clip tower with a cosine head, all weights random; return `target`."""
    import open_clip  # Only after models.lift, which makes torchvision importable.

    torch.manual_seed(0)
    visual: Any = open_clip.create_model(architecture).visual
    tower = convert(visual)
    head = CosineHead(torch.randn(classes, tower.width), SCALE)
    model = Model(Normalise(MEAN, STD), tower, head).eval().requires_grad_(False)
    size = visual.image_size[0]
    views = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    with new_bundle(target) as bundle:
        path = bundle.path / MODEL
        write_graph(model, views, path, ["pixels"], ["logits", "features"])
        write_golden(bundle.path, views.numpy(), Session(path).run(views.numpy()).logits)
        bundle.finish(partial(random_manifest, architecture, size, classes))
    return target


def random_manifest(
    architecture: str, size: int, classes: int, files: dict[str, FileRecord]
) -> Manifest:
    """Return the manifest of a bundle with random weights: no accuracy, no calibration."""
    names = [f"class-{index}" for index in range(classes)]
    return Manifest(
        name=f"{architecture}-random",
        taillift_version="0",
        backbone=BackboneInfo(architecture=architecture, pretrained="none", sha256="0" * 64),
        method=Method(name="none", trainable_parameters=0, loss="none"),
        classes=classes_from(names, names, [1] * classes, Thresholds(), [None] * classes),
        thresholds=Thresholds(),
        preprocessing=Preprocessing(
            size=size,
            expand=EXPAND,
            interpolation="bicubic",
            resize_mode="shortest",
            mean=MEAN,
            std=STD,
        ),
        variants={Precision.FP32: Variant()},
        files=files,
    )
