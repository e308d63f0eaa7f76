from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from taillift.models.bundle.session import load_graph
from taillift.models.lift.model import Model, merge, merge_block, unmerged
from taillift.models.lift.onnx_export import write_graph
from taillift.models.lift.tuners import (
    SSF,
    Adapter,
    AdaptFormer,
    Bias,
    Full,
    LayerNorms,
    LoRA,
    Sparse,
    Tuner,
    VPTDeep,
    VPTShallow,
)
from taillift.models.lift.tuners.bottleneck import AdaptFormerBranch, Bottleneck, SplitActivation
from taillift.models.lift.vit import Block, LayerScale, QuickGELU
from tests.support.towers import BLOCKS, PIXELS, WIDTH, attach, error, features, shake, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

FOLDED_INTO_WEIGHTS = [
    LoRA(rank=3, where="both"),
    SSF(),
    Bias(),
    LayerNorms(),
    Sparse(ratio=0.1),
    Full(),
]
EVERY = [
    *FOLDED_INTO_WEIGHTS,
    AdaptFormer(rank=4),
    Adapter(rank=4),
    VPTShallow(prompts=2),
    VPTDeep(prompts=2),
]
HOSTS = st.fixed_dictionaries(
    {
        "act": st.sampled_from([nn.GELU(), QuickGELU()]),
        "eps": st.sampled_from([1e-5, 1e-6]),
        "scaled": st.booleans(),
        "mean": st.booleans(),
    }
)


def check(model: Model, merged: Model, most: float = 1e-5) -> None:
    assert error(features(merged), features(model)) <= most
    with torch.no_grad():
        (logits, unit), (expected, expected_unit) = merged(PIXELS), model(PIXELS)
    assert torch.allclose(logits, expected, atol=1e-4)
    assert torch.allclose(unit, expected_unit, atol=1e-5)


@pytest.mark.parametrize("tuner", EVERY, ids=lambda tuner: tuner.name)
@settings(max_examples=8, deadline=None)
@given(host=HOSTS)
def test_merging_a_method_changes_nothing_but_round_off(tuner: Tuner, host: dict[str, Any]) -> None:
    model = shake(attach(tiny(**host), [tuner]))
    start = features(tiny(**host))
    assert error(features(model), start) > 1e-3, "the method changes the features"
    check(model, merge(model))


@settings(max_examples=40, deadline=None)
@given(
    host=HOSTS,
    tuners=st.lists(st.sampled_from(EVERY), min_size=2, unique_by=lambda tuner: tuner.name),
    seed=st.integers(0, 1000),
)
def test_merging_any_combination_changes_nothing_but_round_off(
    host: dict[str, Any], tuners: list[Tuner], seed: int
) -> None:
    model = shake(attach(tiny(**host), tuners), seed)
    merged = merge(model)
    check(model, merged)
    assert set(unmerged(merged)) <= {"adapter", "adaptformer", "vpt-shallow"}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), rank=st.integers(1, 16), scale=st.floats(-3, 3))
def test_merging_one_block_is_exact_for_any_adaptformer(seed: int, rank: int, scale: float) -> None:
    torch.manual_seed(seed)
    block = Block(16, 2, 64, nn.GELU(), 1e-6, scaled=True)
    AdaptFormer(rank=rank).attach([block])
    branch = block.beside_mlp[0]
    assert isinstance(branch, AdaptFormerBranch)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        nn.init.constant_(branch.scale, scale)
        tokens = torch.randn(2, 5, 16)
        expected = block(tokens)
        merge_block(block)
        assert error(block(tokens), expected) < 1e-5


@pytest.mark.parametrize("act", [nn.GELU(), QuickGELU()], ids=["gelu", "quickgelu"])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "layer-scale"])
def test_adaptformer_merges_next_to_low_rank_updates_for_any_host(
    act: nn.Module, scaled: bool
) -> None:
    model = shake(attach(tiny(act, scaled=scaled), [AdaptFormer(rank=8), LoRA(rank=2)]))
    merged = merge(model)
    check(model, merged)
    for block in merged.tower.blocks:
        assert isinstance(block.mlp.act, SplitActivation)
        assert type(block.mlp.act.host) is type(act)
        assert block.mlp.fc1.weight.shape == (4 * WIDTH + 8, WIDTH)


