"""A file of pretrained weights: what it is, found from its header and keys, and its tensors."""

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from taillift.models.errors import UserError, first_lines
from taillift.models.lift.pickled_tensors import (
    StandIn,
    TensorArchive,
    find_tensors,
    read_legacy,
)

# Files that are mistaken for weights, by their first bytes.
MAGIC: Final = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    b"<": "a web page: download the file itself",
    b"{": "JSON: pass the file of weights that belongs to it",
    b"GGUF": "a GGUF file of a language model",
    b"\x89HDF": "an HDF5 file, as of Keras: pass weights of torch",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"\x93NUMPY": "a NumPy array: pass weights of torch",
    b"BZh": "compressed with bzip2: unpack it",
    b"\xfd7zXZ": "compressed with xz: unpack it",
}
LEGACY: Final = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"

# What wraps a module leaves its name in front of all keys.
WRAPPING: Final = ("module.", "_orig_mod.", "model.", "clip_model.", "net.")
# OpenAI's archives carry these next to the weights, and no other file does.
OPENAI: Final = {"input_resolution", "context_length", "vocab_size"}
# Masks and indices that a module makes by itself.
MADE: Final = re.compile(r"(^|\.)(attn_mask|position_ids)$")

HUGGING_FACE: Final = {
    "vision_model.embeddings.patch_embedding.weight",
    "text_model.embeddings.token_embedding.weight",
    "visual_projection.weight",
}
# Patterns of Hugging Face's names, and what open_clip writes instead.
HUGGING_FACE_NAMES: Final = {
    r"^visual_projection\.weight$": "visual.proj",
    r"^text_projection\.weight$": "text_projection",
    r"^vision_model\.embeddings\.class_embedding$": "visual.class_embedding",
    r"^vision_model\.embeddings\.patch_embedding\.": "visual.conv1.",
    r"^vision_model\.embeddings\.position_embedding\.weight$": "visual.positional_embedding",
    r"^vision_model\.pre_layrnorm\.": "visual.ln_pre.",
    r"^vision_model\.post_layernorm\.": "visual.ln_post.",
    r"^vision_model\.encoder\.layers\.": "visual.transformer.resblocks.",
    r"^text_model\.embeddings\.token_embedding\.": "token_embedding.",
    r"^text_model\.embeddings\.position_embedding\.weight$": "positional_embedding",
    r"^text_model\.final_layer_norm\.": "ln_final.",
    r"^text_model\.encoder\.layers\.": "transformer.resblocks.",
    r"\.self_attn\.": ".attn.",
    r"\.layer_norm(\d)\.": r".ln_\1.",
    r"\.mlp\.fc1\.": ".mlp.c_fc.",
    r"\.mlp\.fc2\.": ".mlp.c_proj.",
}
# Models that no backbone is made of, by a pattern that one of their keys has.
FOREIGN: Final = {
    r"^vision_model\.head\.probe$": "Hugging Face's SiglipModel: pass a tag of ViT-*-SigLIP*",
    r"^vision_model\.encoder\.": "Hugging Face's CLIPVisionModel, without text: pass a CLIPModel",
    r"^text_model\.encoder\.": "Hugging Face's CLIPTextModel, without images: pass a CLIPModel",
    r"(^|\.)(rope_embed|storage_tokens)": "DINOv3, whose rotary positions taillift lacks",
    r"embeddings\.patch_embeddings\.projection\.weight$": (
        "a vision transformer of Hugging Face: pass the same model as timm has it"
    ),
    r"^(mask_decoder|prompt_encoder)\.": "SAM, a model for segmentation",
    r"^encoder\.layers\.encoder_layer_0\.": (
        "torchvision's vision transformer: pass timm's with its weights"
    ),
    r"^decoder_blocks\.0\.": "a masked autoencoder with its decoder: pass timm's `.mae` weights",
    r"relative_position_bias_table$|\.rel_pos": "a model with relative positions (BEiT, Swin)",
    r"blocks\.0\.attn\.(q_bias|inner_attn_ln|rope)": "EVA, whose blocks taillift lacks",
    r"^text_decoder\.": "CoCa, which also writes text",
    r"^(visual_encoder|text_encoder|vision_tower|vision_proj)\.": "BLIP or another captioner",
    r"lora_(A|B|down|up)\b": "a LoRA adapter without the model that it changes",
    r"^layer1\.0\.conv1\.weight$": "a ResNet without text: pass a CLIP ResNet",
    r"^(stages|downsample_layers|features)\.0\.": "a convolutional network",
    r"(^|\.)layers\.0\.self_attn\.q_proj|^h\.0\.|^bert\.|transformer\.h\.0\.": "a language model",
}


