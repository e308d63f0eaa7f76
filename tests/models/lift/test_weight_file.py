"""Weight files are known for what they are, and load without running anything in them."""

import argparse
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone, load_backbone
from tests.support.sources import randomised
from tests.support.tiny import ARCHITECTURE, CONFIG, register

OPENAI: Final = {
    "input_resolution": torch.tensor(32),
    "context_length": torch.tensor(77),
    "vocab_size": torch.tensor(49408),
}
Tensors = dict[str, Tensor]


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    register(folder)
    (folder / "Tiny-Pair.json").write_text(json.dumps(CONFIG))
    (folder / "Tiny-Pair-quickgelu.json").write_text(json.dumps({**CONFIG, "quick_gelu": True}))
    open_clip.add_model_config(folder)
    return folder


def model_of(quick_gelu: bool = False) -> Any:
    return randomised(open_clip.create_model(ARCHITECTURE, force_quick_gelu=quick_gelu))


def with_module(tensors: Tensors) -> Tensors:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def as_hugging_face(tensors: Tensors) -> Tensors:
    """Write open_clip's tensors under the names of transformers' CLIPModel."""
    names = {
        r"^visual\.class_embedding$": "vision_model.embeddings.class_embedding",
        r"^visual\.conv1\.": "vision_model.embeddings.patch_embedding.",
        r"^visual\.positional_embedding$": "vision_model.embeddings.position_embedding.weight",
        r"^visual\.ln_pre": "vision_model.pre_layrnorm",
        r"^visual\.ln_post": "vision_model.post_layernorm",
        r"^visual\.transformer\.resblocks": "vision_model.encoder.layers",
        r"^visual\.proj$": "visual_projection.weight",
        r"^text_projection$": "text_projection.weight",
        r"^token_embedding": "text_model.embeddings.token_embedding",
        r"^positional_embedding$": "text_model.embeddings.position_embedding.weight",
        r"^ln_final": "text_model.final_layer_norm",
        r"^transformer\.resblocks": "text_model.encoder.layers",
        r"\.ln_(\d)": r".layer_norm\1",
        r"mlp\.c_fc": "mlp.fc1",
        r"mlp\.c_proj": "mlp.fc2",
    }
    found = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    for name, tensor in tensors.items():
        for pattern, theirs in names.items():
            name = re.sub(pattern, theirs, name)
        if name.endswith("_projection.weight"):
            tensor = tensor.t().contiguous()
        if ".attn.in_proj_" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                key = name.replace("attn.in_proj_", f"self_attn.{letter}_proj.")
                found[key] = part.clone()
        else:
            found[name.replace(".attn.", ".self_attn.")] = tensor
    return found


def check(backbone: Backbone, source: Any) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    prompts = ["a cat", "two cups of coffee"]
    assert backbone.projection is not None
    with torch.no_grad():
        images = backbone.tower(pixels) @ backbone.projection
        assert torch.allclose(images, source.encode_image(pixels), atol=1e-5)
        tokens = open_clip.get_tokenizer(ARCHITECTURE)(prompts)
        texts = source.encode_text(tokens, normalize=True)
    assert torch.allclose(backbone.encode_text(prompts), texts, atol=1e-5)


