"""Image towers of timm without a text tower, such as those pretrained on ImageNet-21k."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import timm
import torch
from open_clip.pretrained import download_pretrained_from_hf
from timm.data import resolve_model_data_config
from timm.models import get_arch_name, get_pretrained_cfg, model_entrypoint
from torch import Tensor, nn

from taillift.models.architectures import PREFIX
from taillift.models.errors import UserError, did_you_mean, first_lines
from taillift.models.lift.convert import convert, first_block_alone, lacking, unsupported
from taillift.models.lift.model import check_graph_size
from taillift.models.lift.positions import (
    check_size,
    grid_side,
    image_side,
    tell_interpolation,
)
from taillift.models.lift.weight_file import mismatch, read_weights, refusal

WEIGHTS: Final = "model.safetensors"
# The classifiers of timm's vision transformers, of which no feature depends.
CLASSIFIERS: Final = ("head.", "head_dist.")


# Families of timm whose names may look like those of plain vision transformers.
DIFFERENCES: Final = {
    "eva": "the attention of EVA (with rotary positions in DINOv3, PE and EVA-02)",
    "beit": "relative positions",
    "vision_transformer_relpos": "relative positions",
    "vision_transformer_sam": "attention in windows",
    "naflexvit": "images of any shape",
}


@dataclass(frozen=True)
class Trunk:
    """A timm model in evaluation mode; `weights` is the file that its tensors came from.

    Its images have a side of `size` pixels, and of `native_size` if nothing else is asked for.
    """

    architecture: str
    pretrained: str
    weights: Path
    module: nn.Module
    size: int
    native_size: int


def load_trunk(name: str, size: int | None = None) -> Trunk:
    """Load `timm:ARCH.TAG` from timm's hub, or `timm:ARCH:PATH`, without its classifier.

    Images have a side of `size` pixels, or what the architecture says. timm itself converts the
    names of published files, and interpolates positions of another grid. Raises `UserError` if the
    architecture or tag is unknown, the architecture is not a plain vision transformer, the size
    does not fit it, or the weights do not fit or cannot be downloaded.
    """
    model_name, _, source = name.removeprefix(PREFIX).partition(":")
    architecture, _, tag = model_name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        transformers = [one for one in known if "vit" in one or "deit" in one]
        hint = did_you_mean(architecture, transformers) or ": see `taillift backbones timm:`"
        raise UserError(f"timm has no vision transformer {architecture!r}{hint}")
    known_name = model_name if tag in published_tags(architecture) else architecture
    blank = blank_trunk(known_name)
    native_size = image_side(blank)
    if size is not None:
        check_size(name, size, blank)
        blank = blank_trunk(known_name, size)
    if source:
        weights = Path(source).expanduser()
        if not weights.is_file():
            raise UserError(f"backbone {name!r}: there is no file {source}")
        pretrained = weights.name
    else:
        weights, pretrained = _download(model_name)
    tensors = {
        key: tensor
        for key, tensor in read_weights(weights).tensors.items()
        if not key.startswith(CLASSIFIERS)
    }
    _check_fit(weights, architecture, tensors, blank.state_dict())
    if "pos_embed" in tensors:
        tell_interpolation(name, tensors["pos_embed"].shape[-2], grid_side(blank))
    try:
        module: nn.Module = timm.create_model(
            known_name,
            pretrained=True,
            num_classes=0,
            # With the number of classes that is asked for, timm wants every tensor.
            pretrained_cfg_overlay={"state_dict": tensors, "num_classes": 0, "label_offset": 0},
            **({} if size is None else {"img_size": size}),
        )
    except Exception as error:
        found = mismatch(tensors, blank.state_dict()) or first_lines(error)
        raise UserError(f"{weights} does not load as {PREFIX}{model_name}: {found}") from error
    module.float().eval()
    return Trunk(architecture, pretrained, weights, module, image_side(blank), native_size)


def blank_trunk(model_name: str, size: int | None = None) -> nn.Module:
    """Return a supported timm model whose tensors have shapes and no numbers.

    Raises `UserError` if the model is not supported. Nothing is downloaded.
    """
    family = model_entrypoint(get_arch_name(model_name)).__module__.rpartition(".")[2]
    if family in DIFFERENCES:
        raise lacking(DIFFERENCES[family])
    changes = {} if size is None else {"img_size": size}
    try:
        with torch.device("meta"):
            module: nn.Module = timm.create_model(
                model_name, num_classes=0, weight_init="skip", **changes
            )
    except Exception as error:
        # Only transformers like those of `vision_transformer` take these options.
        raise unsupported(model_name) from error
    with torch.device("meta"), first_block_alone(module):
        convert(module)
    check_graph_size(module)
    return module


def preprocessing(module: nn.Module) -> dict[str, Any]:
    """Return `size` (height, width), `mean`, `std`, `interpolation` and `resize_mode`."""
    config = resolve_model_data_config(module)
    mode = "squash" if config["crop_mode"] == "squash" else "shortest"
    return {**config, "size": config["input_size"][1:], "resize_mode": mode}


def published_tags(architecture: str) -> list[str]:
    """Return the tags of an architecture's published weights."""
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]


def _check_fit(
    weights: Path, architecture: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """Raise `UserError` for what timm would bend or leave out in silence."""
    key = "patch_embed.proj.weight"
    if key in tensors and key in wanted and tensors[key].shape[2:] != wanted[key].shape[2:]:
        here, there = (one[key].shape[-1] for one in (tensors, wanted))
        raise refusal(
            weights, f"its patches have a side of {here} pixels, those of {architecture} {there}"
        )
    # timm takes whatever a SigLIP tower without attention pooling finds in a file.
    names = {name.removeprefix("visual.trunk.") for name in tensors}
    if "siglip" in architecture and (missing := wanted.keys() - names):
        raise UserError(f"{weights} does not load as {architecture}: it lacks {min(missing)}")


def _download(model_name: str) -> tuple[Path, str]:
    """Return the weight file and its tag: the architecture's first tag if the name has none."""
    architecture, _, tag = model_name.partition(".")
    tags = published_tags(architecture)
    config = get_pretrained_cfg(model_name) if not tag or tag in tags else None
    if config is None or config.hf_hub_id is None:
        raise UserError(
            f"timm has no weights {model_name!r}: name one of its tags, {architecture}."
            f"{{{','.join(tags)}}}, or a file, {PREFIX}{architecture}:PATH"
        )
    try:
        path = download_pretrained_from_hf(config.hf_hub_id, filename=WEIGHTS)
    except Exception as error:
        raise UserError(
            f"{PREFIX}{model_name} cannot be downloaded ({first_lines(error)}): fetch the weights "
            f"elsewhere and pass {PREFIX}{model_name}:PATH"
        ) from error
    return Path(path), config.tag
