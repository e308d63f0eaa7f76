"""Tests of an open bundle."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from taillift.models.bundle.classifier import Classifier, top
from taillift.models.bundle.device import Device, Provider
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import MODEL, new_bundle, write_golden
from taillift.models.bundle.images import views
from taillift.models.bundle.manifest import FileRecord, Manifest, Variant
from taillift.models.bundle.schema import Precision
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from tests.support.palette import (
    CLASSES,
    canvases,
    graph,
    logits_of,
    palette_manifest,
    photo,
    write_bundle,
)

COLOURS = [colour for colour, _ in CLASSES.values()]


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Classifier:
    return Classifier.open(bundle)


@pytest.mark.parametrize("count", [1, 2, 5, 32])
def test_the_graph_takes_batches_of_any_size(classifier: Classifier, count: int) -> None:
    colours = (COLOURS * 5)[:count]
    outputs = classifier.session.run(canvases(colours))
    np.testing.assert_allclose(outputs.logits, logits_of(colours), atol=1e-4)
    assert outputs.features.shape == (count, 3)


@pytest.mark.parametrize("ensemble", Ensemble)
@pytest.mark.parametrize("count", [0, 1, 9, 50])
def test_rows_are_in_the_order_of_the_images(
    classifier: Classifier, ensemble: Ensemble, count: int
) -> None:
    colours = (COLOURS * 8)[:count]
    logits, views = classifier.mean_logits(
        (classifier.canvas(photo(colour)) for colour in colours), ensemble
    )
    assert (logits.shape, logits.dtype, views.shape) == ((count, 7), np.dtype("f4"), (count,))
    np.testing.assert_array_equal(logits.argmax(1), (list(range(7)) * 8)[:count])


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> np.ndarray:
    """Return a canvas of two colours side by side."""
    canvas = np.empty((10, 10, 3), np.uint8)
    canvas[:, :5], canvas[:, 5:] = left, right
    return canvas


def test_only_an_image_in_doubt_takes_all_views(classifier: Classifier) -> None:
    """Then it gets the full ensemble's logits, whatever the other images of its batch are."""
    doubtful = halves((255, 0, 0), (255, 230, 0))
    images = [halves(colour, colour) for colour in COLOURS[:3]]
    images.insert(1, doubtful)
    adaptive = classifier.mean_logits(images, Ensemble.ADAPTIVE)
    assert adaptive.views.tolist() == [1, 5, 1, 1]
    centre = classifier.mean_logits(images, Ensemble.OFF).logits
    full = classifier.mean_logits(images, Ensemble.FULL).logits
    np.testing.assert_allclose(adaptive.logits[1], full[1], atol=1e-4)
    np.testing.assert_allclose(adaptive.logits[[0, 2, 3]], centre[[0, 2, 3]], atol=1e-4)


@pytest.mark.parametrize("ensemble", Ensemble)
def test_features_are_the_mean_over_the_views_that_an_image_took(
    classifier: Classifier, ensemble: Ensemble
) -> None:
    canvases = [halves(COLOURS[0], COLOURS[0]), halves((255, 0, 0), (255, 230, 0))]
    size = classifier.manifest.preprocessing.size
    for canvas, outputs in zip(canvases, classifier.outputs(canvases, ensemble), strict=True):
        rows = classifier.run(views(canvas, size, outputs.views))
        np.testing.assert_allclose(outputs.features, rows.features.mean(0), atol=1e-5)
        np.testing.assert_allclose(outputs.logits, rows.logits.mean(0), atol=1e-4)


def test_without_a_rule_adaptive_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "raw", variants={Precision.FP32: Variant()})
    classifier = Classifier.open(folder)
    with pytest.raises(UserError, match="no rule for ensemble=adaptive"):
        classifier.classify([], ensemble="adaptive")
    with pytest.raises(UserError, match="no rule for ensemble=adaptive"):
        classifier.mean_logits([halves(COLOURS[0], COLOURS[0])], Ensemble.ADAPTIVE)


def refusal(
    folder: Path,
    pixels: np.ndarray | None = None,
    logits: np.ndarray | None = None,
    **changes: object,
) -> str:
    """Return the one line that the palette's bundle is refused with if some of it is changed.

    `pixels` and `logits` are the golden ones; `changes` are fields of the manifest.
    """
    pixels = canvases(COLOURS) if pixels is None else pixels
    logits = logits_of(COLOURS) if logits is None else logits

    def manifest(files: dict[str, FileRecord]) -> Manifest:
        return palette_manifest("", files).model_copy(update=changes)

    with new_bundle(folder) as bundle:
        onnx.save(graph(), bundle.path / MODEL)
        write_golden(bundle.path, pixels, logits)
        bundle.finish(manifest)
    with pytest.raises(UserError) as caught:
        Classifier.open(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_golden_logits_are_refused(tmp_path: Path) -> None:
    logits = logits_of(COLOURS) + np.float32(0.1)
    assert "gives other logits here" in refusal(tmp_path / "wrong", logits=logits)


def test_golden_logits_of_another_model_are_refused(tmp_path: Path) -> None:
    line = refusal(tmp_path / "wrong", logits=logits_of(COLOURS)[:, :1])
    assert "model.onnx gives logits (7, 7) and golden.npz has (7, 1)" in line


def test_a_class_too_few_is_refused(tmp_path: Path) -> None:
    classes = palette_manifest("v", {}).classes[:-1]
    line = refusal(tmp_path / "wrong", classes=classes)
    assert "manifest.json lists 6 classes and model.onnx gives 7 logits" in line


def test_views_of_another_size_than_the_manifests_are_refused(tmp_path: Path) -> None:
    other = palette_manifest("v", {}).preprocessing.model_copy(update={"size": 9})
    line = refusal(tmp_path / "wrong", preprocessing=other)
    assert "says views of 9 x 9 x 3 and golden.npz has 8 x 8 x 3" in line


def test_a_graph_for_views_of_another_size_is_refused(tmp_path: Path) -> None:
    other = palette_manifest("v", {}).preprocessing.model_copy(update={"size": 9})
    pixels = np.zeros((7, 9, 9, 3), np.uint8)
    line = refusal(tmp_path / "wrong", preprocessing=other, pixels=pixels)
    assert "model.onnx fails on the views of golden.npz" in line


def test_a_file_that_is_not_a_graph_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"no graph")
    with pytest.raises(UserError, match="ONNX Runtime cannot load") as caught:
        Session(tmp_path / MODEL)
    assert "\n" not in str(caught.value)


def test_a_provider_that_is_not_available_is_refused(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    onnx.save(graph(), tmp_path / MODEL)
    with pytest.raises(UserError, match="has no CUDAExecutionProvider"):
        Session(tmp_path / MODEL, Device(Provider.CUDA))


def test_top_is_the_surest_first_and_ties_keep_their_order() -> None:
    assert top(np.array([0.1, 0.4, 0.1, 0.4]), 3) == [1, 3, 0]
    assert top(np.array([0.2, 0.8]), 9) == [1, 0]
