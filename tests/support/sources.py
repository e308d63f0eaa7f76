"""Small random models of every kind of backbone, registered with open_clip and timm by name.

`write` puts the weights of one into a file and returns the name that loads it. All parameters are
random, also those of norms and positions: with their usual start values of zero and one, a
converter that forgets them would pass its tests.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import open_clip
import timm
import torch
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from torch import nn

SIZE: Final = 32
SHAPE: Final = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
TEXT: Final = {"vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
NATIVE: Final = {"image_size": SIZE, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8}
TIMM: Final = {"image_size": SIZE, "timm_model_pretrained": False}
TEXTLESS: Final = "timm:vit_plain_test"

CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "Tiny-Native": {"vision_cfg": NATIVE, "quick_gelu": True},
    "Tiny-Mean": {"vision_cfg": {**NATIVE, "pool_type": "avg", "final_ln_after_pool": True}},
    "Tiny-Hybrid": {
        "vision_cfg": {
            **TIMM,
            "timm_model_name": "vit_hybrid_test",
            "timm_pool": "token",
            "timm_proj": None,
        },
        "custom_text": True,
    },
    "Tiny-Map": {
        "vision_cfg": {
            **TIMM,
            "timm_model_name": "vit_map_test",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "custom_text": True,
        "init_logit_bias": -10,
        "embed_dim": 32,
    },
    "Tiny-ResNet": {"vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 4}},
}
KINDS: Final = (*CONFIGS, TEXTLESS)
# Towers of timm in miniature: what tells each from a plain vision transformer.
MINIATURES: Final[dict[str, dict[str, Any]]] = {
    "deit_test": {},
    "deit_distilled_test": {},
    "deit3_test": {"no_embed_class": True, "init_values": 0.5},
    "flexivit_test": {"no_embed_class": True},
    "vit_reg4_dinov2_test": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.5},
    "vit_reg1_gap_test": {
        "reg_tokens": 1,
        "class_token": False,
        "no_embed_class": True,
        "global_pool": "avg",
    },
    "vit_reg2_map_test": {"reg_tokens": 2, "class_token": False, "global_pool": "map"},
}

# timm looks for a module's configs under this name.
default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 10,
            "input_size": (3, SIZE, SIZE),
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for name in ("vit_plain_test.one", "vit_hybrid_test", "vit_map_test", *MINIATURES)
    }
)


def vit_plain_test(pretrained: bool = False, **changes: Any) -> nn.Module:
    """Build a plain vision transformer with layer scale."""
    return _vit("vit_plain_test", pretrained, changes, init_values=0.5)


def vit_hybrid_test(pretrained: bool = False, **changes: Any) -> nn.Module:
    """Build one like MobileCLIP-B: a stem with batch norms, no position for the class token."""
    stem = ConvStem(channels=(8, 8, 32), stride=(4, 2, 1), kernel_size=(4, 2, 1), padding=0)
    embed = partial(HybridEmbed, backbone=stem, proj=False)
    shape = {"embed_layer": embed, "patch_size": 1, "no_embed_class": True}
    return _vit("vit_hybrid_test", pretrained, changes, **shape)


def vit_map_test(pretrained: bool = False, **changes: Any) -> nn.Module:
    """Build one like SigLIP: no class token, attention pooling, the tanh form of GELU."""
    shape = {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"}
    return _vit("vit_map_test", pretrained, changes, **shape)


def _vit(name: str, pretrained: bool, changes: dict[str, Any], **shape: Any) -> nn.Module:
    shape = {**SHAPE, **shape, **changes}
    kind = VisionTransformerDistilled if "distilled" in name else VisionTransformer
    model: nn.Module = build_model_with_cfg(
        kind, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **shape
    )
    return model


def _miniature(name: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **changes: Any) -> nn.Module:
        return _vit(name, pretrained, changes, **MINIATURES[name])

    build.__name__ = name
    build.__module__ = __name__
    globals()[name] = build
    return build


for build in (vit_plain_test, vit_hybrid_test, vit_map_test, *map(_miniature, MINIATURES)):
    register_model(build)


def register(folder: Path) -> None:
    """Register the architectures with open_clip, by config files in `folder`."""
    for name, config in CONFIGS.items():
        text = {"embed_dim": 24, "text_cfg": TEXT, **config}
        (folder / f"{name}.json").write_text(json.dumps(text))
    open_clip.add_model_config(folder)


def make(kind: str) -> nn.Module:
    """Return a whole open_clip model or, for `TEXTLESS`, a timm model with its classifier."""
    torch.manual_seed(0)
    if kind.startswith("timm:"):
        return randomised(timm.create_model(kind.removeprefix("timm:")))
    return randomised(open_clip.create_model(kind))


def write(kind: str, folder: Path) -> tuple[str, nn.Module]:
    """Write a model's weights to `folder`; return the backbone's name, KIND:PATH, and the model."""
    source = make(kind)
    path = folder / f"{kind.replace(':', '-')}.safetensors"
    save_file(source.state_dict(), path)
    return f"{kind}:{path}", source


@torch.no_grad()
def randomised(module: nn.Module) -> nn.Module:
    """Give random values to all parameters and statistics of `module`, in place, and return it."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if "logit" not in name:
            parameter.add_((0.3 if parameter.ndim == 1 else 0.1) * torch.randn_like(parameter))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
    return module.eval()
