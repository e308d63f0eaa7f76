"""A tower can be cut at any stage, and knows which stages are frozen and which may be trained."""

from typing import Any

import pytest
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from torch import nn

from taillift.models.lift.convert import convert
from taillift.models.lift.resnet import GridPool, Layer
from taillift.models.lift.tower import Tower
from taillift.models.lift.vit import attend
from tests.support.sources import NATIVE, SIZE, randomised

RESNET: dict[str, Any] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 4}


def tower_of(**changes: Any) -> Tower:
    config = CLIPVisionCfg(**{**NATIVE, **changes})
    return convert(randomised(_build_vision_tower(24, config)))


@pytest.mark.parametrize("pooling", ["tok", "avg"])
@pytest.mark.parametrize("stage", range(5))
def test_a_tower_cut_anywhere_gives_the_same_features(stage: int, pooling: str) -> None:
    tower = tower_of(pool_type=pooling)
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(tower[stage:](tower[:stage](pixels)), tower(pixels))
    assert isinstance(tower[stage:], Tower)


@pytest.mark.parametrize("stage", range(7))
def test_a_resnet_cut_anywhere_gives_the_same_features(stage: int) -> None:
    tower = tower_of(**RESNET)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(tower[stage:](tower[:stage](pixels)), tower(pixels))


def test_the_last_block_gives_all_tokens_if_pooling_reads_them() -> None:
    assert [block.first_only for block in tower_of().blocks] == [False, True]
    assert [block.first_only for block in tower_of(pool_type="avg").blocks] == [False, False]


def test_frozen_stages_end_at_the_first_trained_tensor() -> None:
    tower = tower_of()
    assert tower.frozen_stages == len(tower) == 4
    tower.blocks[1].norm2.weight.requires_grad_(True)
    assert tower.frozen_stages == 2


def test_the_stages_to_tune_are_the_blocks_or_a_resnets_layers_and_pooling() -> None:
    transformer, resnet = tower_of(), tower_of(**RESNET)
    assert transformer.tunable == transformer.blocks
    assert resnet.blocks == []
    assert [type(stage) for stage in resnet.tunable] == [Layer] * 4 + [GridPool]


def test_batch_norms_keep_their_statistics_in_training_mode() -> None:
    tower = tower_of(**RESNET).train()
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    tower(torch.randn(2, 3, 64, 64))
    assert tower.training
    assert all(buffer.equal(before[name]) for name, buffer in tower.named_buffers())
    assert any(isinstance(module, nn.BatchNorm2d) for module in tower.modules())


def test_attention_in_bfloat16_has_the_outputs_and_gradients_of_float32() -> None:
    exact = [torch.randn(2, 9, 24).requires_grad_() for _ in range(3)]
    rounded = [rows.detach().bfloat16().requires_grad_() for rows in exact]
    for rows in (exact, rounded):
        loss = attend(rows[0], rows[1], rows[2], heads=3).float().square().sum()
        torch.autograd.backward(loss)
    for expected, found in zip(exact, rounded, strict=True):
        assert expected.grad is not None
        assert found.grad is not None
        assert (found.grad.float() - expected.grad).norm() < 0.03 * expected.grad.norm()
