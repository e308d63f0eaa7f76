"""Each converter gives the features of its source; a tower can be cut at any stage."""

from collections.abc import Callable

import pytest
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from torch import Tensor, nn

from models import UserError
from models.lift.backbone import Backbone
from models.lift.convert import convert, projection
from models.lift.tower import Tower

SIZE = 32
TINY = {"image_size": SIZE, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16}


def native(quick_gelu: bool = False, **changes: object) -> nn.Module:
    config = CLIPVisionCfg(**{**TINY, **changes})  # type: ignore[arg-type]
    visual = _build_vision_tower(24, config, quick_gelu=quick_gelu)
    return randomised(visual)


def timm() -> nn.Module:
    name = "vit_tiny_patch16_224"
    config = CLIPVisionCfg(
        image_size=224, timm_model_name=name, timm_pool="token", timm_proj="linear"
    )
    visual = _build_vision_tower(24, config)
    return randomised(visual)


def randomised(module: nn.Module) -> nn.Module:
    """Random affine norms, biases and layer scales: fresh ones hide what a converter forgets."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def timm_features(visual: nn.Module, pixels: Tensor) -> Tensor:
    trunk = visual.get_submodule("trunk")
    return trunk.forward_head(trunk.forward_features(pixels), pre_logits=True)  # type: ignore[operator]


def native_features(visual: nn.Module, pixels: Tensor) -> Tensor:
    visual.proj = None  # type: ignore[assignment]
    return visual(pixels)


@pytest.mark.parametrize(
    ("make", "features", "size"),
    [
        pytest.param(native, native_features, SIZE, id="open_clip"),
        pytest.param(lambda: native(True), native_features, SIZE, id="open_clip-quickgelu"),
        pytest.param(
            lambda: native(ls_init_value=0.1), native_features, SIZE, id="open_clip-scaled"
        ),
        pytest.param(timm, timm_features, 224, id="timm-plain"),
    ],
)
def test_a_converted_tower_has_its_sources_features(
    make: Callable[[], nn.Module], features: Callable[[nn.Module, Tensor], Tensor], size: int
) -> None:
    visual = make()
    tower = convert(visual)
    pixels = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected = features(visual, pixels)
        assert relative(tower(pixels), expected) < 1e-5


def test_the_default_backbones_hybrid_tower_has_its_sources_features(backbone: Backbone) -> None:
    pixels = torch.randn(2, 3, 224, 224)
    visual = backbone._clip.visual
    with torch.no_grad():
        assert relative(backbone.tower(pixels), timm_features(visual, pixels)) < 1e-5
        projected = backbone.tower(pixels) @ backbone.projection
        assert relative(projected, visual(pixels)) < 1e-5


@pytest.mark.parametrize("stage", range(6))
def test_a_tower_cut_anywhere_gives_the_same_features(stage: int) -> None:
    tower = convert(native())
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(tower[stage:](tower[:stage](pixels)), tower(pixels))
    assert isinstance(tower[stage:], Tower)


def test_frozen_stages_end_at_the_first_trained_tensor() -> None:
    tower = convert(native())
    assert tower.frozen_stages == len(tower) == 5
    tower.blocks[1].norm2.weight.requires_grad_(True)
    assert tower.frozen_stages == 2


def test_the_projection_leads_from_features_to_the_sources_embedding() -> None:
    visual = native()
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert relative(convert(visual)(pixels) @ projection(visual), visual(pixels)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"pool_type": "avg"}, "avg pooling"),
        ({"attentional_pool": True}, "attention pooling"),
        ({"block_type": "custom"}, "CustomResidualAttentionBlock"),
    ],
)
def test_a_tower_that_cannot_be_converted_is_refused_by_part(
    changes: dict[str, object], part: str
) -> None:
    with pytest.raises(UserError, match=part):
        convert(native(**changes))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
