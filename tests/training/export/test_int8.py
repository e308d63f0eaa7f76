from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from taillift.training.export import int8 as module
from taillift.training.export.int8 import (
    FORMS,
    FewShotPhotos,
    QuantisationCandidate,
    best,
    calibrate,
    product_groups,
    quantise,
    write_int8,
)
from taillift.training.export.onnx_graph import Fidelity, fidelity, folded, products


@pytest.fixture(params=["graph", "hybrid"])
def either(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def test_an_int8_graph_has_the_same_contract_and_nearly_the_same_answers(
    either: Path, pixels: Pixels, tmp_path: Path
) -> None:
    target = tmp_path / "model.int8.onnx"
    result = quantise(either, target, pixels)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    small, whole = (onnx.load(path).graph for path in (target, either))
    for ours, theirs in ((small.input, whole.input), (small.output, whole.output)):
        assert [tensor.SerializeToString() for tensor in ours] == [
            tensor.SerializeToString() for tensor in theirs
        ]
    assert any(constant.data_type == TensorProto.INT8 for constant in small.initializer)
    expected, int8 = Session(either).run(pixels), Session(target).run(pixels)
    assert int8.logits.dtype == int8.features.dtype == np.float32
    assert np.linalg.norm(int8.features, axis=1) == pytest.approx(1, abs=1e-5)
    near = fidelity(int8.logits, expected.logits)
    assert near.error < 0.1
    assert near.agreement > 0.8
    assert result.kept in result.tried
    assert str(result.kept).startswith(result.kept.form)


def test_any_batch_gives_a_view_nearly_the_same_logits(
    hybrid: Path, pixels: Pixels, tmp_path: Path
) -> None:
    quantise(hybrid, tmp_path / "model.int8.onnx", pixels)
    session = Session(tmp_path / "model.int8.onnx")
    together = session.run(pixels[:5]).logits
    alone = np.concatenate([session.run(pixels[index : index + 1]).logits for index in range(5)])
    assert fidelity(alone, together).error < 0.05


@pytest.mark.parametrize("form", FORMS)
def test_attention_and_head_stay_in_float_and_constants_behind_slices_do_not(
    form: str, graph: Path, pixels: Pixels, tmp_path: Path
) -> None:
    model = folded(graph)
    nodes = products(model)
    # The patches, four products a block, and one more where the last block splits its own.
    assert len(nodes) == 1 + 3 * 4 + 1
    path = tmp_path / "out.onnx"
    write_int8(form, model, calibrate(model, pixels, tmp_path), {n.name for n in nodes}, path)  # type: ignore[arg-type]
    written = onnx.load(path).graph
    constants = written.initializer
    floats = {constant.name for constant in constants if constant.data_type == TensorProto.FLOAT}
    matrices = [n for n in written.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in floats]
    assert [node.output[0] for node in matrices] == ["logits"]
    assert sum(node.op_type == "Softmax" for node in written.node) == 3
    assert fidelity(Session(path).run(pixels).logits, Session(graph).run(pixels).logits).error < 0.1


def test_matrix_weights_keep_a_bit_free_so_that_no_processor_overflows(
    hybrid: Path, pixels: Pixels, tmp_path: Path
) -> None:
    model = folded(hybrid)
    names = {node.name for node in products(model)}
    write_int8("mixed", model, calibrate(model, pixels, tmp_path), names, tmp_path / "out.onnx")
    largest = {
        constant.name: int(np.abs(onnx.numpy_helper.to_array(constant).astype(int)).max())
        for constant in onnx.load(tmp_path / "out.onnx").graph.initializer
        if constant.data_type == TensorProto.INT8 and len(constant.dims) > 1
    }
    depthwise = {
        node.input[1]
        for node in model.graph.node
        if node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute)
    }
    assert len(depthwise) == 2
    for name, value in largest.items():
        wide = any(name.startswith(weights) for weights in depthwise)
        assert 64 < value <= 127 if wide else value <= 64


