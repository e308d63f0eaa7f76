"""A converted tower has its source's features, and can be trained, merged and exported."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.timm_model import TimmModel
from timm import create_model
from timm.layers import AttentionPoolLatent
from timm.models.fastvit import FastVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone
from taillift.models.lift.convert import convert, projection
from taillift.models.lift.head import CosineHead
from taillift.models.lift.model import Model, Normalise, merge
from taillift.models.lift.onnx_export import write_graph
from taillift.models.lift.tuners import AdaptFormer, Bias, Full, LayerNorms, LoRA, Tuner, VPTDeep
from tests.support.sources import (
    KINDS,
    MINIATURES,
    NATIVE,
    SHAPE,
    SIZE,
    TEXTLESS,
    make,
    randomised,
    register,
)


@pytest.fixture(autouse=True, scope="module")
def _registered(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("configs"))


def native(quick_gelu: bool = False, **changes: Any) -> nn.Module:
    config = CLIPVisionCfg(**{**NATIVE, **changes})
    return randomised(_build_vision_tower(24, config, quick_gelu=quick_gelu))


def timm(**changes: Any) -> nn.Module:
    return randomised(VisionTransformer(**{**SHAPE, "num_classes": 0, **changes}))


def visual_of(kind: str) -> nn.Module:
    model = make(kind)
    return model if kind.startswith("timm:") else model.get_submodule("visual")


def features(visual: Any, pixels: Tensor) -> Tensor:
    """Return the source's features before its projection."""
    if isinstance(visual, TimmModel):
        visual = visual.trunk
    if isinstance(visual, VisionTransformer):
        pooled: Tensor = visual.forward_head(visual.forward_features(pixels), pre_logits=True)
        return pooled
    visual.proj = None
    unprojected: Tensor = visual(pixels)
    return unprojected


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"quick_gelu": True}, id="quickgelu"),
        pytest.param({"ls_init_value": 0.1}, id="layer-scale"),
        pytest.param({"no_ln_pre": True, "pos_embed_type": "sin_cos_2d"}, id="clipa"),
        pytest.param({"pool_type": "avg"}, id="mean"),
        pytest.param({"pool_type": "avg", "final_ln_after_pool": True}, id="mean-then-norm"),
        pytest.param({"act_kwargs": {"approximate": "tanh"}}, id="gelu-tanh"),
        pytest.param({"norm_kwargs": {"eps": 1e-3}}, id="eps"),
    ],
)
def test_a_native_tower_keeps_its_features(changes: dict[str, Any]) -> None:
    check_features(native(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"init_values": 0.1}, id="layer-scale"),
        pytest.param({"qkv_bias": False, "proj_bias": False}, id="no-biases"),
        pytest.param({"pre_norm": True, "no_embed_class": True}, id="clip"),
        pytest.param({"fc_norm": True}, id="norm-of-the-class-token"),
        pytest.param({"global_pool": "avg"}, id="mean-then-norm"),
        pytest.param({"global_pool": "avg", "fc_norm": False}, id="mean"),
        pytest.param({"global_pool": "avg", "pool_include_prefix": True}, id="mean-of-all"),
        pytest.param({"global_pool": "avg", "class_token": False}, id="mean-without-class"),
        pytest.param({"global_pool": "map", "class_token": False}, id="map"),
        pytest.param({"act_layer": "gelu_tanh"}, id="gelu-tanh"),
        pytest.param({"reg_tokens": 4}, id="registers"),
        pytest.param({"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1}, id="dinov2"),
        pytest.param({"reg_tokens": 1, "global_pool": "avg"}, id="mean-next-to-registers"),
        pytest.param(
            {"reg_tokens": 3, "global_pool": "avg", "class_token": False, "no_embed_class": True},
            id="registers-without-class",
        ),
        pytest.param({"reg_tokens": 2, "global_pool": "map"}, id="map-next-to-registers"),
        pytest.param({"global_pool": "map"}, id="map-next-to-class"),
    ],
)
def test_a_timm_tower_keeps_its_features(changes: dict[str, Any]) -> None:
    check_features(timm(**changes))


