"""Pretrained models: the embedded one, and those that open_clip and timm can load."""

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import Tensor

from taillift.models.default import architecture
from taillift.models.errors import UserError
from taillift.models.lift import timm_backbone
from taillift.models.lift.convert import convert, projection, unsupported
from taillift.models.lift.resnet import STRIDE
from taillift.models.lift.timm_backbone import first_lines
from taillift.models.lift.tower import Tower

DEFAULT: Final = "default"
DEFAULT_FOLDER: Final = Path(__file__).parents[1] / "default"
DEFAULT_ARCHITECTURE: Final = architecture.vit_mini_lite2_224.__name__
ENCODE_BATCH: Final = 256


@dataclass(frozen=True)
class ImageSpec:
    """What the tower expects of its input; `patch` is the side of one patch in pixels.

    Of a ResNet it is the side of one cell of its last grid.
    """

    size: int
    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str


@dataclass(frozen=True)
class Backbone:
    """A loaded model: `tower` is frozen, `sha256` is the weight file's.

    `projection` [D, E] and `projection_bias` [E] lead from the tower's features to the space that
    images share with text; without a projection the features are in that space already.
    """

    name: str
    architecture: str
    pretrained: str
    sha256: str
    tower: Tower
    projection: Tensor | None
    projection_bias: Tensor | None
    image: ImageSpec
    logit_scale: float
    _clip: Any
    _tokenizer: Any

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower for a head to start from."""
        return self._clip is not None

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Unit text features, float [len(prompts), E]; raises `UserError` without a text tower."""
        if not self.has_text:
            raise UserError(
                f"backbone {self.name!r} has no text tower: start the head from class means, or "
                "take a CLIP model"
            )
        parts = [
            self._clip.encode_text(
                self._tokenizer(list(prompts[start : start + ENCODE_BATCH])), normalize=True
            )
            for start in range(0, len(prompts), ENCODE_BATCH)
        ]
        return torch.cat(parts)


def load_backbone(name: str = DEFAULT) -> Backbone:
    """Load `default`, an open_clip model or an image tower of timm.

    `ARCH:PRETRAINED_TAG` (downloaded by open_clip) or `ARCH:PATH` is an open_clip model;
    `timm:ARCH.TAG` (downloaded from timm's hub) or `timm:ARCH:PATH` a tower without text.

    Raises `UserError` where the architecture or tag is not known or not supported, the weights or
    the tokenizer do not fit or cannot be had, or the tag was trained with the other GELU.
    """
    if name == DEFAULT:
        weights = DEFAULT_FOLDER / "model.safetensors"
        return _load(name, f"local-dir:{DEFAULT_FOLDER}", None, weights)
    if name.startswith(timm_backbone.PREFIX):
        return _load_trunk(name)
    architecture, _, source = name.partition(":")
    if not source:
        raise UserError(
            f"backbone {name!r}: write `default`, ARCH:PRETRAINED_TAG, ARCH:PATH or timm:ARCH.TAG"
        )
    _check_architecture(architecture)
    path = Path(source).expanduser()
    if path.is_file():
        return _load(name, architecture, str(path), path, usual_preprocessing(architecture))
    if "/" in source or path.suffix:
        raise UserError(
            f"backbone {name!r}: there is no file {source}; if it has moved, pass --backbone "
            f"{architecture}:PATH"
        )
    return _load(name, architecture, source, _download(architecture, source))


def _load(
    name: str,
    model_name: str,
    pretrained: str | None,
    weights: Path,
    preprocessing: dict[str, Any] | None = None,
) -> Backbone:
    architecture = DEFAULT_ARCHITECTURE if pretrained is None else model_name
    tokenizer = _tokenizer(name, model_name)
    try:
        clip = open_clip.create_model(
            model_name, pretrained, force_preprocess_cfg=preprocessing, weights_only=True
        )
    except Exception as error:
        raise UserError(
            f"backbone {name!r}: {weights} does not load as {architecture}: {first_lines(error)}"
        ) from error
    clip.float().eval().requires_grad_(False)
    matrix, bias = projection(clip.visual)
    return Backbone(
        name=name,
        architecture=architecture,
        pretrained=DEFAULT if pretrained is None else Path(pretrained).name,
        sha256=_sha256(weights),
        tower=convert(clip.visual),
        projection=matrix,
        projection_bias=bias,
        image=_image_spec(clip.visual, open_clip.get_model_preprocess_cfg(clip)),
        logit_scale=float(clip.logit_scale.exp()),
        _clip=clip,
        _tokenizer=tokenizer,
    )


