"""Tests of each provider's options, and of what is refused before a session exists."""

import json
from pathlib import Path

import pytest

from taillift.models.bundle.device import (
    EXECUTION_PROVIDERS,
    Device,
    Provider,
    execution_providers,
    misplaced,
)
from taillift.models.bundle.schema import Precision
from taillift.models.errors import UserError

CPU, CUDA = EXECUTION_PROVIDERS[Provider.CPU], EXECUTION_PROVIDERS[Provider.CUDA]
TENSORRT = EXECUTION_PROVIDERS[Provider.TENSORRT]


@pytest.mark.parametrize("provider", Provider)
def test_the_wanted_provider_is_the_first_and_the_cpu_never_the_second(provider: Provider) -> None:
    names = [name for name, _ in execution_providers(Device(provider), 224, None)]
    assert names[0] == EXECUTION_PROVIDERS[provider]
    assert CPU not in names[1:]


def test_cuda_takes_memory_as_needed_up_to_its_limit() -> None:
    [(_, free)] = execution_providers(Device(Provider.CUDA), None, None)
    assert free == {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
    [(_, capped)] = execution_providers(Device(Provider.CUDA, memory_bytes=2**30), None, None)
    assert capped == free | {"gpu_mem_limit": "1073741824"}


def test_tensorrt_builds_one_engine_for_every_batch_size(tmp_path: Path) -> None:
    device = Device(Provider.TENSORRT, precision=Precision.FP16, batch_views=20)
    (_, options), (second, _) = execution_providers(device, 224, tmp_path)
    assert second == CUDA
    assert options["trt_fp16_enable"] == "1"
    assert options["trt_profile_min_shapes"] == "pixels:1x224x224x3"
    assert options["trt_profile_opt_shapes"] == "pixels:20x224x224x3"
    assert options["trt_profile_max_shapes"] == "pixels:20x224x224x3"
    assert options["trt_engine_cache_enable"] == "1"
    assert options["trt_engine_cache_path"] == str(tmp_path)


def test_tensorrt_keeps_no_engine_without_a_folder_for_it() -> None:
    (_, options), _ = execution_providers(Device(Provider.TENSORRT), None, None)
    assert options == {"trt_fp16_enable": "0"}


def test_openvino_computes_in_the_precision_of_the_bundle() -> None:
    [(_, options)] = execution_providers(Device(Provider.OPENVINO, threads=2), 224, None)
    assert json.loads(options["load_config"]) == {"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}
    assert (options["device_type"], options["num_of_threads"]) == ("CPU", "2")


@pytest.mark.parametrize("provider", [Provider.CPU, Provider.CUDA, Provider.OPENVINO])
def test_fp16_needs_tensorrt(provider: Provider) -> None:
    with pytest.raises(UserError, match=f"provider {provider} computes a bundle in fp32 only"):
        Device(provider, precision=Precision.FP16)


@pytest.mark.parametrize("provider", [Provider.CPU, Provider.OPENVINO])
def test_a_memory_limit_needs_a_gpu(provider: Provider) -> None:
    with pytest.raises(UserError, match="has no memory limit"):
        Device(provider, memory_bytes=1)


def test_only_a_gpu_has_fixed_batch_sizes() -> None:
    assert Device(Provider.CPU).batches is None
    assert Device(Provider.OPENVINO).batches is None
    for provider in (Provider.CUDA, Provider.TENSORRT):
        batches = Device(provider, batch_views=10).batches
        assert batches is not None
        assert batches.sizes == (1, 5, 10)


def test_fp16_and_int8_may_differ_more_from_the_golden_logits() -> None:
    exact, half = Device(Provider.TENSORRT), Device(Provider.TENSORRT, precision=Precision.FP16)
    assert exact.golden_tolerance(Precision.FP32) == 0.01
    for coarse in (
        half.golden_tolerance(Precision.FP32),
        exact.golden_tolerance(Precision.FP16),
        exact.golden_tolerance(Precision.INT8),
    ):
        assert coarse == 0.25


def test_attention_on_the_cpu_is_misplaced_and_a_shape_is_not() -> None:
    nodes = [(CUDA, "MatMul"), (CPU, "Shape"), (CPU, "Gather"), *[(CPU, "Attention")] * 12]
    assert misplaced(nodes, CUDA) == {"Attention": 12}


def test_what_tensorrt_does_not_take_may_be_on_cuda() -> None:
    assert not misplaced([(TENSORRT, "MatMul"), (CUDA, "Attention")], TENSORRT)


def test_a_provider_that_takes_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="TensorrtExecutionProvider takes no part of the graph"):
        misplaced([(CUDA, "MatMul"), (CPU, "Shape")], TENSORRT)
