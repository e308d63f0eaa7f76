"""`vit_mini_lite2_224`, the image tower of the default backbone, as an architecture of timm.

An EfficientNet-Lite2 up to stride 32 (352 channels, BatchNorm folded into its convolutions) turns
an image into 7 x 7 patches for a small pre-norm vision transformer. Importing this module registers
the architecture; the weights come from the open_clip checkpoint in `models/default`.
"""

from functools import partial
from typing import Any, Final

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import Tensor, nn

CHANNELS: Final = 352
# timm finds a module's configs by this name.
default_cfgs = generate_default_cfgs(
    {
        "vit_mini_lite2_224": {
            "num_classes": 0,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.backbone.net.conv_stem",
            "classifier": "head",
        }
    }
)
# For each module type of the stem: its convolutions, and the normalisation after each.
FOLDED: Final = {
    "EfficientNetFeatures": {"conv_stem": "bn1"},
    "DepthwiseSeparableConv": {"conv_dw": "bn1", "conv_pw": "bn2"},
    "InvertedResidual": {"conv_pw": "bn1", "conv_dw": "bn2", "conv_pwl": "bn3"},
}


class LiteStem(nn.Module):
    """The features of EfficientNet-Lite2: float [N, 3, 224, 224] to float [N, 352, 7, 7]."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = CHANNELS
        self.net = timm.create_model("tf_efficientnet_lite2", features_only=True, out_indices=(4,))
        for module in self.net.modules():
            for convolution_name, norm_name in FOLDED.get(type(module).__name__, {}).items():
                # The weights have the norm folded in: the convolution has a bias instead, and only
                # the activation of the norm remains.
                convolution = module.get_submodule(convolution_name)
                assert isinstance(convolution, nn.Conv2d)
                convolution.bias = nn.Parameter(torch.zeros(convolution.out_channels))
                norm = module.get_submodule(norm_name)
                setattr(module, norm_name, norm.get_submodule("act"))

    def forward(self, pixels: Tensor) -> Tensor:
        # Depthwise convolutions are several times faster on a CPU in channels-last order.
        features: Tensor = self.net(pixels.contiguous(memory_format=torch.channels_last))[0]
        return features


@register_model  # type: ignore[untyped-decorator]
def vit_mini_lite2_224(pretrained: bool = False, **changes: Any) -> nn.Module:
    """Return the tower with random weights; timm passes `pretrained`, which is ignored here."""
    del pretrained
    shape: dict[str, Any] = {
        "img_size": 224,
        "patch_size": 1,
        "embed_layer": partial(HybridEmbed, backbone=LiteStem(), feature_size=7, feature_ratio=32),
        "embed_dim": 256,
        "depth": 6,
        "num_heads": 4,
        "mlp_ratio": 4,
        "num_classes": 0,
    }
    tower: nn.Module = build_model_with_cfg(
        VisionTransformer, "vit_mini_lite2_224", False, **{**shape, **changes}
    )
    return tower
