"""Pretrained models: the built-in one, and those that open_clip and timm can load."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import (
    CLIP,
    CLIPVisionCfg,
    CustomTextCLIP,
    _build_vision_tower,
    convert_to_custom_text_state_dict,
    resize_text_pos_embed,
)
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import Tensor, nn

from taillift.models.architectures import PREFIX, QUICK
from taillift.models.default import architecture
from taillift.models.errors import UserError, did_you_mean, first_lines
from taillift.models.lift import timm_backbone
from taillift.models.lift.convert import convert, first_block_alone, projection, unsupported
from taillift.models.lift.model import check_graph_size
from taillift.models.lift.positions import check_size, fit_positions, grid_side
from taillift.models.lift.resnet import STRIDE
from taillift.models.lift.tower import Tower
from taillift.models.lift.weight_file import WeightFile, mismatch, read_weights

DEFAULT: Final = "default"
DEFAULT_FOLDER: Final = Path(__file__).parents[1] / "default"
DEFAULT_ARCHITECTURE: Final = architecture.vit_mini_lite2_224.__name__
ENCODE_BATCH: Final = 256
AT_SIZE: Final = re.compile(r"(.+)@(\d+)")

logger = logging.getLogger(__name__)


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
    """A loaded model. Its `tower` is frozen.

    `sha256` is that of the weight file or, for images of another size than the architecture's,
    which makes other weights of it, that of the file's digest and the size.

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
    _load_tokenizer: Callable[[], Any]

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower, from which a head can start."""
        return self._clip is not None

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Return unit text features, float [len(prompts), E].

        Raises `UserError` if there is no text tower or its tokenizer cannot be loaded.
        """
        if not self.has_text:
            raise UserError(
                f"backbone {self.name!r} has no text tower: start the head from class means, or "
                "take a CLIP model"
            )
        try:
            tokenizer = self._load_tokenizer()
        except Exception as error:
            raise UserError(
                f"backbone {self.name!r}: its tokenizer cannot be loaded ({first_lines(error)}): "
                "it needs the package transformers and, once, a download from Hugging Face; or "
                "start the head without text, with --set head.initial.name=class-mean"
            ) from error
        batches = [
            self._clip.encode_text(
                tokenizer(list(prompts[start : start + ENCODE_BATCH])), normalize=True
            )
            for start in range(0, len(prompts), ENCODE_BATCH)
        ]
        return torch.cat(batches)


@dataclass(frozen=True)
class ClipModel:
    """A model of open_clip that the name of a backbone stands for, before its weights are loaded.

    `config` and `preprocessing` are open_clip's. `size` is the side of images in pixels, or None
    for the config's.
    """

    name: str
    architecture: str
    tag: str
    config: dict[str, Any]
    preprocessing: dict[str, Any]
    size: int | None


def load_backbone(name: str = DEFAULT) -> Backbone:
    """Load `default`, an open_clip model or an image tower of timm.

    `ARCH:PRETRAINED_TAG` (downloaded by open_clip) and `ARCH:PATH` are open_clip models;
    `timm:ARCH.TAG` (downloaded from timm's hub) and `timm:ARCH:PATH` are towers without text. With
    `@SIZE` behind it, images have a side of so many pixels, and positions are interpolated.

    Raises `UserError` if the architecture or tag is unknown or not supported, if the weights do not
    fit or cannot be downloaded, if the tag was trained with another GELU than the architecture's,
    or if the size does not fit the patches.
    """
    source, size = name, None
    if not Path(name.rpartition(":")[2]).is_file() and (sized := AT_SIZE.fullmatch(name)):
        source, size = sized[1], int(sized[2])
    if source == DEFAULT:
        text = (DEFAULT_FOLDER / "open_clip_config.json").read_text("utf-8")
        settings = json.loads(text)
        config, preprocessing = settings["model_cfg"], settings["preprocess_cfg"]
        model = ClipModel(name, DEFAULT_ARCHITECTURE, DEFAULT, config, preprocessing, size)
        return _load_open_clip(model, read_weights(DEFAULT_FOLDER / "model.safetensors"))
    if source.startswith(PREFIX):
        return _load_timm(name, source, size)
    architecture, _, source = source.partition(":")
    if not source:
        raise UserError(
            f"backbone {name!r}: write `default`, ARCH:PRETRAINED_TAG, ARCH:PATH or timm:ARCH.TAG"
        )
    config = model_config(architecture)
    blank = blank_visual(config)
    if size is not None:
        check_size(name, size, blank)
    path = Path(source).expanduser()
    if path.is_file():
        file = read_weights(path)
        preprocessing = usual_preprocessing(architecture)
        model = ClipModel(name, architecture, path.name, config, preprocessing, size)
        return _load_open_clip(_with_activation(model, file), file)
    if "/" in source or path.suffix:
        raise UserError(
            f"backbone {name!r}: there is no file {source}; if it has moved, pass --backbone "
            f"{architecture}:PATH"
        )
    file = read_weights(_download(architecture, source))
    preprocessing = open_clip.get_pretrained_cfg(architecture, source)
    return _load_open_clip(ClipModel(name, architecture, source, config, preprocessing, size), file)


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