@pytest.mark.parametrize("name", [f"timm:{name}" for name in MINIATURES])
@pytest.mark.parametrize("changes", [{}, {"depth": 3}, {"img_size": 48}, {"num_heads": 8}])
def test_deit_flexivit_and_towers_with_registers_keep_their_features(
    name: str, changes: dict[str, Any]
) -> None:
    visual = randomised(create_model(name.removeprefix("timm:"), num_classes=0, **changes))
    check_features(visual, changes.get("img_size", SIZE))


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "flexivit_small",
        "vit_small_patch14_reg4_dinov2",
        "vit_little_patch16_reg1_gap_256",
        "vit_so150m_patch16_reg4_map_256",
    ],
)
def test_timms_own_deit_flexivit_and_towers_with_registers_keep_their_features(name: str) -> None:
    shape = {"depth": 2, "img_size": 56 if "patch14" in name else 64}
    visual = randomised(create_model(name, num_classes=0, **shape))
    check_features(visual, shape["img_size"])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "Tiny-ResNet"])
def test_towers_of_every_kind_keep_their_features(kind: str) -> None:
    check_features(visual_of(kind))


def check_features(visual: nn.Module, size: int = SIZE) -> None:
    tower = convert(visual)
    pixels = torch.randn(3, 3, size, size)
    with torch.no_grad():
        assert relative_error(tower(pixels), features(visual, pixels)) < 1e-5
    assert not any(parameter.requires_grad for parameter in tower.parameters())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != TEXTLESS])
def test_the_projection_leads_from_features_to_the_sources_embedding(kind: str) -> None:
    visual = visual_of(kind)
    matrix, bias = projection(visual)
    size = 64 if kind == "Tiny-ResNet" else SIZE
    pixels = torch.randn(2, 3, size, size)
    tower = convert(visual)
    with torch.no_grad():
        embedded = tower(pixels)
        assert embedded.shape == (2, tower.width)
        if matrix is not None:
            embedded = embedded @ matrix
        if bias is not None:
            embedded = embedded + bias
        assert relative_error(embedded, visual(pixels)) < 1e-5
    parts = (matrix is not None, bias is not None)
    expected = {
        "Tiny-Hybrid": (True, True),
        "Tiny-Map": (False, False),
        "Tiny-ResNet": (False,) * 2,
    }
    assert parts == expected.get(kind, (True, False))


def test_a_timm_tower_behind_a_linear_projection_gives_its_matrix() -> None:
    config = CLIPVisionCfg(
        image_size=SIZE, timm_model_name="vit_plain_test", timm_pool="avg", timm_proj="linear"
    )
    visual = randomised(_build_vision_tower(24, config))
    matrix, bias = projection(visual)
    assert matrix is not None
    assert bias is None
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert relative_error(convert(visual)(pixels) @ matrix, visual(pixels)) < 1e-5


def test_the_default_backbones_hybrid_tower_has_its_sources_features(backbone: Backbone) -> None:
    pixels = torch.randn(2, 3, 224, 224)
    visual = backbone._clip.visual
    assert backbone.projection is not None
    with torch.no_grad():
        assert relative_error(backbone.tower(pixels), features(visual, pixels)) < 1e-5
        projected = backbone.tower(pixels) @ backbone.projection
        assert relative_error(projected, visual(pixels)) < 1e-5


TRAINED: list[tuple[str, Tuner]] = [
    ("Tiny-Mean", AdaptFormer(rank=4)),
    ("Tiny-Hybrid", AdaptFormer(rank=4)),
    ("Tiny-Map", AdaptFormer(rank=4)),
    (TEXTLESS, AdaptFormer(rank=4)),
    *((f"timm:{name}", AdaptFormer(rank=4)) for name in MINIATURES),
    ("timm:vit_reg4_dinov2_test", VPTDeep(prompts=3)),
    ("timm:deit_distilled_test", LoRA(rank=2)),
    ("Tiny-ResNet", LayerNorms()),
]


@pytest.mark.parametrize(
    ("kind", "tuner"), TRAINED, ids=[f"{kind}-{tuner.name}" for kind, tuner in TRAINED]
)
def test_a_trained_tower_of_every_kind_merges_and_exports(
    kind: str, tuner: Tuner, tmp_path: Path
) -> None:
    model, size = tuned(kind, tuner)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = train_two_steps(model, size)
    after = model.state_dict()
    changed = {name for name, tensor in after.items() if not tensor.equal(before[name])}
    assert changed == trained
    pixels = noise(8, size)
    merged = merge(model)
    path = tmp_path / "model.onnx"
    write_graph(merged, pixels[:2], path, ["pixels"], ["logits", "features"])
    session = onnxruntime.InferenceSession(path)
    served = torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])
    with torch.no_grad():
        expected = model.eval()(pixels)[0]
        assert torch.allclose(merged(pixels)[0], expected, atol=1e-4)
    assert torch.allclose(served, expected, atol=1e-4)
    assert served.argmax(1).equal(expected.argmax(1))


