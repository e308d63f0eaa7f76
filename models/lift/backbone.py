"""Pretrained models: the built-in one, and those that open_clip and timm can load."""

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
from taillift.models.errors import UserError, did_you_mean, first_lines
from taillift.models.lift import timm_backbone
from taillift.models.lift.convert import convert, projection, unsupported
from taillift.models.lift.resnet import STRIDE
from taillift.models.lift.tower import Tower

DEFAULT: Final = "default"
DEFAULT_FOLDER: Final = Path(__file__).parents[1] / "default"
DEFAULT_ARCHITECTURE: Final = architecture.vit_mini_lite2_224.__name__
ENCODE_BATCH: Final = 256


@dataclass(frozen=True)
class ImageSpec:
    """The input that a tower expects: square images of side `size`, and their preprocessing.

    `patch` is the side of one patch in pixels; in a ResNet, of one cell of its last grid.
    """

    size: int
    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str


@dataclass(frozen=True)
class Backbone:
    """A loaded model. Its `tower` is frozen; `sha256` is that of the weight file.

    `projection` [D, E] and `projection_bias` [E] map the tower's features to the space that images
    share with text. Without a projection the features are in that space already.
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
        """Whether there is a text tower, from which a head can start."""
        return self._clip is not None

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Return unit text features, float [len(prompts), E].

        Raises `UserError` if there is no text tower.
        """
        if not self.has_text:
            raise UserError(
                f"backbone {self.name!r} has no text tower: start the head from class means, or "
                "take a CLIP model"
            )
        batches = [
            self._clip.encode_text(
                self._tokenizer(list(prompts[start : start + ENCODE_BATCH])), normalize=True
            )
            for start in range(0, len(prompts), ENCODE_BATCH)
        ]
        return torch.cat(batches)


def load_backbone(name: str = DEFAULT) -> Backbone:
    """Load `default`, an open_clip model or an image tower of timm.

    `ARCH:PRETRAINED_TAG` (downloaded by open_clip) and `ARCH:PATH` are open_clip models;
    `timm:ARCH.TAG` (downloaded from timm's hub) and `timm:ARCH:PATH` are towers without text.

    Raises `UserError` if the architecture or tag is unknown or not supported, if the weights or the
    tokenizer do not fit or cannot be downloaded, or if the tag was trained with another GELU than
    the architecture's.
    """
    if name == DEFAULT:
        weights = DEFAULT_FOLDER / "model.safetensors"
        return _load_open_clip(name, f"local-dir:{DEFAULT_FOLDER}", None, weights)
    if name.startswith(timm_backbone.PREFIX):
        return _load_timm(name)
    architecture, _, source = name.partition(":")
    if not source:
        raise UserError(
            f"backbone {name!r}: write `default`, ARCH:PRETRAINED_TAG, ARCH:PATH or timm:ARCH.TAG"
        )
    _check_architecture(architecture)
    path = Path(source).expanduser()
    if path.is_file():
        preprocessing = usual_preprocessing(architecture)
        return _load_open_clip(name, architecture, str(path), path, preprocessing)
    if "/" in source or path.suffix:
        raise UserError(
            f"backbone {name!r}: there is no file {source}; if it has moved, pass --backbone "
            f"{architecture}:PATH"
        )
    return _load_open_clip(name, architecture, source, _download(architecture, source))


def usual_preprocessing(architecture: str) -> dict[str, Any]:
    """Return the preprocessing that all published weights of an architecture have in common.

    It is for a weight file, which does not say how its images were prepared.
    """
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    configs = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    usual = {}
    for key in ("mean", "std", "interpolation", "resize_mode"):
        values = [config.get(key) for config in configs]
        if values and values[0] and values.count(values[0]) == len(values):
            usual[key] = values[0]
    return usual


def _load_open_clip(
    name: str,
    model_name: str,
    pretrained: str | None,
    weights: Path,
    preprocessing: dict[str, Any] | None = None,
) -> Backbone:
    architecture = DEFAULT_ARCHITECTURE if pretrained is None else model_name
    try:
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:
        raise UserError(
            f"backbone {name!r}: its tokenizer cannot be loaded ({first_lines(error)}): it needs "
            "the package transformers and, once, a download from Hugging Face"
        ) from error
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


def _load_timm(name: str) -> Backbone:
    trunk = timm_backbone.load_trunk(name)
    return Backbone(
        name=name,
        architecture=f"{timm_backbone.PREFIX}{trunk.architecture}",
        pretrained=trunk.pretrained,
        sha256=_sha256(trunk.weights),
        tower=convert(trunk.module),
        projection=None,
        projection_bias=None,
        image=_image_spec(trunk.module, timm_backbone.preprocessing(trunk.module)),
        logit_scale=1.0,
        _clip=None,
        _tokenizer=None,
    )


def _check_architecture(architecture: str) -> None:
    """Raise `UserError` for an unsupported architecture, before its weights are downloaded."""
    known = open_clip.list_models()
    if architecture not in known:
        hint = did_you_mean(architecture, known) or ": see open_clip.list_models()"
        raise UserError(f"open_clip has no architecture {architecture!r}{hint}")
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
    # Weights load into either kind of MLP without an error, and then give poor features.
    model_config = open_clip.get_model_config(architecture) or {}
    trained_quick = bool(config.get("quick_gelu", False))
    if bool(model_config.get("quick_gelu", False)) != trained_quick:
        plain = architecture.removesuffix("-quickgelu")
        right = f"{plain}-quickgelu" if trained_quick else plain
        raise UserError(
            f"{architecture}:{tag} was trained with {'QuickGELU' if trained_quick else 'GELU'}, "
            f"which {architecture} does not use: pass {right}:{tag}"
        )
    try:
        return Path(open_clip.download_pretrained(config))
    except Exception as error:
        raise UserError(
            f"{architecture}:{tag} cannot be downloaded ({first_lines(error)}): "
            f"fetch the weights elsewhere and pass {architecture}:PATH"
        ) from error


def _image_spec(visual: Any, preprocessing: dict[str, Any]) -> ImageSpec:
    size = preprocessing["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(
            f"the backbone takes images of {width} x {height} pixels: only squares work"
        )
    if isinstance(visual, ModifiedResNet):
        patch = STRIDE
    else:
        trunk = visual.trunk if isinstance(visual, TimmModel) else visual
        embedding = trunk.patch_embed if hasattr(trunk, "patch_embed") else trunk
        patch = height // int(embedding.grid_size[0])
    return ImageSpec(
        size=height,
        patch=patch,
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        interpolation=preprocessing["interpolation"],
        resize_mode=preprocessing["resize_mode"],
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
