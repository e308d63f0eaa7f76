"""Converting the image towers of open_clip and timm to the canonical one, with their weights.

A converter copies: the source stays as it was. It refuses a tower that has a part which the
canonical one lacks, with a `UserError` that names the part.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as NativeTransformer
from timm.models.deit import VisionTransformerDistilled as DistilledTransformer
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn

from taillift.models.errors import UserError
from taillift.models.lift.resnet import GridPool, Layer, ResidualBottleneck, Stem
from taillift.models.lift.tower import Tower
from taillift.models.lift.vit import (
    AttentionPool,
    Block,
    Embed,
    MeanPool,
    Mlp,
    PatchConv,
    Pool,
    QuickGELU,
)

SUPPORTED: Final = (
    "ViT-*, ViT-*-SigLIP*, MobileCLIP*-B, RN* and timm's plain vision transformers, such as vit_*, "
    "deit*_* and flexivit_*; `taillift backbones` lists them"
)

# Names of a block's layers in each source, by their canonical name.
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


def convert(visual: nn.Module) -> Tower:
    """Return an image tower of open_clip or timm as a `Tower` with the same features.

    These are the features before any projection; a CLIP ResNet's are in the text's space already.
    Raises `UserError` if the tower is of another kind or has a part that a `Tower` lacks.
    """
    source = visual.trunk if isinstance(visual, TimmModel) else visual
    converter = CONVERTERS.get(type(source))
    if converter is None:
        raise unsupported(type(source).__name__)
    return converter(source).eval().requires_grad_(False)


@contextlib.contextmanager
def first_block_alone(visual: Any) -> Iterator[None]:
    """Leave a transformer only its first block meanwhile, which is like the others.

    So it is quickly known whether a tower can be converted.
    """
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    parent = getattr(trunk, "transformer", trunk)
    name = "resblocks" if hasattr(parent, "resblocks") else "blocks"
    blocks = getattr(parent, name, None)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential):
        yield
        return
    setattr(parent, name, blocks[:1])
    try:
        yield
    finally:
        setattr(parent, name, blocks)


def from_native(visual: Any) -> Tower:
    """Convert open_clip's own `VisionTransformer`."""
    _require(visual.attn_pool is None, "attention pooling")
    _require(visual.pool_type in ("tok", "avg"), f"{visual.pool_type} pooling")
    blocks = []
    for source in visual.transformer.resblocks:
        _require(type(source).__name__ == "ResidualAttentionBlock", type(source).__name__)
        tensors = dict(source.state_dict())
        tensors["attn.qkv.weight"] = tensors["attn.in_proj_weight"]
        tensors["attn.qkv.bias"] = tensors["attn.in_proj_bias"]
        block = _block(
            tensors,
            NATIVE,
            heads=source.attn.num_heads,
            act=_activation(source.mlp.gelu),
            norm=source.ln_2,
            scales=(source.ls_1, source.ls_2),
        )
        blocks.append(block)
    patches = PatchConv(copy.deepcopy(visual.conv1))
    embed = Embed(
        patches,
        visual.class_embedding[None],
        visual.positional_embedding,
        _copy_norm(visual.ln_pre),
    )
    norm = _copy_norm(visual.ln_post)
    pool: Pool | MeanPool
    if visual.pool_type == "tok":
        pool = Pool(norm)
    elif visual.final_ln_after_pool:
        pool = MeanPool(nn.Identity(), norm, skipped=1)
    else:
        pool = MeanPool(norm, nn.Identity(), skipped=1)
    return Tower.assemble(embed, blocks, pool)


def from_timm(trunk: Any) -> Tower:
    """Convert timm's `VisionTransformer`, plain or with a hybrid stem, without its classifier."""
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
            source.state_dict(),
            TIMM,
            heads=source.attn.num_heads,
            act=_activation(source.mlp.act),
            norm=source.norm2,
            scales=(source.ls1, source.ls2),
        )
        blocks.append(block)
    tokens = (trunk.cls_token, getattr(trunk, "dist_token", None), trunk.reg_token)
    positions = trunk.pos_embed[0]
    prefix = torch.cat([positions[:0], *(token[0] for token in tokens if token is not None)])
    if trunk.no_embed_class:
        positions = torch.cat([torch.zeros_like(prefix), positions])
    patches = copy.deepcopy(trunk.patch_embed)
    for module in patches.modules():
        # torch's exporter takes a tenth of a second for each activation that works in place.
        if hasattr(module, "inplace"):
            module.inplace = False
    embed = Embed(patches, prefix, positions, _copy_norm(trunk.norm_pre))
    norm, pooled_norm = _copy_norm(trunk.norm), _copy_norm(trunk.fc_norm)
    skipped = 0 if trunk.pool_include_prefix else trunk.num_prefix_tokens
    pool: Pool | MeanPool | AttentionPool
    match trunk.global_pool:
        case "token" if isinstance(trunk, DistilledTransformer):
            # Its features are the mean of the class token and the distillation token.
            pool = MeanPool(norm, pooled_norm, skipped=0, end=2)
        case "token":
            pool = Pool(pooled_norm if isinstance(norm, nn.Identity) else norm)
        case "avg":
            pool = MeanPool(norm, pooled_norm, skipped)
        case "map":
            pool = from_attention_pool(trunk.attn_pool, norm, skipped)
        case other:
            raise lacking(f"{other or 'no'} pooling")
    return Tower.assemble(embed, blocks, pool)