@pytest.mark.parametrize("tuner", [Bias(), Full()], ids=["bias", "full"])
def test_a_resnet_trains_its_biases_or_everything_but_its_stem(tuner: Tuner) -> None:
    model, size = tuned("Tiny-ResNet", tuner)
    trained = train_two_steps(model, size)
    stages = {name.split(".")[1] for name in trained if name.startswith("tower.")}
    assert stages == {"layer1", "layer2", "layer3", "layer4", "pool"}
    assert not any("running" in name for name in trained)


def test_what_needs_transformer_blocks_does_not_go_into_a_resnet() -> None:
    with pytest.raises(UserError, match="ResNet"):
        tuned("Tiny-ResNet", AdaptFormer())


def tuned(kind: str, tuner: Tuner) -> tuple[Model, int]:
    torch.manual_seed(0)
    tower = convert(visual_of(kind))
    tuner.resolved(5, len(tower.tunable), 32).attach(tower.tunable)
    size = 64 if kind == "Tiny-ResNet" else SIZE
    head = CosineHead(torch.randn(5, tower(torch.zeros(1, 3, size, size)).shape[1]), 25.0)
    return Model(Normalise((0.5,) * 3, (0.25,) * 3), tower, head), size


def train_two_steps(model: Model, size: int) -> set[str]:
    """Train the model for two steps, and return the names of what is trained.

    The first step of AdaptFormer moves only half of its tensors.
    """
    optimiser = torch.optim.SGD(model.trained().values(), lr=0.05)
    model.train()
    for _ in range(2):
        optimiser.zero_grad()
        logits, _ = model(noise(4, size))
        F.cross_entropy(logits, torch.arange(4)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return set(model.trained())


def noise(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"pool_type": "none"}, "none pooling"),
        ({"attentional_pool": True}, "attention pooling"),
        ({"scale_fc": True}, "CustomResidualAttentionBlock"),
    ],
)
def test_a_native_tower_that_cannot_be_converted_is_refused_by_part(
    changes: dict[str, Any], part: str
) -> None:
    with pytest.raises(UserError, match=part):
        convert(native(**changes))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"scale_mlp_norm": True}, "mlp.norm"),
        ({"scale_attn_norm": True}, "attn.norm"),
        ({"qk_norm": True}, "attn.q_norm"),
        ({"pos_embed": "none"}, "no positional embedding"),
        ({"dynamic_img_size": True}, "dynamic image size"),
        ({"global_pool": "avgmax"}, "avgmax pooling"),
        ({"global_pool": ""}, "no pooling"),
        ({"act_layer": "silu"}, "SiLU"),
    ],
)
def test_a_timm_tower_that_cannot_be_converted_is_refused_by_part(
    changes: dict[str, Any], part: str
) -> None:
    with pytest.raises(UserError, match=part) as raised:
        convert(timm(**changes))
    assert "\n" not in str(raised.value)


def test_attention_pooling_with_several_queries_is_refused() -> None:
    visual: Any = timm(global_pool="map", class_token=False)
    visual.attn_pool = AttentionPoolLatent(32, num_heads=4, latent_len=2)
    with pytest.raises(UserError, match="several queries"):
        convert(visual)


def test_a_convolutional_tower_is_refused_with_those_that_work() -> None:
    visual = FastVit(layers=(1, 1, 1, 1), embed_dims=(8, 8, 8, 8), num_classes=0)
    with pytest.raises(UserError, match=r"is a FastVit: taillift works with ViT-\*.*RN\*"):
        convert(visual)


def test_a_projection_of_several_layers_is_refused() -> None:
    config = CLIPVisionCfg(
        image_size=SIZE, timm_model_name="vit_plain_test", timm_pool="token", timm_proj="mlp"
    )
    with pytest.raises(UserError, match="more than one matrix"):
        projection(_build_vision_tower(24, config))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