FORMS: Final[dict[str, Callable[[Tensors], Any]]] = {
    "open_clip": dict,
    "laion": lambda tensors: {"epoch": 3, "name": "run", "state_dict": tensors, "optimizer": {}},
    "hugging-face": as_hugging_face,
    "model": lambda tensors: {"model": tensors, "args": argparse.Namespace(lr=0.1)},
    "model_state_dict": lambda tensors: {"model_state_dict": tensors, "best": np.float64(71.2)},
    "state_dict": lambda tensors: {
        "state_dict": tensors,
        "args": argparse.Namespace(path=Path("x"), tags={"a"}),
        "losses": [np.float32(1), np.arange(3)],
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "ema": lambda tensors: {
        "state_dict": {name: torch.zeros_like(one) for name, one in tensors.items()},
        "state_dict_ema": tensors,
    },
    "compiled": lambda tensors: {f"_orig_mod.{name}": one for name, one in tensors.items()},
    "lightning": lambda tensors: {"state_dict": {f"model.{k}": v for k, v in tensors.items()}},
    "nested": lambda tensors: {"step": 1, "weights": {"model": tensors}},
}


@pytest.mark.parametrize("wrap", [dict, with_module], ids=["plain", "module"])
@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_of_torch_loads(
    form: str, wrap: Callable[[Tensors], Tensors], tmp_path: Path
) -> None:
    source = model_of()
    content = FORMS[form](wrap(source.state_dict()))
    if form == "hugging-face":
        content = wrap(as_hugging_face(source.state_dict()))
    torch.save(content, tmp_path / "weights.pt")
    check(load_backbone(f"{ARCHITECTURE}:{tmp_path / 'weights.pt'}"), source)


@pytest.mark.parametrize("wrap", [dict, with_module], ids=["plain", "module"])
@pytest.mark.parametrize("form", ["open_clip", "hugging-face", "compiled"])
def test_safetensors_load(form: str, wrap: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    source = model_of()
    save_file(wrap(FORMS[form](source.state_dict())), tmp_path / "weights.safetensors")
    check(load_backbone(f"{ARCHITECTURE}:{tmp_path / 'weights.safetensors'}"), source)


@pytest.mark.parametrize("form", ["open_clip", "laion", "model", "model_state_dict"])
def test_a_checkpoint_of_an_old_torch_loads(form: str, tmp_path: Path) -> None:
    source = model_of()
    path = tmp_path / "weights.pth"
    torch.save(FORMS[form](source.state_dict()), path, _use_new_zipfile_serialization=False)
    check(load_backbone(f"{ARCHITECTURE}:{path}"), source)


def test_a_whole_pickled_model_gives_its_weights(tmp_path: Path) -> None:
    source = model_of()
    torch.save({"model": source, "epoch": 3}, tmp_path / "model.pt")
    check(load_backbone(f"{ARCHITECTURE}:{tmp_path / 'model.pt'}"), source)


class OpenAIClip(nn.Module):
    """OpenAI's model as it is traced: with its sizes next to the weights."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        for name, part in clip.named_children():
            self.add_module(name, part)
        for name, parameter in clip.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, size in OPENAI.items():
            self.register_buffer(name, size)
        self.register_buffer("attn_mask", clip.attn_mask)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.get_submodule("visual")(pixels)
        return features


@pytest.mark.parametrize("form", ["archive", "state-dict", "module", "safetensors"])
@pytest.mark.parametrize(
    ("architecture", "known_as"),
    [(ARCHITECTURE, ARCHITECTURE), ("Tiny-Pair", "Tiny-Pair-quickgelu")],
)
def test_openai_weights_are_known_by_their_sizes_and_get_quickgelu(
    form: str,
    architecture: str,
    known_as: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = model_of(quick_gelu=True)
    tensors = {**source.state_dict(), **OPENAI}
    path = tmp_path / "ViT.pt"
    if form == "archive":
        with warnings.catch_warnings():
            # torch advises against tracing, which is how OpenAI made its archives.
            warnings.simplefilter("ignore")
            pixels = torch.zeros(1, 3, 32, 32)
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                OpenAIClip(source), pixels, check_trace=False
            )
            torch.jit.save(traced, path)
    elif form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(with_module(tensors) if form == "module" else tensors, path)
    backbone = load_backbone(f"{architecture}:{path}")
    check(backbone, source)
    assert backbone.architecture == known_as
    (line,) = [one.getMessage() for one in caplog.records if one.name.startswith("taillift")]
    assert "OpenAI's weights were trained with QuickGELU, which is used instead of" in line


def test_half_precision_of_openai_is_read_as_float(tmp_path: Path) -> None:
    source = model_of(quick_gelu=True).half().float()
    half = {name: tensor.half() for name, tensor in source.state_dict().items()}
    torch.save({**half, **OPENAI}, tmp_path / "half.pt")
    check(load_backbone(f"{ARCHITECTURE}:{tmp_path / 'half.pt'}"), source)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("config.json", {"vision_config": {"hidden_act": "quick_gelu"}}),
        ("open_clip_config.json", {"model_cfg": {"quick_gelu": True}}),
    ],
)
def test_a_config_next_to_the_file_says_the_activation(
    name: str, config: object, tmp_path: Path
) -> None:
    source = model_of(quick_gelu=True)
    save_file(as_hugging_face(source.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / name).write_text(json.dumps(config))
    check(load_backbone(f"{ARCHITECTURE}:{tmp_path / 'model.safetensors'}"), source)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ViT-B-32, which are the same for both activations."""
    path = tmp_path_factory.mktemp("base") / "mine.safetensors"
    save_file(open_clip.create_model("ViT-B-32", pretrained_text=False).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("architecture", "used"), [("ViT-B-32", "GELU"), ("ViT-B-32-quickgelu", "QuickGELU")]
)
def test_an_activation_that_the_file_does_not_say_is_told_in_one_line(
    architecture: str, used: str, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_backbone(f"{architecture}:{base}")
    (line,) = [one.getMessage() for one in caplog.records if one.name.startswith("taillift")]
    assert f"so {used} is used; of the published tags of ViT-B-32" in line
    assert "QuickGELU (openai, " in line


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "tensor", ["visual.proj", "visual.transformer.resblocks.1.ln_2.bias", "logit_scale"]
)
def test_a_weight_that_is_not_finite_is_refused_by_name(
    bad: float, suffix: str, tensor: str, tmp_path: Path
) -> None:
    tensors = model_of().state_dict()
    tensors[tensor].view(-1)[-1] = bad
    path = tmp_path / f"bad{suffix}"
    if suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    with pytest.raises(UserError, match=rf"{tensor} has a number that is infinite or not"):
        load_backbone(f"{ARCHITECTURE}:{path}")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_short_floats_are_read_as_float(kind: torch.dtype, tmp_path: Path) -> None:
    source = model_of()
    short = {name: tensor.to(kind) for name, tensor in source.state_dict().items()}
    path = tmp_path / "short.safetensors"
    save_file(short, path)
    source.load_state_dict({name: tensor.float() for name, tensor in short.items()})
    check(load_backbone(f"{ARCHITECTURE}:{path}"), source)
    short["visual.proj"].view(-1)[-1] = float("nan")
    save_file(short, path)
    with pytest.raises(UserError, match=r"visual\.proj has a number that is infinite or not"):
        load_backbone(f"{ARCHITECTURE}:{path}")


ONE: Final = torch.zeros(1)
FOREIGN: Final[dict[str, tuple[object, str]]] = {
    "siglip": ({"vision_model.head.probe": ONE, "text_model.head.weight": ONE}, "SiglipModel"),
    "vision-only": (
        {"vision_model.encoder.layers.0.mlp.fc1.weight": ONE},
        "CLIPVisionModel, without text",
    ),
    "text-only": ({"text_model.encoder.layers.0.mlp.fc1.weight": ONE}, "CLIPTextModel"),
    "hf-vit": (
        {"vit.embeddings.patch_embeddings.projection.weight": ONE},
        "vision transformer of Hugging Face",
    ),
    "dinov3": ({"rope_embed.periods": ONE, "blocks.0.norm1.weight": ONE}, "DINOv3"),
    "torchvision": (
        {"encoder.layers.encoder_layer_0.ln_1.weight": ONE, "conv_proj.weight": ONE},
        "torchvision's vision transformer",
    ),
    "mae": ({"decoder_blocks.0.norm1.weight": ONE, "mask_token": ONE}, "masked autoencoder"),
    "beit": ({"blocks.0.attn.relative_position_bias_table": ONE}, "relative positions"),
    "coca": ({"text_decoder.ln_final.weight": ONE}, "CoCa"),
    "lora": ({"base.q_proj.lora_A.weight": ONE}, "LoRA adapter"),
    "resnet": ({"state_dict": {"module.layer1.0.conv1.weight": ONE}}, "a ResNet without text"),
    "language": ({"layers.0.self_attn.q_proj.weight": ONE}, "language model"),
    "numbers": ({"epoch": 3, "loss": 0.1}, "no tensors by name"),
    "list": ([ONE, ONE], "no tensors by name"),
    "tensor": (ONE, "no tensors by name"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_model_is_refused_for_what_it_is(kind: str, tmp_path: Path) -> None:
    content, named = FOREIGN[kind]
    torch.save(content, tmp_path / "other.pt")
    check_refusal(tmp_path / "other.pt", named)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "Git LFS"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\n  <html></html>", "a web page"),
        (b'{"architectures": ["CLIPModel"]}', "JSON"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (b"", "it is empty"),
        (b"\x00\x01\x02", "neither safetensors nor a file of torch"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "damaged"),
        (b"PK\x03\x04 and no more", "damaged"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{", "damaged"),
    ],
)
def test_what_holds_no_weights_is_refused_for_what_it_is(
    content: bytes, named: str, tmp_path: Path
) -> None:
    (tmp_path / "weights.bin").write_bytes(content)
    check_refusal(tmp_path / "weights.bin", named)


def check_refusal(path: Path, named: str) -> None:
    with pytest.raises(UserError, match=r"does not load.*" + re.escape(named)) as raised:
        load_backbone(f"{ARCHITECTURE}:{path}")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("form", ["npz", "zip", "cut", "cut-safetensors", "no-storage"])
def test_a_damaged_or_foreign_archive_is_refused_in_one_line(form: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if form == "npz":
        with path.open("wb") as file:
            np.savez(file, embedding=np.zeros(3))
    elif form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "no weights")
    elif form == "cut-safetensors":
        save_file(model_of().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-100])
    else:
        torch.save(model_of().state_dict(), tmp_path / "whole.pt")
        path.write_bytes((tmp_path / "whole.pt").read_bytes()[: -100 if form == "cut" else None])
    if form == "no-storage":
        with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(path, "w") as cut:
            for name in whole.namelist():
                if not name.endswith("data/3"):
                    cut.writestr(name, whole.read(name))
    check_refusal(path, "zip archive" if form in ("npz", "zip") else "damaged or cut off")


class Writer:
    """An object that writes a file when it is unpickled without restrictions."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


def test_code_in_a_checkpoint_is_not_run_and_its_weights_are_loaded(tmp_path: Path) -> None:
    source = model_of()
    content = {"state_dict": source.state_dict(), "hook": Writer(tmp_path / "trace")}
    torch.save(content, tmp_path / "weights.pt")
    check(load_backbone(f"{ARCHITECTURE}:{tmp_path / 'weights.pt'}"), source)
    assert not (tmp_path / "trace").exists()


def test_code_in_an_old_checkpoint_is_not_run(tmp_path: Path) -> None:
    content = {"model": model_of().state_dict(), "hook": Writer(tmp_path / "trace")}
    path = tmp_path / "weights.pt"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    check_refusal(path, "save the model's state_dict() alone")
    assert not (tmp_path / "trace").exists()


def test_a_checkpoint_of_taillift_is_no_backbone(tmp_path: Path) -> None:
    save_file({"head.weight": ONE}, tmp_path / "lift-0.safetensors", {"taillift": "{}"})
    check_refusal(tmp_path / "lift-0.safetensors", "give it to `taillift export`")


@pytest.mark.parametrize("size", [48, 64, 16])
def test_an_image_size_interpolates_positions_and_says_so(
    size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = model_of()
    save_file(source.state_dict(), tmp_path / "tiny.safetensors")
    name = f"{ARCHITECTURE}:{tmp_path / 'tiny.safetensors'}"
    caplog.set_level(logging.WARNING)
    resized = load_backbone(f"{name}@{size}")
    side = size // 8
    assert f"interpolated from 4 x 4 to {side} x {side} patches" in caplog.text
    expected: Any = open_clip.create_model(ARCHITECTURE, force_image_size=size).eval()
    open_clip.load_checkpoint(expected, str(tmp_path / "tiny.safetensors"))
    pixels = torch.randn(2, 3, size, size)
    assert resized.projection is not None
    with torch.no_grad():
        images = resized.tower(pixels) @ resized.projection
        assert torch.allclose(images, expected.encode_image(pixels), atol=1e-5)
    assert (resized.image.size, resized.image.patch) == (size, 8)
    assert resized.sha256 != load_backbone(name).sha256
    assert load_backbone(f"{name}@32").sha256 == load_backbone(name).sha256


def test_an_image_size_that_cuts_a_patch_is_refused(tmp_path: Path) -> None:
    save_file(model_of().state_dict(), tmp_path / "tiny.safetensors")
    with pytest.raises(UserError, match="a side of 8 pixels, which does not divide 50: take 48"):
        load_backbone(f"{ARCHITECTURE}:{tmp_path / 'tiny.safetensors'}@50")
