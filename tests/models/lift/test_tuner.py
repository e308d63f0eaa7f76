import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.lift.block import Block, LayerScale, QuickGELU
from models.lift.convert import PatchConv
from models.lift.ends import Embed, Pool
from models.lift.head import CosineHead, text_weight
from models.lift.model import Model, Normalise, merge
from models.lift.tower import Tower
from models.lift.tuners import AdaptFormer, adaptive_rank
from models.lift.tuners.adaptformer import AdaptFormerBranch, SplitActivation

PIXELS = torch.randint(
    0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def tiny(
    act: nn.Module | None = None, eps: float = 1e-5, scaled: bool = False, width: int = 32
) -> Model:
    """A small tower with random weights everywhere, affine norms and layer scales among them."""
    torch.manual_seed(0)
    blocks = [Block(width, 4, 4 * width, act or nn.GELU(), eps, scaled) for _ in range(3)]
    embed = Embed(
        PatchConv(nn.Conv2d(3, width, 8, 8)),
        torch.randn(width),
        torch.randn(5, width),
        nn.Identity(),
    )
    tower = Tower.assemble(embed, blocks, Pool(nn.LayerNorm(width, eps=eps)))
    randomise(tower)
    tower.requires_grad_(False)
    head = CosineHead(torch.randn(7, width), scale=25.0)
    return Model(Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), tower, head).eval()


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn_like(parameter))


@torch.no_grad()
def features(model: Model) -> torch.Tensor:
    found: torch.Tensor = model.tower(model.normalise(PIXELS))
    return found


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
    tuner = AdaptFormerBranch(width, rank, 1e-5)
    assert blocks * sum(one.numel() for one in tuner.parameters()) == parameters
    assert CosineHead(torch.zeros(classes, width), 25.0).weight.numel() == head


def test_before_the_first_step_a_tuned_tower_is_the_frozen_one_to_the_bit() -> None:
    model = tiny()
    before = features(model)
    AdaptFormer(rank=4).attach(model.tower.blocks)
    assert torch.equal(features(model), before)


@pytest.mark.parametrize("act", [nn.GELU(), QuickGELU()], ids=["gelu", "quickgelu"])
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "layer-scale"])
@pytest.mark.parametrize("rank", [1, 8])
def test_merging_changes_nothing_but_round_off(
    act: nn.Module, eps: float, scaled: bool, rank: int
) -> None:
    torch.manual_seed(rank)
    model = tiny(act, eps, scaled)
    AdaptFormer(rank=rank).attach(model.tower.blocks)
    for block in model.tower.blocks:
        randomise(block.beside_mlp)
        nn.init.normal_(block.beside_mlp[0].up.weight, std=0.2)
    merged = merge(model)
    error = (features(merged) - features(model)).norm() / features(model).norm()
    assert error < 1e-5
    with torch.no_grad():
        assert torch.allclose(model(PIXELS)[0], merged(PIXELS)[0], atol=1e-4)
    assert not any(isinstance(one, AdaptFormerBranch | CosineHead) for one in merged.modules())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), rank=st.integers(1, 16), scale=st.floats(-3, 3))
def test_merging_one_block_is_exact_for_any_tuner(seed: int, rank: int, scale: float) -> None:
    torch.manual_seed(seed)
    block = Block(16, 2, 64, nn.GELU(), 1e-6, scaled=True)
    AdaptFormer(rank=rank).attach([block])
    tuner = block.beside_mlp[0]
    randomise(block)
    nn.init.normal_(tuner.up.weight)
    nn.init.constant_(tuner.scale, scale)
    tokens = torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = block(tokens)
        tuner.merge(block)
        block.beside_mlp = nn.ModuleList()
        error = (block(tokens) - expected).norm() / expected.norm()
    assert error < 1e-5