def model_config(architecture: str) -> dict[str, Any]:
    """Return open_clip's config of an architecture. Raises `UserError` if there is none."""
    known = open_clip.list_models()
    if architecture not in known:
        hint = did_you_mean(architecture, known) or ": see `taillift backbones`"
        raise UserError(f"open_clip has no architecture {architecture!r}{hint}")
    config: dict[str, Any] = open_clip.get_model_config(architecture)
    return config


def blank_visual(config: dict[str, Any]) -> nn.Module:
    """Return a supported image tower of open_clip whose tensors have shapes and no numbers.

    Raises `UserError` if the tower is not supported. Nothing is downloaded.
    """
    vision = config["vision_cfg"]
    if "multimodal_cfg" in config:
        raise unsupported("CoCa")
    if timm_name := vision.get("timm_model_name"):
        timm_backbone.blank_trunk(timm_name)
    with torch.device("meta"):
        visual: nn.Module = _build_vision_tower(
            config["embed_dim"],
            CLIPVisionCfg(**{**vision, "timm_model_pretrained": False}),
            config.get("quick_gelu", False),
        )
        with first_block_alone(visual):
            convert(visual)
        projection(visual)
    check_graph_size(visual)
    return visual


def activations(architecture: str) -> dict[str, list[str]]:
    """Return the published tags of an architecture by the activation they were trained with."""
    found: dict[str, list[str]] = {"GELU": [], "QuickGELU": []}
    for tag in open_clip.list_pretrained_tags_by_model(architecture):
        config = open_clip.get_pretrained_cfg(architecture, tag)
        found["QuickGELU" if config.get("quick_gelu") else "GELU"].append(tag)
    return found


def _with_activation(model: ClipModel, file: WeightFile) -> ClipModel:
    """Return the model with the activation that a weight file was trained with.

    If the file does not tell, the architecture's is used. Where this may be wrong, it is said.
    """
    names = {True: "QuickGELU", False: "GELU"}
    used = bool(model.config.get("quick_gelu", False))
    plain = model.architecture.removesuffix(QUICK)
    other = plain if used else plain + QUICK
    if file.quick_gelu is None:
        tags = activations(plain)
        if tags[names[not used]]:
            logger.warning(
                "%s: the file does not say its activation, so %s is used; of the published tags "
                "of %s, %d use GELU and %d QuickGELU (%s): for %s pass %s:PATH",
                model.name,
                names[used],
                plain,
                len(tags["GELU"]),
                len(tags["QuickGELU"]),
                ", ".join(tags["QuickGELU"]),
                names[not used],
                other,
            )
        return model
    if file.quick_gelu == used:
        return model
    logger.warning(
        "%s: %s weights were trained with %s, which is used instead of the %s of %s",
        model.name,
        file.origin or "these",
        names[not used],
        names[used],
        model.architecture,
    )
    architecture = other if other in open_clip.list_models() else model.architecture
    config = {**model.config, "quick_gelu": not used}
    return replace(model, architecture=architecture, config=config)


