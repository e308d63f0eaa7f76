import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.optim import SGD

from taillift.models.errors import UserError
from taillift.models.lift.head import CosineHead
from taillift.models.lift.model import merge_block
from taillift.models.lift.tuners import (
    SSF,
    Adapter,
    AdaptFormer,
    AnyTuner,
    Bias,
    Full,
    LayerNorms,
    LoRA,
    Sparse,
    Tuner,
    VPTDeep,
    VPTShallow,
    adaptive_rank,
    sparse,
)
from taillift.models.lift.tuners.bottleneck import AdaptFormerBranch
from taillift.models.lift.tuners.lora import LoRALinear
from taillift.models.lift.tuners.sparse import SparseLinear
from taillift.models.lift.tuners.vpt import Prompts
from taillift.models.lift.vit import Block
from tests.support.towers import BLOCKS, PIXELS, WIDTH, attach, error, features, shake, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY = [
    AdaptFormer(),
    Adapter(),
    LoRA(),
    VPTShallow(),
    VPTDeep(),
    SSF(),
    Bias(),
    LayerNorms(),
    Sparse(),
    Full(),
]
NEEDING_BLOCKS = [
    AdaptFormer(rank=1),
    Adapter(rank=1),
    LoRA(rank=1),
    VPTShallow(),
    VPTDeep(prompts=1),
    SSF(),
    Sparse(ratio=0.1),
]


def trained(tuner: Tuner, classes: int, blocks: int, width: int) -> int:
    """Return how many parameters a method trains in a tower, without allocating any."""
    with torch.device("meta"):
        tuned = [Block(width, 1, 4 * width, nn.GELU(), 1e-5, False) for _ in range(blocks)]
        for block in tuned:
            block.requires_grad_(False)
        tuner.resolved(classes, blocks, width).attach(tuned)
    parameters = (parameter for block in tuned for parameter in block.parameters())
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


def with_width(tuner: Tuner) -> Tuner:
    """Give a bottleneck several units: ReLU may set a single one to zero for every input."""
    if isinstance(tuner, AdaptFormer | Adapter):
        return tuner.model_copy(update={"rank": 8})
    return tuner


def tokens_of(prompts: nn.Module) -> nn.Parameter:
    assert isinstance(prompts, Prompts)
    return prompts.tokens


def named(tuner: Tuner) -> str:
    return tuner.name


@pytest.mark.parametrize(
    ("classes", "blocks", "width", "rank", "parameters", "head"),
    [
        (100, 12, 768, 4, 101_436, 76_800),
        (365, 12, 768, 8, 175_212, 280_320),
        (1000, 12, 768, 32, 617_868, 768_000),
        (8142, 12, 768, 256, 4_749_324, 6_253_056),
        (1000, 24, 1024, 16, 860_568, 1_024_000),
        (10, 12, 768, 1, 46_104, 7_680),
    ],
)
def test_ranks_and_parameters_are_those_of_lift(
    classes: int, blocks: int, width: int, rank: int, parameters: int, head: int
) -> None:
    assert adaptive_rank(classes, blocks) == rank
    assert trained(AdaptFormer(), classes, blocks, width) == parameters
    assert trained(Adapter(), classes, blocks, width) == parameters - blocks
    assert CosineHead(torch.zeros(classes, width), 25.0).weight.numel() == head


@pytest.mark.parametrize(
    ("tuner", "parameters"),
    [
        (Bias(), 11 * 64),
        (LayerNorms(), 4 * 64),
        (SSF(), 22 * 64),
        (SSF(where=("norm",)), 4 * 64),
        (SSF(where=("attention", "mlp")), 18 * 64),
        (Full(), 12 * 64**2 + 13 * 64),
        (VPTDeep(prompts=5), 5 * 64),
        (LoRA(rank=3), 4 * 3 * 64),
        (LoRA(rank=3, where="mlp"), 10 * 3 * 64),
    ],
    ids=str,
)
def test_a_method_trains_its_parameters_in_each_block(tuner: Tuner, parameters: int) -> None:
    assert trained(tuner, 100, 2, 64) == 2 * parameters


