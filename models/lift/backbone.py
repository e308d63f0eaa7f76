"""Pretrained image-text models: the embedded one and whatever open_clip can load."""

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from torch import Tensor

from models import UserError
from models.lift import hybrid
from models.lift.convert import convert, projection
from models.lift.tower import Tower

DEFAULT: Final = "default"
DEFAULT_FOLDER: Final = Path(__file__).parents[1] / "default"
DEFAULT_ARCHITECTURE: Final = hybrid.vit_mini_lite2_224.__name__
ENCODE_BATCH: Final = 256


@dataclass(frozen=True)
class ImageSpec:
    """What the tower expects of its input; `patch` is the side of one patch in pixels."""

    size: int
    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str


@dataclass(frozen=True)
class Backbone:
    """A loaded model: `tower` is frozen, `projection` is [D, E], `sha256` is the weight file's."""

    name: str
    architecture: str
    pretrained: str
    sha256: str
    tower: Tower
    projection: Tensor
    image: ImageSpec
    logit_scale: float
    _clip: Any
    _tokenizer: Any

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Unit text features, float [len(prompts), E]."""
        parts = [
            self._clip.encode_text(
                self._tokenizer(list(prompts[start : start + ENCODE_BATCH])), normalize=True
            )
            for start in range(0, len(prompts), ENCODE_BATCH)
        ]
        return torch.cat(parts)


def load_backbone(name: str = DEFAULT) -> Backbone:
    """Load `default`, `ARCH:PRETRAINED_TAG` (downloaded by open_clip) or `ARCH:PATH`.

    Raises `UserError` where the architecture or tag is not known, the weights do not fit or cannot
    be had, or the tag was trained with the other GELU.
    """
    if name == DEFAULT:
        weights = DEFAULT_FOLDER / "model.safetensors"
        return _load(name, f"local-dir:{DEFAULT_FOLDER}", None, weights)
    architecture, _, source = name.partition(":")
    if not source:
        raise UserError(f"backbone {name!r}: write `default`, ARCH:PRETRAINED_TAG or ARCH:PATH")
    _check_architecture(architecture)
    path = Path(source).expanduser()
    if path.is_file():
        return _load(name, architecture, str(path), path, _usual_preprocessing(architecture))
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
    try:
        clip = open_clip.create_model(
            model_name, pretrained, force_preprocess_cfg=preprocessing, weights_only=True
        )
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:
        raise UserError(f"backbone {name!r}: {weights} does not load: {_reason(error)}") from error
    clip.float().eval().requires_grad_(False)
    return Backbone(
        name=name,
        architecture=DEFAULT_ARCHITECTURE if pretrained is None else model_name,
        pretrained=DEFAULT if pretrained is None else Path(pretrained).name,
        sha256=_sha256(weights),
        tower=convert(clip.visual),
        projection=projection(clip.visual),
        image=_image_spec(clip),
        logit_scale=float(clip.logit_scale.exp()),
        _clip=clip,
        _tokenizer=tokenizer,
    )


def _check_architecture(architecture: str) -> None:
    known = open_clip.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see open_clip.list_models()"
        raise UserError(f"open_clip has no architecture {architecture!r}: {hint}")


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
            f"{architecture}:{tag} cannot be downloaded ({_reason(error)}): "
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


def _usual_preprocessing(architecture: str) -> dict[str, Any] | None:
    """What all published weights of an architecture agree on, for a file that does not say."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    configs = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    keys = ("mean", "std", "interpolation", "resize_mode")
    usual = {
        key: configs[0][key]
        for key in keys
        if configs
        and all(config.get(key) == configs[0].get(key) for config in configs)
        and configs[0].get(key)
    }
    return usual or None


def _image_spec(clip: Any) -> ImageSpec:
    config = open_clip.get_model_preprocess_cfg(clip)
    size = clip.visual.image_size[0]
    native = type(clip.visual).__name__ == "VisionTransformer"
    grid = clip.visual.grid_size if native else clip.visual.trunk.patch_embed.grid_size
    return ImageSpec(
        size=size,
        patch=size // grid[0],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        resize_mode=config["resize_mode"],
    )


def _reason(error: Exception) -> str:
    """The start of an exception's text, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:300] or type(error).__name__


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