def _load_open_clip(model: ClipModel, file: WeightFile) -> Backbone:
    clip = _build_clip(model.config, model.size)
    _load_tensors(model, clip, file)
    clip.float().eval().requires_grad_(False)
    matrix, bias = projection(clip.visual)
    size = model.size or model.config["vision_cfg"]["image_size"]
    resized = size != model.config["vision_cfg"]["image_size"]
    settings = merge_preprocess_dict(asdict(PreprocessCfg()), model.preprocessing)
    embedded = model.architecture == DEFAULT_ARCHITECTURE
    tokenizer = f"local-dir:{DEFAULT_FOLDER}" if embedded else model.architecture
    return Backbone(
        name=model.name,
        architecture=model.architecture,
        pretrained=model.tag,
        sha256=_sha256(file.path, size if resized else None),
        tower=convert(clip.visual),
        projection=matrix,
        projection_bias=bias,
        image=_image_spec(clip.visual, {**settings, "size": size}),
        logit_scale=float(clip.logit_scale.exp()),
        _clip=clip,
        _load_tokenizer=partial(open_clip.get_tokenizer, tokenizer),
    )


def _build_clip(config: dict[str, Any], size: int | None) -> Any:
    """Return open_clip's model with random weights, for images with a side of `size` pixels."""
    options = {key: value for key, value in config.items() if key != "custom_text"}
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    text = {**config["text_cfg"], "hf_model_pretrained": False}
    if size is not None:
        vision["image_size"] = size
    custom = config.get("custom_text") or "hf_model_name" in text
    kind = CustomTextCLIP if custom else CLIP
    clip = kind(**{**options, "vision_cfg": vision, "text_cfg": text})
    if size is not None and isinstance(clip.visual, TimmModel):
        clip.visual.trunk.set_input_size(img_size=(size, size))
    return clip


def _load_tensors(model: ClipModel, clip: Any, file: WeightFile) -> None:
    """Load a file's tensors into open_clip's model. Raises `UserError` if they do not fit."""
    tensors = convert_state_dict(clip, file.tensors)
    if "positional_embedding" in tensors and not hasattr(clip, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    wanted = clip.state_dict()
    for key in ("logit_scale", "logit_bias"):
        if key in tensors and key in wanted:
            tensors[key] = tensors[key].reshape(wanted[key].shape)
    if "logit_bias" in wanted:
        tensors.setdefault("logit_bias", torch.zeros_like(wanted["logit_bias"]))
    fit_positions(model.name, tensors, clip)
    resize_text_pos_embed(tensors, clip)
    if found := mismatch(tensors, wanted):
        raise UserError(f"{file.path} does not load as {model.architecture}: {found}")
    clip.load_state_dict(tensors)


def _load_timm(name: str, source: str, size: int | None) -> Backbone:
    trunk = timm_backbone.load_trunk(source, size)
    preprocessing = timm_backbone.preprocessing(trunk.module)
    return Backbone(
        name=name,
        architecture=f"{PREFIX}{trunk.architecture}",
        pretrained=trunk.pretrained,
        sha256=_sha256(trunk.weights, trunk.size if trunk.size != trunk.native_size else None),
        tower=convert(trunk.module),
        projection=None,
        projection_bias=None,
        image=_image_spec(trunk.module, {**preprocessing, "size": trunk.size}),
        logit_scale=1.0,
        _clip=None,
        _load_tokenizer=lambda: None,
    )


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
    patch = STRIDE if isinstance(visual, ModifiedResNet) else height // grid_side(visual)
    return ImageSpec(
        size=height,
        patch=patch,
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        interpolation=preprocessing["interpolation"],
        resize_mode=preprocessing["resize_mode"],
    )


def _sha256(path: Path, size: int | None) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest if size is None else hashlib.sha256(f"{digest}@{size}".encode()).hexdigest()