def _load_trunk(name: str) -> Backbone:
    source = timm_backbone.load_trunk(name)
    return Backbone(
        name=name,
        architecture=f"{timm_backbone.PREFIX}{source.architecture}",
        pretrained=source.pretrained,
        sha256=_sha256(source.weights),
        tower=convert(source.module),
        projection=None,
        projection_bias=None,
        image=_image_spec(source.module, timm_backbone.preprocessing(source.module)),
        logit_scale=1.0,
        _clip=None,
        _tokenizer=None,
    )


def _tokenizer(name: str, model_name: str) -> Any:
    try:
        return open_clip.get_tokenizer(model_name)
    except Exception as error:
        raise UserError(
            f"backbone {name!r}: its tokenizer cannot be had ({first_lines(error)}): it needs the "
            "package transformers and a download from Hugging Face, once"
        ) from error


def _check_architecture(architecture: str) -> None:
    known = open_clip.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see open_clip.list_models()"
        raise UserError(f"open_clip has no architecture {architecture!r}: {hint}")
    config = open_clip.get_model_config(architecture) or {}
    timm_name = config["vision_cfg"].get("timm_model_name", "vit_")
    if "multimodal_cfg" in config:
        raise unsupported("CoCa")
    if not timm_name.startswith("vit_"):
        raise unsupported(timm_name)


def _download(architecture: str, tag: str) -> Path:
    config = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise UserError(
            f"{architecture} has no pretrained tag {tag!r} and no such file exists; tags: {tags}"
        )
    _check_activation(architecture, tag, bool(config.get("quick_gelu", False)))
    try:
        return Path(open_clip.download_pretrained(config))
    except Exception as error:
        raise UserError(
            f"{architecture}:{tag} cannot be downloaded ({first_lines(error)}): "
            f"fetch the weights elsewhere and pass {architecture}:PATH"
        ) from error


def _check_activation(architecture: str, tag: str, trained_quick: bool) -> None:
    config = open_clip.get_model_config(architecture) or {}
    if bool(config.get("quick_gelu", False)) == trained_quick:
        return
    plain = architecture.removesuffix("-quickgelu")
    right = f"{plain}-quickgelu" if trained_quick else plain
    used = "QuickGELU" if trained_quick else "GELU"
    raise UserError(
        f"{architecture}:{tag} was trained with {used}, which {architecture} does not use: "
        f"pass {right}:{tag}"
    )


def usual_preprocessing(architecture: str) -> dict[str, Any]:
    """What all published weights of an architecture agree on, for a file that does not say."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    configs = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    usual = {}
    for key in ("mean", "std", "interpolation", "resize_mode"):
        values = [config.get(key) for config in configs]
        if values and values[0] and values.count(values[0]) == len(values):
            usual[key] = values[0]
    return usual


def _image_spec(visual: Any, preprocessing: dict[str, Any]) -> ImageSpec:
    size = _side(preprocessing["size"])
    return ImageSpec(
        size=size,
        patch=_patch(visual, size),
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        interpolation=preprocessing["interpolation"],
        resize_mode=preprocessing["resize_mode"],
    )


def _side(size: int | Sequence[int]) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(
            f"the backbone takes images of {width} x {height} pixels: only squares work"
        )
    return height


def _patch(visual: Any, size: int) -> int:
    if isinstance(visual, ModifiedResNet):
        return STRIDE
    if isinstance(visual, TimmModel):
        visual = visual.trunk
    embedding = visual.patch_embed if hasattr(visual, "patch_embed") else visual
    return size // int(embedding.grid_size[0])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
