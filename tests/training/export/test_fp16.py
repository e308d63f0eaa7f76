from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from taillift.training.export.fp16 import halve
from taillift.training.export.onnx_graph import folded, products


@pytest.fixture(params=["graph", "hybrid"])
def either(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def test_an_fp16_graph_has_the_same_contract_and_nearly_the_same_logits(
    either: Path, pixels: Pixels, tmp_path: Path
) -> None:
    target = tmp_path / "model.fp16.onnx"
    assert halve(either, target, pixels).error < 0.005
    expected, half = Session(either).run(pixels), Session(target).run(pixels)
    assert half.logits.dtype == half.features.dtype == np.float32
    assert np.abs(half.logits - expected.logits).max() < 0.25
    assert np.linalg.norm(half.features, axis=1) == pytest.approx(1, abs=1e-5)
    assert (half.logits.argmax(1) == expected.logits.argmax(1)).mean() >= 0.95
    small, whole = (onnx.load(path).graph for path in (target, either))
    for ours, theirs in ((small.input, whole.input), (small.output, whole.output)):
        assert [tensor.SerializeToString() for tensor in ours] == [
            tensor.SerializeToString() for tensor in theirs
        ]
    assert Session(target).run(pixels[:1]).logits.shape == (1, 7)


def test_weights_of_the_tower_are_in_half_and_the_divisor_is_not(
    graph: Path, pixels: Pixels, tmp_path: Path
) -> None:
    target = tmp_path / "model.fp16.onnx"
    halve(graph, target, pixels)
    model = onnx.load(target)
    kinds = {constant.name: constant.data_type for constant in model.graph.initializer}
    inside = products(model)
    assert inside
    assert {kinds[node.input[1]] for node in inside} == {TensorProto.FLOAT16}
    floor = next(node for node in model.graph.node if node.op_type == "Clip")
    assert kinds[floor.input[1]] == TensorProto.FLOAT


def changed(graph: Path, path: Path, factor: float) -> Path:
    """Write the same graph with the weights of one product multiplied."""
    model: ModelProto = folded(graph)
    name = products(model)[3].input[1]
    weight = next(constant for constant in model.graph.initializer if constant.name == name)
    weight.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), name)
    )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("factor", "reason"),
    [(1e7, "has a value beyond 65504"), (2e5, "intermediate value is beyond 65504")],
)
def test_what_does_not_fit_in_fp16_is_refused_and_nothing_is_left(
    factor: float, reason: str, graph: Path, pixels: Pixels, tmp_path: Path
) -> None:
    large = changed(graph, tmp_path / "large.onnx", factor)
    target = tmp_path / "model.fp16.onnx"
    with pytest.raises(UserError, match=reason) as raised:
        halve(large, target, pixels)
    assert "\n" not in str(raised.value)
    assert not target.exists()


def test_a_file_that_is_not_a_graph_is_refused_in_one_line(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(UserError, match="no variant can be made of"):
        halve(path, tmp_path / "out.onnx", pixels)