def test_another_eps_than_the_hosts_could_not_be_merged() -> None:
    """This is why a branch takes its host's eps (LIFT's own is always 1e-5)."""
    torch.manual_seed(0)
    block = Block(16, 2, 64, nn.GELU(), 1e-6, scaled=False)
    AdaptFormer(rank=4).attach([block])
    branch = block.beside_mlp[0]
    assert isinstance(branch, AdaptFormerBranch)
    assert branch.norm.eps == block.norm2.eps
    branch.norm.eps = 1e-5
    nn.init.normal_(branch.up.weight)
    nn.init.zeros_(block.attention.proj.weight)
    nn.init.zeros_(block.attention.proj.bias)
    tokens = 0.01 * torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = block(tokens)
        merge_block(block)
        assert error(block(tokens), expected) > 1e-4


@pytest.mark.parametrize("tuner", FOLDED_INTO_WEIGHTS, ids=lambda tuner: tuner.name)
def test_a_tower_with_folded_tuners_is_the_plain_one_in_names_and_shapes(tuner: Tuner) -> None:
    model = shake(attach(tiny(scaled=True), [tuner]))
    merged = merge(model).tower.state_dict()
    plain = tiny(scaled=True).tower.state_dict()
    assert {name: tensor.shape for name, tensor in merged.items()} == {
        name: tensor.shape for name, tensor in plain.items()
    }
    assert unmerged(model) == ([tuner.name] if tuner.name in ("lora", "ssf", "sparse") else [])


def test_low_rank_updates_leave_the_keys_alone() -> None:
    qkv = [
        merge(model).tower.blocks[0].attention.qkv.weight.chunk(3)
        for model in (tiny(), shake(attach(tiny(), [LoRA(rank=2)])))
    ]
    same = [torch.equal(ours, theirs) for ours, theirs in zip(*qkv, strict=True)]
    assert same == [False, True, False]


def test_a_merged_mlp_is_wider_by_the_rank_and_keeps_the_hosts_activation() -> None:
    model = attach(tiny(QuickGELU()), [AdaptFormer(rank=3)])
    merged = merge(model)
    for block in merged.tower.blocks:
        assert block.mlp.fc1.weight.shape == (4 * WIDTH + 3, WIDTH)
        assert isinstance(block.mlp.act, SplitActivation)
        assert isinstance(block.mlp.act.host, QuickGELU)
    assert isinstance(model.tower.blocks[0].beside_mlp[0], AdaptFormerBranch), "merging copies"


def test_merging_adaptformer_takes_its_layer_scale_away() -> None:
    merged = merge(attach(tiny(scaled=True), [AdaptFormer(rank=2)]))
    assert not any(isinstance(block.scale2, LayerScale) for block in merged.tower.blocks)
    assert all(isinstance(block.scale1, LayerScale) for block in merged.tower.blocks)


def test_a_blocks_own_prompts_become_constants() -> None:
    merged = merge(shake(attach(tiny(), [VPTDeep(prompts=5), LoRA(rank=2)])))
    assert unmerged(merged) == []
    for block in merged.tower.blocks:
        assert block.attention.rows is not None
        assert block.attention.rows.shape == (5, 2 * WIDTH)


def test_what_cannot_be_merged_is_named() -> None:
    assert unmerged(merge(attach(tiny(), [VPTShallow(), LoRA(rank=1)]))) == ["vpt-shallow"]
    assert unmerged(merge(attach(tiny(), [Adapter(rank=1), SSF()]))) == ["adapter"]
    both = merge(shake(attach(tiny(), [AdaptFormer(rank=1), Adapter(rank=1)])))
    assert unmerged(both) == ["adapter", "adaptformer"]
    branches = [module for module in both.modules() if isinstance(module, Bottleneck)]
    assert len(branches) == 2 * BLOCKS
    assert not any(branch.norm.elementwise_affine for branch in branches)


@pytest.mark.parametrize(
    "tuners",
    [
        [VPTDeep(prompts=3), AdaptFormer(rank=2)],
        [SSF(), LoRA(rank=2, where="both"), Sparse(ratio=0.1), VPTShallow(prompts=2)],
    ],
    ids=lambda tuners: "+".join(tuner.name for tuner in tuners),
)
def test_an_exported_merged_model_gives_what_torch_gives(
    tuners: list[Tuner], tmp_path: Path
) -> None:
    merged = merge(shake(attach(tiny(), tuners)))
    path = tmp_path / "model.onnx"
    write_graph(merged, PIXELS[:2], path, ["pixels"], ["logits", "features"])
    outputs = load_graph(path).run(None, {"pixels": PIXELS.numpy()})
    for ours, theirs in zip(outputs, merged(PIXELS), strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-4
