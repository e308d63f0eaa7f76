"""Tests of which graph of a bundle is served, and of what GET /model says about the choice."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.folder import new_bundle, write_golden
from taillift.models.bundle.manifest import Evaluation, FileRecord, Manifest, Scores, Variant
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.bundle.version_store import VersionStore
from taillift.models.errors import UserError
from taillift.service.inference.graph_choice import open_classifier
from taillift.service.settings import read_settings
from tests.service.inference.test_swap import running_store, served
from tests.support.palette import CLASSES, canvases, graph, logits_of, palette_manifest
from tests.support.serving import running, until

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8


def variant(few: float, mean_class: float = 60.0) -> Variant:
    scores = Scores(
        overall=60,
        mean_class=mean_class,
        many=70,
        medium=60,
        few=few,
        worst_class=20,
        harmonic_mean=50,
    )
    return Variant(evaluation=Evaluation(data="none", images=9, single=scores, full=scores))


def heavy() -> onnx.ModelProto:
    """Return the palette's graph, changed so that blank views take long."""
    model = graph()
    changes: dict[str, np.ndarray] = {
        "slow": np.zeros((1, 3), np.float32),
        "rounds": np.array(20, np.int64),
    }
    for constant in model.graph.initializer:
        if constant.name in changes:
            constant.CopyFrom(numpy_helper.from_array(changes[constant.name], constant.name))
    return model


def write(
    target: Path, variants: dict[Precision, Variant], int8: float = 0.0, light: Precision = INT8
) -> Path:
    """Write the palette with variants.

    All but `light` are slow, and int8's golden logits are off by `int8`.
    """
    colours = [colour for colour, _ in CLASSES.values()]

    def manifest(files: dict[str, FileRecord]) -> Manifest:
        return palette_manifest("", files).model_copy(update={"variants": variants})

    with new_bundle(target) as bundle:
        for precision in variants:
            model = graph() if precision is light else heavy()
            onnx.save(model, bundle.path / FILES[precision])
        golden = {
            precision: logits_of(colours) + (int8 if precision is INT8 else 0)
            for precision in variants
        }
        write_golden(bundle.path, canvases(colours), golden)
        bundle.finish(manifest)
    return target


def opened(bundle: Path, **settings: object) -> tuple[Precision, str]:
    chosen = read_settings(bundle=bundle, **settings)
    classifier, reason = open_classifier(bundle, chosen.precision, chosen.device)
    return classifier.predictor.precision, reason


def test_what_is_as_accurate_and_faster_is_served(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", {FP32: variant(50), INT8: variant(49.8)})
    precision, reason = opened(bundle)
    assert precision is INT8
    assert reason.startswith("int8: ")
    assert "times as fast as fp32 here, mean-class accuracy equal to fp32's, few-shot" in reason


def test_int8_that_loses_the_tail_is_not_served_and_model_says_why(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", {FP32: variant(50), INT8: variant(49.1)})
    with running(bundle) as client:
        model = client.get("/model").json()
    assert model["precision"] == "fp32"
    assert model["precision_reason"] == "fp32: int8 loses 0.9 points of few-shot accuracy"
    assert model["evaluation"]["full"]["few"] == 50
    assert model["made"] is None


def test_the_fastest_graph_of_a_version_is_found_next_to_the_champion(
    tmp_path: Path, bundle: Path
) -> None:
    store = VersionStore.at(tmp_path / "store")
    store.promote(store.add(bundle))
    store.add(write(tmp_path / "variants", {FP32: variant(50), INT8: variant(49.8)}))
    with running_store(store) as (client, _):
        store.promote(2)
        until(lambda: served(client) == "2")
        model = client.get("/model").json()
    assert model["precision"] == "int8"
    assert "times as fast as fp32 here" in model["precision_reason"]


def test_model_says_how_an_int8_graph_was_made(tmp_path: Path) -> None:
    made = variant(50).model_copy(update={"made": "static; near"})
    bundle = write(tmp_path / "bundle", {FP32: variant(50), INT8: made})
    with running(bundle, precision="int8") as client:
        assert client.get("/model").json()["made"] == "static; near"


def test_int8_that_is_slower_or_was_not_measured_is_not_served(tmp_path: Path) -> None:
    slower = write(tmp_path / "slower", {FP32: variant(50), INT8: variant(50)}, light=FP32)
    assert opened(slower) == (FP32, "fp32: int8 is not faster here")
    unknown = write(tmp_path / "unknown", {FP32: Variant(), INT8: Variant()})
    reason = "fp32: int8 was not measured against it on held-out photos"
    assert opened(unknown) == (FP32, reason)


def test_a_variant_that_computes_otherwise_here_leaves_fp32_to_serve(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", {FP32: variant(50), INT8: variant(50)}, int8=9.0)
    precision, reason = opened(bundle)
    assert precision is FP32
    assert reason.startswith("fp32: int8 does not work here (")
    assert "gives other logits here" in reason
    with pytest.raises(UserError, match="gives other logits here"):
        opened(bundle, precision="int8")


def test_another_processors_arithmetic_is_not_an_error_in_int8(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", {FP32: variant(50), INT8: variant(50)}, int8=0.2)
    assert opened(bundle, precision="int8") == (INT8, "int8: it was asked for")


def test_a_precision_that_is_asked_for_is_served_whatever_it_costs(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", {FP32: variant(50), INT8: variant(10)})
    assert opened(bundle, precision="int8") == (INT8, "int8: it was asked for")
    assert opened(bundle, precision="fp32") == (FP32, "fp32: it was asked for")


def test_tensorrts_own_fp16_is_said_to_have_the_fp32_graphs_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU here, the graph is opened on the CPU instead."""
    bundle = write(tmp_path / "bundle", {FP32: variant(50)})
    on_cpu = Classifier.open
    monkeypatch.setattr(
        Classifier, "open", lambda path, _, precision, **_more: on_cpu(path, precision=precision)
    )
    assert opened(bundle, provider="tensorrt", precision="fp16") == (
        FP32,
        "fp16: it was asked for; TensorRT makes it of the fp32 graph, whose accuracy and "
        "calibration these are",
    )


@pytest.mark.parametrize(
    ("precision", "line"),
    [
        ("int8", "has no int8 variant (it has fp32): choose one of them, or export it with"),
        ("fp16", "provider cpu does not run fp16: set the precision to auto"),
    ],
)
def test_a_precision_that_is_not_available_is_refused_in_one_line(
    bundle: Path, precision: str, line: str
) -> None:
    with pytest.raises(UserError) as raised:
        opened(bundle, precision=precision)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_bundle_of_fp32_alone_says_that_there_is_no_choice(bundle: Path) -> None:
    assert opened(bundle) == (FP32, "fp32: there is nothing else to run on cpu")