def from_attention_pool(source: Any, norm: nn.Module, skipped: int) -> AttentionPool:
    """Convert timm's `AttentionPoolLatent`, which reads the tokens after the first `skipped`.

    `norm` is applied to the tokens before it.
    """
    _require(source.latent_len == 1, "attention pooling with several queries")
    _require(source.pos_embed is None, "attention pooling with positions")
    _require(isinstance(source.k_norm, nn.Identity), "attention pooling with normalised keys")
    _require(type(source.mlp).__name__ == "Mlp", "attention pooling without an MLP")
    fc1 = source.mlp.fc1
    mlp = Mlp(fc1.in_features, fc1.out_features, _activation(source.mlp.act))
    mlp.load_state_dict(source.mlp.state_dict())
    # The query is the same for every image: its projection can be applied once, here.
    query = source.q(source.latent)[0, 0].detach()
    pool = AttentionPool(norm, query, source.num_heads, _copy_norm(source.norm), mlp, skipped)
    pool.key_value.load_state_dict(source.kv.state_dict())
    pool.proj.load_state_dict(source.proj.state_dict())
    return pool


def from_resnet(visual: Any) -> Tower:
    """Convert open_clip's `ModifiedResNet`, with its attention pooling."""
    tensors = visual.state_dict()
    stem = Stem(visual.conv3.out_channels)
    stem.load_state_dict({key: tensors[key] for key in stem.state_dict()})
    layers = []
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        blocks = []
        for source in layer:
            inside, middle = source.conv1.in_channels, source.conv1.out_channels
            block = ResidualBottleneck(inside, middle, source.conv3.out_channels, source.stride)
            block.load_state_dict(source.state_dict())
            blocks.append(block)
        layers.append(Layer(*blocks))
    attention = visual.attnpool
    rows, width = attention.positional_embedding.shape
    pool = GridPool(width, rows - 1, attention.num_heads, attention.c_proj.out_features)
    pool.load_state_dict(attention.state_dict())
    return Tower.assemble_resnet(stem, layers, pool)


CONVERTERS: Final[dict[type, Callable[[Any], Tower]]] = {
    NativeTransformer: from_native,
    TimmTransformer: from_timm,
    DistilledTransformer: from_timm,
    ModifiedResNet: from_resnet,
}


def projection(visual: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return the matrix [D, E] and bias [E] that map features into the space shared with text.

    Either is None if the source has none; features without a matrix are in that space already.
    Raises `UserError` if the projection is more than one affine map.
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
    """Return the error for an image tower of a kind that has no converter."""
    return UserError(f"the backbone's image tower is a {kind}: taillift works with {SUPPORTED}")


def _require(holds: bool, part: str) -> None:
    if not holds:
        raise lacking(part)


def lacking(part: str) -> UserError:
    """Return the error for a tower with a part that the canonical one lacks."""
    return UserError(f"the backbone's image tower has {part}, which taillift does not support")


def _block(
    source: Mapping[str, Tensor],
    names: Mapping[str, str],
    heads: int,
    act: nn.Module,
    norm: nn.Module,
    scales: Sequence[nn.Module],
) -> Block:
    """Return a block with the source's tensors; `names` are those of the source by our own."""
    if not isinstance(norm, nn.LayerNorm):
        raise lacking(type(norm).__name__)
    tensors = {}
    for ours, theirs in names.items():
        weight = tensors[f"{ours}.weight"] = source[f"{theirs}.weight"]
        # A bias that the source lacks is zero.
        tensors[f"{ours}.bias"] = source.get(f"{theirs}.bias", torch.zeros(len(weight)))
    for index, scale in enumerate(scales, start=1):
        if not isinstance(scale, nn.Identity):
            tensors[f"scale{index}.gamma"] = scale.get_parameter("gamma")
    hidden, width = tensors["mlp.fc1.weight"].shape
    _require(len(tensors["attention.qkv.weight"]) == 3 * width, "heads of an unusual width")
    block = Block(width, heads, hidden, act, norm.eps, scaled="scale1.gamma" in tensors)
    block.load_state_dict(tensors)
    return block


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


def _copy_norm(source: Any) -> Any:
    """Return a copy, with a plain LayerNorm instead of open_clip's.

    open_clip's adds casts for half precision; in float32 the plain one gives the same.
    """
    if not isinstance(source, nn.LayerNorm):
        return copy.deepcopy(source)
    norm = nn.LayerNorm(source.normalized_shape, eps=source.eps)
    norm.load_state_dict(source.state_dict())
    return norm
