"""From the image towers of open_clip to the canonical one, weights and all.

Both converters copy: the source is left as it was. A tower with a part that the canonical one
lacks is refused with a `UserError` that names the part.
"""

import copy
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from models import UserError
from models.lift.block import Block, QuickGELU
from models.lift.ends import Embed, Pool
from models.lift.tower import Tower

# Names of a block's tensors in each source, by their canonical name.
NATIVE: Final = {
    "norm1": "ln_1",
    "attention.proj": "attn.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
TIMM: Final = {
    "norm1": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.proj": "attn.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


class PatchConv(nn.Module):
    """Non-overlapping patches through one convolution: [N, 3, S, S] to [N, P, D]."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, pixels: Tensor) -> Tensor:
        patches: Tensor = self.convolution(pixels)
        return patches.flatten(2).transpose(1, 2)


def convert(visual: nn.Module) -> Tower:
    """The image tower of an open_clip model as a `Tower` with the same features.

    Raises `UserError` where the tower is no vision transformer with a class token.
    """
    kind = type(visual).__name__
    if kind == "VisionTransformer":
        tower = from_native(visual)
    elif kind == "TimmModel":
        tower = from_timm(visual)
    else:
        raise UserError(f"the backbone's image tower is a {kind}: only vision transformers work")
    return tower.eval().requires_grad_(False)


def from_native(visual: Any) -> Tower:
    """open_clip's own `VisionTransformer`."""
    _require(visual.attn_pool is None, "attention pooling")
    _require(visual.pool_type == "tok", f"{visual.pool_type} pooling")
    blocks = []
    for source in visual.transformer.resblocks:
        _require(type(source).__name__ == "ResidualAttentionBlock", type(source).__name__)
        block = _block(
            width=source.attn.embed_dim,
            heads=source.attn.num_heads,
            hidden=source.mlp.c_fc.out_features,
            act=_activation(source.mlp.gelu),
            norm=source.ln_2,
            scales=(source.ls_1, source.ls_2),
        )
        state = dict(source.state_dict())
        tensors = _renamed(state, NATIVE) | _scales(source.ls_1, source.ls_2)
        tensors["attention.qkv.weight"] = state["attn.in_proj_weight"]
        tensors["attention.qkv.bias"] = state["attn.in_proj_bias"]
        block.load_state_dict(tensors)
        blocks.append(block)
    patches = PatchConv(_copy(visual.conv1))
    embed = Embed(
        patches, visual.class_embedding, visual.positional_embedding, _copy_norm(visual.ln_pre)
    )
    return Tower.assemble(embed, blocks, Pool(_copy_norm(visual.ln_post)))


def from_timm(visual: Any) -> Tower:
    """timm's `VisionTransformer`, plain or with a hybrid stem, inside open_clip's `TimmModel`."""
    trunk = visual.trunk
    _require(type(trunk).__name__ == "VisionTransformer", type(trunk).__name__)
    _require(trunk.global_pool == "token", f"{trunk.global_pool or 'no'} pooling")
    _require(trunk.cls_token is not None and trunk.num_prefix_tokens == 1, "no class token")
    blocks = []
    for source in trunk.blocks:
        _require(type(source).__name__ == "Block", type(source).__name__)
        for part in ("attn.q_norm", "attn.k_norm", "mlp.norm"):
            _require(isinstance(source.get_submodule(part), nn.Identity), part)
        block = _block(
            width=source.attn.qkv.in_features,
            heads=source.attn.num_heads,
            hidden=source.mlp.fc1.out_features,
            act=_activation(source.mlp.act),
            norm=source.norm2,
            scales=(source.ls1, source.ls2),
        )
        tensors = _renamed(dict(source.state_dict()), TIMM) | _scales(source.ls1, source.ls2)
        block.load_state_dict(tensors)
        blocks.append(block)
    positions = trunk.pos_embed[0]
    if trunk.no_embed_class:
        positions = torch.cat([torch.zeros_like(positions[:1]), positions])
    patches = _out_of_place(_copy(trunk.patch_embed))
    embed = Embed(patches, trunk.cls_token[0, 0], positions, _copy(trunk.norm_pre))
    return Tower.assemble(embed, blocks, Pool(_copy_norm(trunk.norm)))


def projection(visual: Any) -> Tensor:
    """[D, E], from features to the space that images share with text.

    Raises `UserError` where there is none or it is more than one matrix.
    """
    if type(visual).__name__ == "VisionTransformer":
        matrix: Tensor | None = visual.proj
        if matrix is not None:
            return matrix.detach().clone()
        raise UserError("the backbone has no projection: taillift cannot start the head from text")
    layer = dict(visual.head.named_children()).get("proj")
    if not isinstance(layer, nn.Linear) or layer.bias is not None:
        raise UserError(
            "the backbone's projection is not one matrix: taillift cannot start the head from text"
        )
    return layer.weight.detach().t().clone()


def _require(holds: bool, part: str) -> None:
    if not holds:
        raise UserError(f"the backbone's image tower has {part}, which taillift does not support")


def _block(
    width: int,
    heads: int,
    hidden: int,
    act: nn.Module,
    norm: nn.LayerNorm,
    scales: tuple[nn.Module, nn.Module],
) -> Block:
    scaled = not isinstance(scales[0], nn.Identity)
    return Block(width, heads, hidden, act, norm.eps, scaled)


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        f"{ours}.{part}": state[f"{theirs}.{part}"]
        for ours, theirs in names.items()
        for part in ("weight", "bias")
    }


def _scales(*scales: nn.Module) -> dict[str, Tensor]:
    return {
        f"scale{index}.gamma": scale.get_parameter("gamma")
        for index, scale in enumerate(scales, start=1)
        if not isinstance(scale, nn.Identity)
    }


def _activation(source: nn.Module) -> nn.Module:
    match type(source).__name__:
        case "GELU":
            return nn.GELU()
        case "QuickGELU":
            return QuickGELU()
        case other:
            raise UserError(f"the backbone's MLPs use {other}: only GELU and QuickGELU work")


def _copy(source: nn.Module) -> Any:
    """A deep copy, without hooks or a graph behind its tensors."""
    return copy.deepcopy(source)


def _out_of_place(module: nn.Module) -> nn.Module:
    """torch's exporter takes a tenth of a second for each activation that works in place."""
    for part in module.modules():
        if getattr(part, "inplace", False):
            setattr(part, "inplace", False)  # noqa: B010  (no attribute of every module)
    return module


def _copy_norm(source: Any) -> Any:
    """open_clip's LayerNorm adds casts for half precision; the plain one is the same in float32."""
    if not isinstance(source, nn.LayerNorm):
        return _copy(source)
    norm = nn.LayerNorm(source.normalized_shape, eps=source.eps)
    norm.load_state_dict(source.state_dict())
    return norm