# What stands for each tensor of a file, by name, and a function that reads such tensors.
Contents = tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], dict[str, Tensor]]]


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file by their names, without the names of wrappers.

    `origin` says in words whose weights they are, if the file tells. `quick_gelu` says whether they
    were trained with QuickGELU; None if the file does not tell.
    """

    path: Path
    tensors: dict[str, Tensor]
    origin: str
    quick_gelu: bool | None


def read_weights(path: Path) -> WeightFile:
    """Recognise a weight file from its header and keys, and read its tensors.

    It may hold safetensors, a state dict or checkpoint of torch, or a TorchScript archive. No code
    in the file is run. The names of Hugging Face's CLIPModel become open_clip's. Raises `UserError`
    if the file is none of these or is damaged, if its model is of a kind that is not supported, or
    if a weight is infinite or not a number.
    """
    try:
        contents, load = _open(path)
        found = {name: one for name, one in plain_names(contents).items() if not MADE.search(name)}
        is_openai, is_hugging_face = found.keys() >= OPENAI, found.keys() >= HUGGING_FACE
        if not found:
            raise refusal(path, "it has no tensors by name")
        for pattern, title in () if is_hugging_face else FOREIGN.items():
            if any(re.search(pattern, name) for name in found):
                raise refusal(path, f"it is {title}")
        if is_openai:
            found = {name: one for name, one in found.items() if name not in OPENAI}
        tensors = load(found)
    except UserError:
        raise
    except Exception as error:
        raise refusal(path, f"it is damaged or cut off ({first_lines(error)})") from error
    for name, tensor in tensors.items():
        # Of numbers with 8 bits torch cannot tell.
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise refusal(path, f"{name} has a number that is infinite or not a number")
    if is_openai:
        return WeightFile(path, tensors, "OpenAI's", True)
    if is_hugging_face:
        tensors = from_hugging_face(tensors)
        return WeightFile(path, tensors, "Hugging Face's", stated_quick_gelu(path))
    return WeightFile(path, tensors, "", stated_quick_gelu(path))


def refusal(path: Path, reason: str) -> UserError:
    """Return the error for a file whose weights cannot be used."""
    return UserError(f"{path} does not load: {reason}")


def plain_names(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents without the names of wrappers; of a DINO teacher only its backbone."""
    names = dict(contents)
    while names:
        wrapper = next((one for one in WRAPPING if all(name.startswith(one) for name in names)), "")
        if not wrapper and any(name.startswith("backbone.") for name in names):
            wrapper = "backbone."
        if not wrapper:
            break
        names = {
            name.removeprefix(wrapper): one
            for name, one in names.items()
            if name.startswith(wrapper)
        }
    return names


def mismatch(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Return in a few words how tensors differ from those that a model wants; empty if they fit."""
    parts = []
    missing = [name for name in wanted if name not in tensors]
    unknown = [name for name in tensors if name not in wanted]
    for names, verb in ((missing, "it lacks"), (unknown, "the model lacks its")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            parts.append(f"{verb} {names[0]}{more}")
    for name in wanted.keys() & tensors.keys():
        here, there = list(tensors[name].shape), list(wanted[name].shape)
        if here != there:
            parts.append(f"its {name} is {here} and not {there}")
            break
    return ", ".join(parts)


def stated_quick_gelu(path: Path) -> bool | None:
    """Return what the config that is published next to a weight file says of QuickGELU."""
    try:
        for name in ("open_clip_config.json", "config.json"):
            config_path = path.with_name(name)
            if config_path.is_file():
                config = json.loads(config_path.read_text("utf-8"))
                if "model_cfg" in config:
                    return bool(config["model_cfg"].get("quick_gelu", False))
                return bool(config["vision_config"]["hidden_act"] == "quick_gelu")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a CLIPModel under open_clip's names.

    Projections are transposed; queries, keys and values become one packed matrix.
    """
    renamed = {}
    for name, tensor in tensors.items():
        if name in ("visual_projection.weight", "text_projection.weight"):
            tensor = tensor.t()
        for pattern, ours in HUGGING_FACE_NAMES.items():
            name = re.sub(pattern, ours, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [renamed.pop(name.replace("q_proj", f"{one}_proj")) for one in "qkv"]
        renamed[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return renamed


def _open(path: Path) -> Contents:
    """Read the header of a file. Raises `UserError` if its first bytes are not those of weights."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK"):
        return _open_archive(path)
    if start.startswith(LEGACY):
        try:
            return find_tensors(read_legacy(path)), dict
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f"its pickle names {named[1]}" if named else "its pickle is damaged"
            raise refusal(path, f"{what}: save the model's state_dict() alone") from None
    if start[8:9] == b"{":
        return _open_safetensors(path)
    for magic, title in MAGIC.items():
        if start.lstrip().startswith(magic):
            raise refusal(path, f"it is {title}")
    raise refusal(path, "it is neither safetensors nor a file of torch" if start else "it is empty")


def _open_archive(path: Path) -> Contents:
    try:
        archive = TensorArchive(path)
    except KeyError:
        raise refusal(
            path, "it is a zip archive (or NumPy's, of JAX), but none that torch has written"
        ) from None
    tree = archive.read()
    contents = find_tensors(tree)
    if not contents and isinstance(tree, StandIn):
        raise refusal(path, f"it holds an object of {tree.CLASS}, and no state dict")
    return contents, archive.load


def _open_safetensors(path: Path) -> Contents:
    with safe_open(path, "pt") as file:
        if "taillift" in (file.metadata() or {}):
            raise refusal(path, "it is a checkpoint of taillift: give it to `taillift export`")
        keys = {name: name for name in file.keys()}  # noqa: SIM118

    def load(names: Mapping[str, str]) -> dict[str, Tensor]:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(key) for name, key in names.items()}

    return keys, load
