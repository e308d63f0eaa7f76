"""Small graphs with random weights, in the form that bundles have."""

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import Tensor, nn

from taillift.models.bundle.arrays import Pixels
from taillift.models.lift.convert import convert
from taillift.models.lift.head import CosineHead
from taillift.models.lift.model import Model, Normalise
from taillift.models.lift.onnx_export import write_graph
from tests.support.towers import tiny

CLASSES = 7


def write(model: nn.Module, size: int, path: Path) -> Path:
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    write_graph(model, example, path, ["pixels"], ["logits", "features"])
    return path


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain ViT for 16 pixels."""
    return write(tiny(), 16, tmp_path_factory.mktemp("graphs") / "model.onnx")


class Stem(nn.Module):
    """Convolutions of each kind in the default backbone's stem."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
            nn.ReLU6(),
            nn.Conv2d(8, 16, 1),
            nn.Conv2d(16, 16, 3, 2, 1, groups=16),
            nn.ReLU6(),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.layers(pixels)
        return features


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of 4 x 4 patches after a convolutional stem, for 16 pixels."""
    torch.manual_seed(0)
    trunk = VisionTransformer(
        img_size=16,
        patch_size=1,
        embed_dim=32,
        depth=2,
        num_heads=4,
        num_classes=0,
        embed_layer=lambda **more: HybridEmbed(Stem(), feature_size=4, feature_ratio=4, **more),
    )
    head = CosineHead(torch.randn(CLASSES, 32), scale=25.0)
    half = (0.5, 0.5, 0.5)
    model = Model(Normalise(half, half), convert(trunk), head).eval().requires_grad_(False)
    return write(model, 16, tmp_path_factory.mktemp("graphs") / "hybrid.onnx")


@pytest.fixture(scope="session")
def pixels() -> Pixels:
    """Forty views that differ in coarse random patterns."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (40, 4, 4, 3), np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)