def test_shallow_prompts_are_those_of_one_block() -> None:
    assert trained(VPTShallow(), 100, 3, 64) == 10 * 64


@given(classes=st.integers(200, 10_000), blocks=st.integers(1, 12))
@pytest.mark.parametrize(
    "tuner", [LoRA(), LoRA(where="mlp"), LoRA(where="both"), VPTDeep()], ids=str
)
def test_an_adaptive_method_gets_at_most_the_heads_weights_and_more_than_half(
    tuner: Tuner, classes: int, blocks: int
) -> None:
    assert 0.5 < trained(tuner, classes, blocks, 16) / (classes * 16) <= 1


def test_an_adaptive_sparse_ratio_gives_as_many_entries_as_the_head_has_weights() -> None:
    model = attach(tiny(), [])
    Sparse().resolved(60, BLOCKS, WIDTH).attach(model.tower.blocks)
    layers = [module for module in model.modules() if isinstance(module, SparseLinear)]
    entries = sum(layer.values.numel() for layer in layers)
    assert 0.99 < entries / (60 * WIDTH) <= 1
    few = Sparse().resolved(10**6, 1, 16)
    assert few.ratio == 1, "at most all entries are trained"


def test_options_that_are_given_stay() -> None:
    assert AdaptFormer(rank=3).resolved(8142, 12, 768).rank == 3
    assert LoRA(rank=3).resolved(8142, 12, 768).rank == 3
    assert VPTDeep(prompts=3).resolved(8142, 12, 768).prompts == 3
    assert Sparse(ratio=0.5).resolved(8142, 12, 768).ratio == 0.5


def test_adaptive_options_have_to_be_settled_first() -> None:
    for tuner in (AdaptFormer(), Adapter(), LoRA(), VPTDeep(), Sparse()):
        with pytest.raises(ValueError, match="resolved"):
            tuner.attach(tiny().tower.blocks)


def test_a_recipe_names_a_method() -> None:
    adapter: TypeAdapter[Tuner] = TypeAdapter(AnyTuner)
    for tuner in EVERY:
        assert adapter.validate_json(adapter.dump_json(tuner)) == tuner
    assert adapter.validate_python({"name": "lora", "where": "both"}) == LoRA(where="both")
    for wrong in ({"name": "lora", "rank": 0}, {"name": "bias", "rank": 1}, {"name": "ssf2"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


@pytest.mark.parametrize("mean", [False, True], ids=["first-only", "all-tokens"])
@pytest.mark.parametrize("tuner", [AdaptFormer(), Adapter(), LoRA(where="both")], ids=named)
def test_before_the_first_step_a_tuned_tower_is_the_frozen_one_to_the_bit(
    tuner: Tuner, mean: bool
) -> None:
    model = tiny(mean=mean)
    before = features(model)
    assert torch.equal(features(attach(model, [tuner])), before)


@pytest.mark.parametrize("tuner", [SSF(), VPTShallow(), VPTDeep()], ids=named)
def test_scales_and_prompts_start_elsewhere(tuner: Tuner) -> None:
    model = tiny()
    before = features(model)
    assert 1e-3 < error(features(attach(model, [tuner])), before) < 0.5


@pytest.mark.parametrize(
    ("tuner", "places"),
    [
        (AdaptFormer(), {"beside_mlp"}),
        (Adapter(), {"after_mlp"}),
        (VPTShallow(), {"appended"}),
        (VPTDeep(), {"prompts"}),
        (LayerNorms(), {"norm1", "norm2"}),
        (Bias(), {"norm1", "norm2", "attention", "mlp"}),
        (LoRA(), {"attention"}),
    ],
    ids=lambda value: value.name if isinstance(value, Tuner) else "",
)
def test_only_the_tuner_and_the_head_are_trained(tuner: Tuner, places: set[str]) -> None:
    model = attach(tiny(), [tuner])
    names = set(model.trained())
    assert {name.split(".")[2] for name in names if name.startswith("tower")} == places
    assert "head.weight" in names


@pytest.mark.parametrize("tuner", EVERY, ids=named)
def test_what_is_trained_gets_a_gradient_and_nothing_else_does(tuner: Tuner) -> None:
    model = shake(attach(tiny(mean=True), [with_width(tuner)]))
    model(PIXELS)[0].square().mean().backward()
    for name, parameter in model.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.any())
        assert moved == parameter.requires_grad, name


def test_last_blocks_alone_leave_the_first_frozen() -> None:
    model = tiny()
    AdaptFormer(rank=2).attach(model.tower.blocks[-1:])
    assert model.tower.frozen_stages == BLOCKS
    assert all(name.startswith(("tower.block2.", "head.")) for name in model.trained())


@pytest.mark.parametrize("tuner", NEEDING_BLOCKS, ids=named)
def test_a_resnet_is_refused_by_name(tuner: Tuner) -> None:
    with pytest.raises(UserError, match=f"^{tuner.name} needs transformer blocks.*ResNet"):
        tuner.attach([nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))])


