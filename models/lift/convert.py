"""From the image towers of open_clip and timm to the canonical one, weights and all.

The converters copy: the source is left as it was. A tower with a part that the canonical one lacks
is refused with a `UserError` that names the part.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as NativeTransformer
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn

from taillift.models.errors import UserError
from taillift.models.lift.block import Block, Mlp, QuickGELU
from taillift.models.lift.pooling import AttentionPool, Embed, MeanPool, Pool
from taillift.models.lift.resnet import GridPool, Layer, ResidualBottleneck, Stem
from taillift.models.lift.tower import Tower

WORKING: Final = "ViT-*, ViT-*-SigLIP*, MobileCLIP*-B, RN* and timm:vit_*"

# Names of a block's tensors in each source, by their canonical name.
NATIVE: Final = {
    "norm1": "ln_1",
    "attention.qkv": "attn.qkv",
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
    """An image tower of open_clip, or one of timm, as a `Tower` with the same features.

    Those are the features before any projection; a CLIP ResNet's are in the text's space already.
    Raises `UserError` where the tower is of another kind or has a part that a `Tower` lacks.
    """
    source = visual.trunk if isinstance(visual, TimmModel) else visual
    convert_kind = CONVERTERS.get(type(source))
    if convert_kind is None:
        raise unsupported(type(source).__name__)
    return convert_kind(source).eval().requires_grad_(False)


def from_native(visual: Any) -> Tower:
    """open_clip's own `VisionTransformer`."""
    _require(visual.attn_pool is None, "attention pooling")
    _require(visual.pool_type in ("tok", "avg"), f"{visual.pool_type} pooling")
    blocks = []
    for source in visual.transformer.resblocks:
        _require(type(source).__name__ == "ResidualAttentionBlock", type(source).__name__)
        state = dict(source.state_dict())
        state["attn.qkv.weight"] = state["attn.in_proj_weight"]
        state["attn.qkv.bias"] = state["attn.in_proj_bias"]
        block = _block(
            heads=source.attn.num_heads,
            act=_activation(source.mlp.gelu),
            norm=source.ln_2,
            tensors=_renamed(state, NATIVE) | _scales(source.ls_1, source.ls_2),
        )
        blocks.append(block)
    patches = PatchConv(_copy(visual.conv1))
    embed = Embed(
        patches, visual.class_embedding, visual.positional_embedding, _copy_norm(visual.ln_pre)
    )
    return Tower.assemble(embed, blocks, _native_pool(visual))


def _native_pool(visual: Any) -> Pool | MeanPool:
    norm = _copy_norm(visual.ln_post)
    if visual.pool_type == "tok":
        return Pool(norm)
    if visual.final_ln_after_pool:
        return MeanPool(nn.Identity(), norm, skipped=1)
    return MeanPool(norm, nn.Identity(), skipped=1)


def from_timm(trunk: Any) -> Tower:
    """timm's `VisionTransformer`, plain or with a hybrid stem; its classifier is left out."""
    _require(trunk.reg_token is None, "register tokens")
    _require(trunk.pos_embed is not None, "no positional embedding")
    _require(not trunk.dynamic_img_size, "a dynamic image size")
    blocks = []
    for source in trunk.blocks:
        _require(type(source).__name__ == "Block", type(source).__name__)
        _require(type(source.attn).__name__ == "Attention", type(source.attn).__name__)
        _require(type(source.mlp).__name__ == "Mlp", type(source.mlp).__name__)
        _require(source.attn.gate is None, "gated attention")
        for part in ("attn.q_norm", "attn.k_norm", "attn.norm", "mlp.norm"):
            _require(isinstance(source.get_submodule(part), nn.Identity), part)
        block = _block(
            heads=source.attn.num_heads,
            act=_activation(source.mlp.act),
            norm=source.norm2,
            tensors=_renamed(dict(source.state_dict()), TIMM) | _scales(source.ls1, source.ls2),
        )
        blocks.append(block)
    class_token = None if trunk.cls_token is None else trunk.cls_token[0, 0]
    positions = trunk.pos_embed[0]
    if trunk.no_embed_class and class_token is not None:
        positions = torch.cat([torch.zeros_like(positions[:1]), positions])
    patches = _out_of_place(_copy(trunk.patch_embed))
    embed = Embed(patches, class_token, positions, _copy_norm(trunk.norm_pre))
    return Tower.assemble(embed, blocks, _timm_pool(trunk))


def _timm_pool(trunk: Any) -> Pool | MeanPool | AttentionPool:
    norm, pooled_norm = _copy_norm(trunk.norm), _copy_norm(trunk.fc_norm)
    skipped = 0 if trunk.pool_include_prefix else trunk.num_prefix_tokens
    match trunk.global_pool:
        case "token":
            return Pool(pooled_norm if isinstance(norm, nn.Identity) else norm)
        case "avg":
            return MeanPool(norm, pooled_norm, skipped)
        case "map":
            _require(skipped == 0, "attention pooling beside a class token")
            return _attention_pool(trunk.attn_pool, norm)
        case other:
            raise _lacking(f"{other or 'no'} pooling")


