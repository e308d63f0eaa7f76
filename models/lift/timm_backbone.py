"""Image towers of timm without a text tower, such as those pretrained on ImageNet-21k."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import timm
from open_clip.pretrained import download_pretrained_from_hf
from timm.data import resolve_model_data_config
from timm.models import get_arch_name, get_pretrained_cfg
from timm.models import load_state_dict as read_tensors
from torch import nn

from taillift.models.errors import UserError, did_you_mean, first_lines

PREFIX: Final = "timm:"
WEIGHTS: Final = "model.safetensors"


@dataclass(frozen=True)
class Trunk:
    """A timm model in evaluation mode; `weights` is the file that its tensors came from."""

    architecture: str
    pretrained: str
    weights: Path
    module: nn.Module


def load_trunk(name: str) -> Trunk:
    """Load `timm:ARCH.TAG` from timm's hub, or `timm:ARCH:PATH`, without its classifier.

    Raises `UserError` if the architecture or tag is unknown, the weights do not fit or cannot be
    downloaded, or the architecture is not a plain vision transformer.
    """
    model_name, _, source = name.removeprefix(PREFIX).partition(":")
    architecture = get_arch_name(model_name)
    known = timm.list_models("vit_*")
    if architecture not in known:
        hint = did_you_mean(architecture, known) or ": see timm.list_models('vit_*')"
        raise UserError(f"timm has no vision transformer {architecture!r}{hint}")
    if source:
        weights = Path(source).expanduser()
        if not weights.is_file():
            raise UserError(f"backbone {name!r}: there is no file {source}")
        pretrained = weights.name
    else:
        weights, pretrained = _download(model_name)
    module: nn.Module = timm.create_model(model_name, num_classes=0)
    try:
        tensors = read_tensors(str(weights), weights_only=True)
        module.load_state_dict(
            {key: tensor for key, tensor in tensors.items() if not key.startswith("head.")}
        )
    except Exception as error:
        raise UserError(
            f"backbone {name!r}: {weights} does not load as {model_name}: {first_lines(error)}"
        ) from error
    return Trunk(architecture, pretrained, weights, module.float().eval())


def preprocessing(module: nn.Module) -> dict[str, Any]:
    """Return `size` (height, width), `mean`, `std`, `interpolation` and `resize_mode`."""
    config = resolve_model_data_config(module)
    mode = "squash" if config["crop_mode"] == "squash" else "shortest"
    return {**config, "size": config["input_size"][1:], "resize_mode": mode}


def _download(model_name: str) -> tuple[Path, str]:
    """Return the weight file and its tag: the architecture's first tag if the name has none."""
    architecture, _, tag = model_name.partition(".")
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
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
