"""The positions of patches, and how they are adapted to images of another size."""

import logging
import math
from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from taillift.models.errors import UserError

logger = logging.getLogger(__name__)


def patch_grid(visual: nn.Module) -> Any:
    """Return the module of an image tower that knows its grid of patches."""
    trunk: Any = visual.trunk if isinstance(visual, TimmModel) else visual
    return trunk.patch_embed if hasattr(trunk, "patch_embed") else trunk


def grid_side(visual: nn.Module) -> int:
    """Return the number of patches along a side of the image."""
    return int(patch_grid(visual).grid_size[0])


def image_side(visual: nn.Module) -> int:
    """Return the side in pixels of the images that a tower takes."""
    grid = patch_grid(visual)
    size = grid.img_size if hasattr(grid, "img_size") else grid.image_size
    return int(size if isinstance(size, int) else size[0])


def check_size(name: str, size: int, visual: nn.Module) -> None:
    """Raise `UserError` if the tower of a backbone cannot take images with a side of `size`."""
    if isinstance(visual, ModifiedResNet):
        raise UserError(f"backbone {name!r}: a ResNet takes images of its own size only")
    patch = image_side(visual) // grid_side(visual)
    if size < patch or size % patch:
        near = max(1, round(size / patch)) * patch
        raise UserError(
            f"backbone {name!r}: its patches have a side of {patch} pixels, which does "
            f"not divide {size}: take {near}"
        )


def fit_positions(name: str, tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Interpolate the positions among `tensors`, in place, to the grid of an open_clip model.

    As timm does, this is bicubic with antialiasing; class and register tokens keep theirs. It is
    said in one line.
    """
    visual, wanted = model.get_submodule("visual"), model.state_dict()
    for key in ("visual.positional_embedding", "visual.trunk.pos_embed"):
        if key not in tensors or key not in wanted or tensors[key].shape == wanted[key].shape:
            continue
        side = grid_side(visual)
        tell_interpolation(name, tensors[key].shape[-2], side)
        fitted = resample_abs_pos_embed(
            tensors[key].reshape(1, *tensors[key].shape[-2:]),
            new_size=[side, side],
            num_prefix_tokens=wanted[key].shape[-2] - side * side,
        )
        tensors[key] = fitted.reshape(*tensors[key].shape[:-2], *fitted.shape[-2:])


def tell_interpolation(name: str, positions: int, side: int) -> None:
    """Say that positions, of which some may be of class and register tokens, change their grid."""
    old = math.isqrt(positions)
    if old != side:
        logger.warning(
            "%s: its positions are interpolated from %d x %d to %d x %d patches",
            name,
            old,
            old,
            side,
            side,
        )
