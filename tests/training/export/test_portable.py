"""Exported graphs run in other programs, and bundles of earlier versions run in this one."""

import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import defs

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.session import Session
from tests.support.towers import tiny

DEMO = Path(__file__).parents[3] / "docker/demo-bundle.tar.gz"
# What ONNX Runtime 1.18 reads: https://onnxruntime.ai/docs/reference/compatibility.html
OPSET, IR_VERSION = 18, 10


@pytest.mark.parametrize("kind", ["graph", "hybrid"])
def test_a_graph_has_only_operators_of_an_opset_that_other_programs_know(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model = onnx.load(request.getfixturevalue(kind))
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
    assert model.ir_version <= IR_VERSION
    kinds = {node.op_type for node in model.graph.node}
    assert "Softmax" in kinds
    for name in kinds:
        assert defs.get_schema(name, OPSET).since_version <= OPSET


def test_attention_is_the_same_in_the_graph_as_in_torch(graph: Path, pixels: Pixels) -> None:
    with torch.no_grad():
        logits, features = tiny()(torch.from_numpy(pixels))
    found = Session(graph).run(pixels)
    np.testing.assert_allclose(found.logits, logits.numpy(), atol=2e-5)
    np.testing.assert_allclose(found.features, features.numpy(), atol=2e-5)


def test_a_bundle_with_the_operators_of_version_0_1_0_is_still_served(tmp_path: Path) -> None:
    with tarfile.open(DEMO) as archive:
        archive.extractall(tmp_path, filter="data")
    (manifest,) = tmp_path.rglob("manifest.json")
    kinds = {node.op_type for node in onnx.load(manifest.parent / "model.onnx").graph.node}
    assert "Attention" in kinds
    # Opening it compares its golden logits.
    Classifier.open(manifest.parent)