def test_if_integers_are_too_coarse_the_most_sensitive_groups_stay_in_float(
    hybrid: Path, pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = quantise(hybrid, tmp_path / "plain.onnx", pixels)
    errors = sorted(candidate.fidelity.error for candidate in plain.tried)
    assert all(candidate.in_float == () for candidate in plain.tried)
    monkeypatch.setattr(module, "LIMIT", errors[0] / 2)
    refined = quantise(hybrid, tmp_path / "refined.onnx", pixels)
    partly = [candidate for candidate in refined.tried if candidate.in_float]
    assert partly
    assert min(candidate.fidelity.error for candidate in partly) < errors[0]
    assert refined.kept.in_float


def test_groups_end_at_strides_and_attentions(hybrid: Path) -> None:
    model = folded(hybrid)
    names = [node.name for node in products(model)]
    parts = product_groups(model.graph.node, set(names))
    assert [name for part in parts for name in part] == names
    # Two strides in the stem, two blocks.
    assert len(parts) == 4
    assert product_groups(model.graph.node, set()) == []


@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0, 0.5)), min_size=1, max_size=8))
def test_the_kept_candidate_is_the_fastest_within_the_limit_or_else_the_most_accurate(
    drawn: list[tuple[float, float]],
) -> None:
    candidates = [
        QuantisationCandidate("static", (), seconds, Fidelity(error, 1.0))
        for seconds, error in drawn
    ]
    kept = best(candidates)
    for other in candidates:
        if kept.fidelity.error <= 0.1:
            assert other.fidelity.error > 0.1 or other.seconds >= kept.seconds
        else:
            assert other.fidelity.error >= kept.fidelity.error


def few_shot(graph: Path, photos: int, random: np.random.Generator) -> FewShotPhotos:
    """Return random views whose labels are the graph's own answers."""
    coarse = random.integers(0, 256, (photos, 4, 4, 3), np.uint8)
    views: Pixels = coarse.repeat(4, axis=1).repeat(4, axis=2)
    labels = Session(graph).run(views).logits.argmax(1)
    return FewShotPhotos(views, labels, np.zeros(7))


def test_the_form_is_chosen_by_what_few_shot_photos_lose_if_there_are_enough(
    hybrid: Path, pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    many, too_few = few_shot(hybrid, 300, random), few_shot(hybrid, 60, random)
    assert many.can_decide
    assert not too_few.can_decide
    # No logit is near enough, but the answers are.
    monkeypatch.setattr(module, "LIMIT", 0.0)
    by_logits = quantise(hybrid, tmp_path / "logits.onnx", pixels, too_few)
    assert {candidate.lower_end for candidate in by_logits.tried} == {None}
    monkeypatch.setattr(module, "MAX_LOSS", 30.0)
    chosen = quantise(hybrid, tmp_path / "few.onnx", pixels, many)
    assert all(candidate.in_float == () for candidate in chosen.tried)
    assert chosen.kept.is_near
    assert chosen.kept == min(
        (candidate for candidate in chosen.tried if candidate.is_near),
        key=lambda candidate: candidate.seconds,
    )
    lower = many.lower_end(many.right(Session(hybrid)), many.right(Session(tmp_path / "few.onnx")))
    assert chosen.kept.lower_end == lower < 0
    assert f"lose at most {-lower:.1f} points (95 %)" in str(chosen.kept)


def test_if_every_form_loses_too_much_the_one_that_loses_least_is_kept() -> None:
    candidates = [
        QuantisationCandidate("static", (), seconds, Fidelity(0.01, 1.0), lower_end)
        for seconds, lower_end in ((1.0, -9.0), (3.0, -4.0), (2.0, -6.0))
    ]
    assert best(candidates).lower_end == -4.0
    assert best([*candidates, replace(candidates[0], lower_end=-1.5)]).lower_end == -1.5


def test_fidelity_counts_every_class_alike() -> None:
    expected = np.eye(2, dtype=np.float32)[[0, 0, 0, 1]]
    logits = np.eye(2, dtype=np.float32)[[0, 0, 0, 0]]
    measured = fidelity(logits, expected)
    assert measured.agreement == 0.5
    assert measured.error == pytest.approx(1.0)
    assert fidelity(expected, expected) == Fidelity(0.0, 1.0)


def test_a_graph_without_products_is_refused_in_one_line(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "bare.onnx"
    shape: list[str | int | None] = ["N", 16, 16, 3]
    body = helper.make_graph(
        [helper.make_node("Cast", ["pixels"], ["logits"], to=TensorProto.FLOAT)],
        "bare",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    onnx.save(
        helper.make_model(body, ir_version=10, opset_imports=[helper.make_opsetid("", 23)]), path
    )
    with pytest.raises(UserError, match=r"bare\.onnx cannot be quantised .*: leave int8 out"):
        quantise(path, tmp_path / "out.onnx", pixels)
    assert not (tmp_path / "out.onnx").exists()


def test_a_file_that_is_not_a_graph_is_refused_in_one_line(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(UserError, match="no variant can be made of") as raised:
        quantise(path, tmp_path / "out.onnx", pixels)
    assert "\n" not in str(raised.value)


def test_a_single_view_is_too_little_to_calibrate_and_compare(
    graph: Path, pixels: Pixels, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="needs two training views"):
        quantise(graph, tmp_path / "out.onnx", pixels[:1])