def test_another_eps_than_the_hosts_could_not_be_merged() -> None:
    """The reason why a tuner takes its host's eps (LIFT's own is always 1e-5)."""
    torch.manual_seed(0)
    block = Block(16, 2, 64, nn.GELU(), 1e-6, scaled=False)
    AdaptFormer(rank=4).attach([block])
    tuner = block.beside_mlp[0]
    assert tuner.norm.eps == block.norm2.eps
    tuner.norm.eps = 1e-5
    nn.init.normal_(tuner.up.weight)
    nn.init.zeros_(block.attention.proj.weight)
    nn.init.zeros_(block.attention.proj.bias)
    tokens = 0.01 * torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = block(tokens)
        tuner.merge(block)
        block.beside_mlp = nn.ModuleList()
        assert (block(tokens) - expected).norm() / expected.norm() > 1e-4


def test_a_merged_mlp_is_wider_by_the_rank_and_keeps_the_hosts_activation() -> None:
    model = tiny(QuickGELU())
    AdaptFormer(rank=3).attach(model.tower.blocks)
    merged = merge(model)
    for block in merged.tower.blocks:
        assert block.mlp.fc1.weight.shape == (4 * 32 + 3, 32)
        assert isinstance(block.mlp.act, SplitActivation)
        assert isinstance(block.mlp.act.host, QuickGELU)
    assert isinstance(model.tower.blocks[0].beside_mlp[0], AdaptFormerBranch), "merging copies"


def test_merging_a_layer_scale_takes_it_away() -> None:
    model = tiny(scaled=True)
    AdaptFormer(rank=2).attach(model.tower.blocks)
    merged = merge(model)
    assert not any(isinstance(block.scale2, LayerScale) for block in merged.tower.blocks)


def test_only_the_tuner_and_the_head_are_trained() -> None:
    model = tiny()
    AdaptFormer(rank=4).attach(model.tower.blocks)
    inside = {name.split(".")[2] for name in model.trained() if name.startswith("tower")}
    assert inside == {"beside_mlp"}
    assert model.trainable_parameters == 3 * (2 * 32 * 4 + 4 + 3 * 32 + 1) + 7 * 32


class TestHead:
    def test_logits_are_scaled_cosines(self) -> None:
        head = CosineHead(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), scale=25.0)
        logits, unit = head(torch.tensor([[3.0, 4.0]]))
        assert torch.allclose(logits, torch.tensor([[15.0, 20.0]]))
        assert torch.allclose(unit, torch.tensor([[0.6, 0.8]]))

    def test_mean_logits_are_the_logits_of_the_mean_unit_feature(self) -> None:
        """LIFT's ensembling, from the other side (arithmetic of a head without bias)."""
        head = CosineHead(torch.randn(5, 8), scale=25.0).merged()
        logits, unit = head(torch.randn(5, 8))
        assert torch.allclose(logits.mean(0), head.weight @ unit.mean(0), atol=1e-5)

    def test_a_projected_head_on_text_weights_is_zero_shot_clip(self) -> None:
        text, projection = nn.functional.normalize(torch.randn(5, 6), dim=-1), torch.randn(8, 6)
        features = torch.randn(3, 8)
        logits, _ = CosineHead(text, 100.0, projection)(features)
        embedded = nn.functional.normalize(features @ projection, dim=-1)
        assert torch.allclose(logits, 100 * embedded @ text.t(), atol=1e-4)

    def test_text_weights_are_pulled_back_through_the_projection(self) -> None:
        text, projection = torch.randn(5, 6), torch.randn(8, 6)
        weight = text_weight(text, projection)
        assert weight.shape == (5, 8)
        assert torch.allclose(weight.norm(dim=-1), torch.ones(5))
        cosine = nn.functional.cosine_similarity(weight, text @ projection.t())
        assert torch.allclose(cosine, torch.ones(5))


def test_pixels_are_normalised_channel_by_channel() -> None:
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    found = Normalise(mean, std)(PIXELS)
    expected = (PIXELS.double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    assert torch.allclose(found.double(), expected.permute(0, 3, 1, 2), atol=1e-5)


def test_down_projections_start_as_lifts_do() -> None:
    """Kaiming-normal with a = sqrt(5): standard deviation sqrt(2 / 6 / D)."""
    tuner = AdaptFormerBranch(4096, 16, 1e-5)
    assert tuner.down.weight.std().item() == pytest.approx(math.sqrt(1 / 3 / 4096), rel=0.02)
    assert not tuner.up.weight.any()