def _attention_pool(source: Any, norm: nn.Module) -> AttentionPool:
    _require(source.latent_len == 1, "attention pooling with several queries")
    _require(source.pos_embed is None, "attention pooling with positions")
    _require(isinstance(source.k_norm, nn.Identity), "attention pooling with normalised keys")
    _require(type(source.mlp).__name__ == "Mlp", "attention pooling without an MLP")
    fc1 = source.mlp.fc1
    mlp = Mlp(fc1.in_features, fc1.out_features, _activation(source.mlp.act))
    mlp.load_state_dict(source.mlp.state_dict())
    # The query is the same for every image: its projection is applied once.
    query = source.q(source.latent)[0, 0].detach()
    pool = AttentionPool(norm, query, source.num_heads, _copy_norm(source.norm), mlp)
    pool.key_value.load_state_dict(source.kv.state_dict())
    pool.proj.load_state_dict(source.proj.state_dict())
    return pool


def from_resnet(visual: Any) -> Tower:
    """open_clip's `ModifiedResNet`, with its attention pooling."""
    state = visual.state_dict()
    stem = Stem(visual.conv3.out_channels)
    stem.load_state_dict({key: state[key] for key in stem.state_dict()})
    layers = [
        Layer(*[_bottleneck(source) for source in layer])
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
    ]
    source = visual.attnpool
    rows, width = source.positional_embedding.shape
    pool = GridPool(width, rows - 1, source.num_heads, source.c_proj.out_features)
    pool.load_state_dict(source.state_dict())
    return Tower.assemble_resnet(stem, layers, pool)


def _bottleneck(source: Any) -> ResidualBottleneck:
    inside, middle = source.conv1.in_channels, source.conv1.out_channels
    block = ResidualBottleneck(inside, middle, source.conv3.out_channels, source.stride)
    block.load_state_dict(source.state_dict())
    return block


CONVERTERS: Final[dict[type, Callable[[Any], Tower]]] = {
    NativeTransformer: from_native,
    TimmTransformer: from_timm,
    ModifiedResNet: from_resnet,
}


def projection(visual: Any) -> tuple[Tensor | None, Tensor | None]:
    """What leads from features to the space that images share with text: [D, E] and a bias [E].

    Either is None where the source has none; features without a matrix are in that space already.
    Raises `UserError` where the projection is more than one affine map.
    """
    if isinstance(visual, NativeTransformer):
        return (None if visual.proj is None else visual.proj.detach().clone()), None
    if isinstance(visual, ModifiedResNet):
        return None, None
    layers = [visual.trunk.head, *visual.head.children()]
    layers = [layer for layer in layers if not isinstance(layer, nn.Identity | nn.Dropout)]
    if not layers:
        return None, None
    if len(layers) > 1 or not isinstance(layers[0], nn.Linear):
        raise UserError("the backbone's projection is more than one matrix: take another backbone")
    bias = layers[0].bias
    return (
        layers[0].weight.detach().t().clone(),
        None if bias is None else bias.detach().clone(),
    )


def unsupported(kind: str) -> UserError:
    return UserError(f"the backbone's image tower is a {kind}: taillift works with {WORKING}")


def _require(holds: bool, part: str) -> None:
    if not holds:
        raise _lacking(part)


def _lacking(part: str) -> UserError:
    return UserError(f"the backbone's image tower has {part}, which taillift does not support")


def _block(heads: int, act: nn.Module, norm: nn.Module, tensors: Mapping[str, Tensor]) -> Block:
    if not isinstance(norm, nn.LayerNorm):
        raise _lacking(type(norm).__name__)
    hidden, width = tensors["mlp.fc1.weight"].shape
    _require(len(tensors["attention.qkv.weight"]) == 3 * width, "heads of an unusual width")
    block = Block(width, heads, hidden, act, norm.eps, scaled="scale1.gamma" in tensors)
    block.load_state_dict(tensors)
    return block


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights and biases under their canonical names; a bias that is absent is zero."""
    tensors = {}
    for ours, theirs in names.items():
        weight = tensors[f"{ours}.weight"] = state[f"{theirs}.weight"]
        tensors[f"{ours}.bias"] = state.get(f"{theirs}.bias", torch.zeros(len(weight)))
    return tensors


def _scales(*scales: nn.Module) -> dict[str, Tensor]:
    return {
        f"scale{index}.gamma": scale.get_parameter("gamma")
        for index, scale in enumerate(scales, start=1)
        if not isinstance(scale, nn.Identity)
    }


def _activation(source: nn.Module) -> nn.Module:
    match type(source).__name__:
        case "GELU":
            return nn.GELU(getattr(source, "approximate", "none"))
        case "GELUTanh":
            return nn.GELU(approximate="tanh")
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