def test_a_resnets_norms_and_biases_can_be_tuned() -> None:
    for tuner, expected in ((LayerNorms(), {"1.weight", "1.bias"}), (Bias(), {"1.bias"})):
        stage = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
        tuner.attach([stage.requires_grad_(False)])
        parameters = stage.named_parameters()
        assert {name for name, parameter in parameters if parameter.requires_grad} == expected
    with pytest.raises(UserError, match="norm finds nothing"):
        LayerNorms().attach([nn.Sequential(nn.Conv2d(3, 3, 1))])


def test_the_order_of_attaching_does_not_matter() -> None:
    tuners = [Sparse(ratio=0.2), LoRA(rank=2, where="both"), SSF(), Bias()]
    first = shake(attach(tiny(), tuners))
    for order in permutations(tuners):
        other = attach(tiny(), order)
        other.load_state_dict(first.state_dict())
        assert torch.equal(features(other), features(first))


def test_every_part_reads_and_adds_where_lift_says() -> None:
    """Compare with the block's formula: LoRA inside SSF, adapters after and parallel to the MLP."""
    torch.manual_seed(0)
    model = attach(tiny(), [LoRA(rank=2), SSF(), AdaptFormer(rank=2), Adapter(rank=2)])
    block = shake(model).tower.blocks[0]
    plain = tiny().tower.blocks[0]
    x = torch.randn(2, 5, WIDTH)
    get = block.get_parameter

    def ssf(slot: str, outputs: torch.Tensor) -> torch.Tensor:
        return outputs * get(f"{slot}.scale") + get(f"{slot}.shift")

    with torch.no_grad():
        h = ssf("norm1", plain.norm1(x))
        q, k, v = plain.attention.qkv(h).chunk(3, -1)
        down = get("attention.qkv.host.down")
        up = get("attention.qkv.host.up")
        q = q + h @ down[:2].t() @ up[0].t() / 2
        v = v + h @ down[2:].t() @ up[1].t() / 2
        q, k, v = ssf("attention.qkv", torch.cat([q, k, v], -1)).chunk(3, -1)
        q, k, v = (rows.view(2, 5, 4, -1).transpose(1, 2) for rows in (q, k, v))
        a = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x1 = x + ssf("attention.proj", plain.attention.proj(a))
        u = plain.mlp.act(ssf("mlp.fc1", plain.mlp.fc1(ssf("norm2", plain.norm2(x1)))))
        m = ssf("mlp.fc2", plain.mlp.fc2(u))
        m = m + block.after_mlp[0](m)
        m = m + block.beside_mlp[0](x1)
        assert error(block(x), x1 + m) < 1e-6


@pytest.mark.parametrize("first_only", [False, True])
def test_a_blocks_own_prompts_are_tokens_that_leave_behind_it(first_only: bool) -> None:
    torch.manual_seed(0)
    block = tiny().tower.blocks[0]
    tokens, rows = torch.randn(2, 5, WIDTH), torch.randn(3, WIDTH)
    with torch.no_grad():
        longer = block(torch.cat([tokens, rows.expand(2, -1, -1)], dim=1))
        VPTDeep(prompts=3).attach([block])
        tokens_of(block.prompts[0]).copy_(rows)
        block.first_only = first_only
        outputs = block(tokens)
    assert outputs.shape[1] == (1 if first_only else 5)
    assert error(outputs, longer[:, : outputs.shape[1]]) < 1e-6


