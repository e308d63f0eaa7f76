"""Tests of a session without a GPU: its memory, its padding and its errors."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.device import EXECUTION_PROVIDERS, PACKAGES, Device, Provider
from taillift.models.bundle.folder import MODEL
from taillift.models.bundle.session import (
    BoundGraph,
    Session,
    load_graph,
    padded,
    placement,
)
from taillift.models.errors import UserError
from tests.support.palette import CLASSES, SIZE, canvases, logits_of

COLOURS = [colour for colour, _ in CLASSES.values()]


def test_a_bound_graph_answers_each_batch_with_its_own_rows(bundle: Path) -> None:
    bound = BoundGraph(load_graph(bundle / MODEL), "cpu")
    for colours in (COLOURS[:2], COLOURS[2:4], COLOURS, COLOURS[4:6]):
        outputs = bound.run(canvases(colours))
        np.testing.assert_allclose(outputs.logits, logits_of(colours), atol=1e-4)
        assert outputs.features.shape == (len(colours), 3)


def test_outputs_of_a_bound_graph_outlive_the_next_batch(bundle: Path) -> None:
    bound = BoundGraph(load_graph(bundle / MODEL), "cpu")
    first = bound.run(canvases(COLOURS[:2])).logits
    bound.run(canvases(COLOURS[2:4]))
    np.testing.assert_allclose(first, logits_of(COLOURS[:2]), atol=1e-4)


@given(st.integers(1, 6), st.integers(0, 6))
def test_padding_adds_black_views_behind(count: int, more: int) -> None:
    pixels = np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    filled = padded(pixels, count + more)
    assert filled.dtype == np.uint8
    np.testing.assert_array_equal(filled[:count], pixels)
    np.testing.assert_array_equal(filled[count:], np.zeros((more, SIZE, SIZE, 3)))


def test_every_node_has_a_place(bundle: Path) -> None:
    nodes = placement(load_graph(bundle / MODEL))
    assert {provider for provider, _ in nodes} == {"CPUExecutionProvider"}
    assert Counter(operator for _, operator in nodes)["Gemm"] == 1


@pytest.mark.parametrize("provider", [Provider.CUDA, Provider.TENSORRT, Provider.OPENVINO])
def test_a_provider_that_is_not_installed_is_refused_with_what_to_install(
    bundle: Path, provider: Provider
) -> None:
    if EXECUTION_PROVIDERS[provider] in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has it")
    with pytest.raises(UserError) as caught:
        Session(bundle / MODEL, Device(provider), SIZE)
    assert f"has no {EXECUTION_PROVIDERS[provider]}" in str(caught.value)
    assert PACKAGES[provider] in str(caught.value)
    assert "\n" not in str(caught.value)
