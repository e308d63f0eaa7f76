"""Small transformer models with random weights, and tuners with weights as if after training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taillift.models.lift.head import CosineHead, Head
from taillift.models.lift.model import Model, Normalise
from taillift.models.lift.tower import Tower
from taillift.models.lift.tuners import Tuner
from taillift.models.lift.tuners.base import Attachment
from taillift.models.lift.vit import Block, Embed, MeanPool, PatchConv, Pool

WIDTH, BLOCKS, CLASSES = 32, 3, 7
PIXELS = torch.randint(
    0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def tiny(
    act: nn.Module | None = None,
    eps: float = 1e-5,
    scaled: bool = False,
    mean: bool = False,
    head: Head | None = None,
) -> Model:
    """Return a model with random weights everywhere, also in norms and layer scales.

    The weights are the same in every call. With `mean` the tower pools all patches, so that the
    last block must return all its tokens.
    """
    torch.manual_seed(0)
    blocks = [Block(WIDTH, 4, 4 * WIDTH, act or nn.GELU(), eps, scaled) for _ in range(BLOCKS)]
    patches = PatchConv(nn.Conv2d(3, WIDTH, 8, 8))
    embed = Embed(patches, torch.randn(1, WIDTH), torch.randn(5, WIDTH), nn.Identity())
    norm = nn.LayerNorm(WIDTH, eps=eps)
    pool = MeanPool(norm, nn.Identity(), skipped=1) if mean else Pool(norm)
    tower = Tower.assemble(embed, blocks, pool)
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
    tower.requires_grad_(False)
    head = head or CosineHead(torch.randn(CLASSES, WIDTH), scale=25.0)
    return Model(Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), tower, head).eval()


def attach(model: Model, tuners: Sequence[Tuner]) -> Model:
    """Attach tuners to the model's blocks, in place, and return the model."""
    for tuner in tuners:
        tuner.resolved(CLASSES, BLOCKS, WIDTH).attach(model.tower.blocks)
    return model


@torch.no_grad()
def shake(model: Model, seed: int = 1) -> Model:
    """Add noise to all trainable parameters of the tower, in place, and return the model."""
    generator = torch.Generator().manual_seed(seed)
    attached = {
        id(parameter)
        for part in model.tower.modules()
        if isinstance(part, Attachment)
        for name, parameter in part.named_parameters()
        if not name.startswith("host.")
    }
    for parameter in model.tower.parameters():
        if parameter.requires_grad:
            size = 0.2 if id(parameter) in attached else 0.05
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def features(model: Model) -> Tensor:
    """Return the tower's features of `PIXELS`."""
    result: Tensor = model.tower(model.normalise(PIXELS))
    return result


def error(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to that of `expected`."""
    return float((actual - expected).norm() / expected.norm())