def test_shallow_prompts_pass_through_every_tuned_block_and_leave_behind_the_last() -> None:
    model = tiny(mean=True)
    first, second, third = model.tower.blocks
    tokens, rows = torch.randn(2, 5, WIDTH), torch.randn(3, WIDTH)
    with torch.no_grad():
        start = first(tokens)
        longer = third(second(torch.cat([start, rows.expand(2, -1, -1)], dim=1)))
        VPTShallow(prompts=3).attach([second, third])
        tokens_of(second.appended[0]).copy_(rows)
        assert second(start).shape == (2, 8, WIDTH)
        assert error(third(second(start)), longer[:, :5]) < 1e-6


def test_low_rank_updates_start_with_lifts_bound() -> None:
    """A uniform distribution within 1 / sqrt(r) has a standard deviation of 1 / sqrt(3 r)."""
    down = LoRALinear(nn.Linear(4096, 8), rank=16).down
    assert down.abs().max() <= 0.25
    assert down.std().item() == pytest.approx(math.sqrt(1 / 48), rel=0.02)


def test_down_projections_start_as_lifts_do() -> None:
    """Kaiming-normal with a = sqrt(5) has a standard deviation of sqrt(2 / 6 / D)."""
    branch = AdaptFormerBranch(4096, 16, 1e-5)
    assert branch.down.weight.std().item() == pytest.approx(math.sqrt(1 / 3 / 4096), rel=0.02)
    assert not branch.up.weight.any()


def test_kept_sparse_entries_go_where_they_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not go where another version would draw them."""
    model = shake(attach(tiny(), [Sparse(ratio=0.1)]))
    kept = {name: tensor.clone() for name, tensor in model.state().items()}
    monkeypatch.setattr(sparse, "SEED", 1)
    other = attach(tiny(), [Sparse(ratio=0.1)])
    name = "tower.block0.mlp.fc1.indices"
    assert not torch.equal(other.state()[name], kept[name])
    assert not other.load_state_dict(kept, strict=False).unexpected_keys
    assert torch.equal(features(other), features(model))


def test_only_drawn_entries_change_in_a_step_with_weight_decay() -> None:
    model = attach(tiny(), [Sparse(ratio=0.1)])
    before = tiny().tower.blocks[0].mlp.fc1
    optimiser = SGD(model.trained().values(), lr=0.1, weight_decay=0.5)
    model(PIXELS)[0].square().mean().backward()
    optimiser.step()
    block = model.tower.blocks[0]
    layer: nn.Module = block.mlp.fc1
    assert isinstance(layer, SparseLinear)
    merge_block(block)
    end, start = (
        torch.cat([linear.weight.flatten(), linear.bias]) for linear in (block.mlp.fc1, before)
    )
    changed = torch.nonzero(end != start).flatten()
    assert torch.equal(changed, layer.indices)
    assert len(changed) == int(0.1 * len(start))


@pytest.mark.parametrize("tuner", EVERY, ids=named)
def test_a_models_state_is_what_it_needs_besides_its_backbone(tuner: Tuner) -> None:
    model = shake(attach(tiny(), [tuner]))
    kept = {name: tensor.clone() for name, tensor in model.state().items()}
    other = attach(tiny(), [tuner])
    other.load_state_dict(kept, strict=False)
    assert torch.equal(features(other), features(model))
    drawn = {name for name in kept if name not in model.trained()}
    assert all(name.endswith(".indices") for name in drawn)
    assert bool(drawn) == (tuner.name == "sparse")


@pytest.mark.parametrize("tuner", EVERY, ids=named)
def test_a_tower_knows_its_width_whatever_is_attached(tuner: Tuner) -> None:
    tower = attach(tiny(), [tuner]).tower
    assert tower.width == WIDTH
