import hashlib
import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from taillift.models.errors import UserError
from taillift.models.lift.backbone import (
    DEFAULT_FOLDER,
    Backbone,
    load_backbone,
    usual_preprocessing,
)
from taillift.models.lift.head import CosineHead
from tests.support.sources import CONFIGS, KINDS, MINIATURES, SIZE, TEXT, TEXTLESS, write
from tests.support.sources import register as register_sources
from tests.support.tiny import ARCHITECTURE, register


@pytest.fixture
def architecture(tmp_path: Path) -> str:
    register(tmp_path)
    return ARCHITECTURE


def test_the_default_backbone_is_the_one_of_its_provenance(backbone: Backbone) -> None:
    data = (DEFAULT_FOLDER / "model.safetensors").read_bytes()
    assert backbone.sha256 == hashlib.sha256(data).hexdigest()
    assert backbone.sha256 in (DEFAULT_FOLDER / "README.md").read_text()
    assert (backbone.image.size, backbone.image.patch) == (224, 32)
    assert backbone.projection is not None
    assert backbone.projection.shape == (256, 256)
    assert backbone.projection_bias is None
    assert not any(parameter.requires_grad for parameter in backbone.tower.parameters())


def test_the_default_backbone_tells_a_cat_from_coffee_by_text(backbone: Backbone) -> None:
    """Text and image towers fit: related words are nearer to each other than unrelated ones."""
    cat, kitten, coffee = backbone.encode_text(
        [f"a photo of a {name}." for name in ("cat", "kitten", "cup of coffee")]
    )
    assert cat.norm().item() == pytest.approx(1, abs=1e-5)
    assert cat @ kitten > cat @ coffee


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_local_checkpoint_loads_by_architecture_and_path(
    architecture: str, tmp_path: Path, suffix: str
) -> None:
    torch.manual_seed(0)
    source = open_clip.create_model(architecture)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    backbone = load_backbone(f"{architecture}:{path}")
    pixels = torch.randn(2, 3, 32, 32)
    assert backbone.projection is not None
    with torch.no_grad():
        expected = source.eval().encode_image(pixels)
        assert torch.allclose(backbone.tower(pixels) @ backbone.projection, expected, atol=1e-5)
    assert backbone.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for weights of the architectures in `sources`, which are known to open_clip."""
    folder = tmp_path_factory.mktemp("sources")
    register_sources(folder)
    return folder


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != TEXTLESS])
def test_a_projected_head_on_text_weights_is_the_sources_zero_shot(
    kind: str, weights: Path
) -> None:
    """The head's softmax equals open_clip's: SigLIP's logit bias is the same for all classes."""
    name, source = write(kind, weights)
    backbone = load_backbone(name)
    prompts = ["a photo of a cat.", "a photo of a dog.", "a cup"]
    head = CosineHead(
        backbone.encode_text(prompts),
        backbone.logit_scale,
        backbone.projection,
        backbone.projection_bias,
    )
    pixels = torch.randn(4, 3, backbone.image.size, backbone.image.size)
    with torch.no_grad():
        logits, _ = head(backbone.tower(pixels))
        image = source.encode_image(pixels, normalize=True)  # type: ignore[operator]
        text = source.encode_text(  # type: ignore[operator]
            open_clip.get_tokenizer(kind)(prompts), normalize=True
        )
        expected = source.logit_scale.exp() * image @ text.t()  # type: ignore[operator]
    assert torch.allclose(logits, expected, atol=1e-4)
    assert backbone.has_text


@pytest.mark.parametrize(
    ("kind", "size", "patch"),
    [
        ("Tiny-Native", 32, 8),
        ("Tiny-Hybrid", 32, 8),
        ("Tiny-Map", 32, 8),
        ("Tiny-ResNet", 64, 32),
        (TEXTLESS, 32, 8),
    ],
)
def test_the_side_of_a_patch_is_the_towers_stride(
    kind: str, size: int, patch: int, weights: Path
) -> None:
    image = load_backbone(write(kind, weights)[0]).image
    assert (image.size, image.patch) == (size, patch)


class TestWithoutText:
    def test_a_timm_tower_loads_by_its_name_and_path(self, weights: Path) -> None:
        name, source = write(TEXTLESS, weights)
        backbone = load_backbone(name)
        pixels = torch.randn(2, 3, SIZE, SIZE)
        with torch.no_grad():
            logits = source.get_submodule("head")(backbone.tower(pixels))
            assert torch.allclose(logits, source(pixels), atol=1e-5)
        path = Path(name.rpartition(":")[2])
        assert backbone.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (backbone.architecture, backbone.pretrained) == (TEXTLESS, path.name)
        assert backbone.projection is None
        assert backbone.image.std == (0.25, 0.25, 0.25)
        assert (backbone.image.interpolation, backbone.image.resize_mode) == ("bicubic", "shortest")

    @pytest.mark.parametrize("miniature", MINIATURES)
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_deit_flexivit_and_towers_with_registers_load(
        self, miniature: str, wrapped: bool, tmp_path: Path
    ) -> None:
        name, source = write(f"timm:{miniature}", tmp_path)
        if wrapped:
            tensors = {f"module.backbone.{k}": v for k, v in source.state_dict().items()}
            path = tmp_path / "checkpoint.pth"
            torch.save({"student": {}, "teacher": tensors, "epoch": 9}, path)
            name = f"timm:{miniature}:{path}"
        backbone = load_backbone(name)
        pixels = torch.randn(2, 3, SIZE, SIZE)
        with torch.no_grad():
            tokens = source.forward_features(pixels)  # type: ignore[operator]
            features = source.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
            assert torch.allclose(backbone.tower(pixels), features, atol=1e-5)

    @pytest.mark.parametrize("size", [16, 48, 64])
    @pytest.mark.parametrize("miniature", [*MINIATURES, "vit_plain_test"])
    def test_an_image_size_interpolates_positions_as_timm_does(
        self, miniature: str, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        name, source = write(f"timm:{miniature}", tmp_path)
        resized = load_backbone(f"{name}@{size}")
        assert f"from 4 x 4 to {size // 8} x {size // 8} patches" in caplog.text
        source.set_input_size((size, size))  # type: ignore[operator]
        pixels = torch.randn(2, 3, size, size)
        with torch.no_grad():
            tokens = source.forward_features(pixels)  # type: ignore[operator]
            features = source.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
            assert torch.allclose(resized.tower(pixels), features, atol=1e-5)
        assert (resized.image.size, resized.image.patch) == (size, 8)
        assert resized.sha256 != load_backbone(name).sha256

    @pytest.mark.parametrize("kind", ["Tiny-Hybrid", "Tiny-Map"])
    def test_a_tower_of_timm_with_text_takes_another_image_size(
        self, kind: str, weights: Path
    ) -> None:
        name, source = write(kind, weights)
        resized = load_backbone(f"{name}@48")
        source.get_submodule("visual.trunk").set_input_size((48, 48))  # type: ignore[operator]
        pixels = torch.randn(2, 3, 48, 48)
        with torch.no_grad():
            features = source.visual.trunk(pixels)  # type: ignore[union-attr, operator]
            own = resized.tower(pixels)
            if resized.projection is not None and kind == "Tiny-Hybrid":
                own = own @ resized.projection + resized.projection_bias
        assert torch.allclose(own, features, atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("timm:vit_small_patch16_dinov3.lvd1689m", "rotary positions in DINOv3"),
            ("timm:vit_pe_core_tiny_patch16_384", "rotary positions in DINOv3, PE"),
            ("timm:vit_base_patch16_rope_224", "rotary positions"),
            ("timm:vit_relpos_small_patch16_224", "relative positions"),
            ("timm:beitv2_base_patch16_224", "relative positions"),
            ("timm:vit_giant_patch14_dinov2", "GB of weights|GluMlp"),
            ("timm:vit_gigantic_patch14_224", "7.4 GB of weights"),
            ("ViT-H-14:laion2b_s32b_b79k", "2.5 GB of weights"),
            ("PE-Core-B-16:meta", "rotary positions in DINOv3, PE"),
        ],
    )
    def test_what_does_not_work_is_refused_before_its_download(
        self, name: str, reason: str
    ) -> None:
        with pytest.raises(UserError, match=reason) as raised:
            load_backbone(name)
        assert "downloaded" not in str(raised.value)

    def test_weights_with_patches_of_another_side_are_refused(self, tmp_path: Path) -> None:
        tensors = write("timm:vit_plain_test", tmp_path)[1].state_dict()
        tensors["patch_embed.proj.weight"] = torch.zeros(32, 3, 16, 16)
        save_file(tensors, tmp_path / "other.safetensors")
        with pytest.raises(UserError, match="a side of 16 pixels, those of vit_plain_test 8"):
            load_backbone(f"timm:vit_plain_test:{tmp_path / 'other.safetensors'}")

    def test_it_encodes_no_text_and_says_so(self, weights: Path) -> None:
        backbone = load_backbone(write(TEXTLESS, weights)[0])
        assert not backbone.has_text
        with pytest.raises(UserError, match="has no text tower: start the head from class means"):
            backbone.encode_text(["a cat"])

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("timm:vit_base_patch16_225", 'did you mean "vit_base_patch16_224"'),
            ("timm:resnet50", "is a resnet50: taillift works with.*`taillift backbones`"),
            ("timm:vit_base_patch16_224.in22k", "vit_base_patch16_224.{.*augreg_in21k"),
            ("timm:vit_plain_test", "no weights 'vit_plain_test'.*timm:vit_plain_test:PATH"),
            ("timm:vit_plain_test:/nowhere/weights.pt", "there is no file /nowhere/weights.pt"),
        ],
    )
    def test_a_wrong_name_gets_a_hint(self, name: str, hint: str) -> None:
        with pytest.raises(UserError, match=hint) as raised:
            load_backbone(name)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["Tiny-Native", TEXTLESS])
@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("cut.safetensors", b"\x40\x00\x00\x00\x00\x00\x00\x00{"),
        ("noise.pt", b"not a checkpoint"),
        ("empty.safetensors", b""),
    ],
)
def test_a_damaged_weight_file_is_refused_in_one_line(
    kind: str, file: str, data: bytes, weights: Path
) -> None:
    path = weights / file
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{file} does not load") as raised:
        load_backbone(f"{kind}:{path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "other"),
    [("Tiny-Native", "Tiny-ResNet"), ("Tiny-ResNet", "Tiny-Map"), (TEXTLESS, "Tiny-Native")],
)
def test_weights_of_another_architecture_are_refused(kind: str, other: str, weights: Path) -> None:
    path = write(other, weights)[0].rpartition(":")[2]
    with pytest.raises(UserError, match=f"{other}.safetensors does not load as ") as raised:
        load_backbone(f"{kind}:{path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("MobileCLIP-S1:datacompdr", "is a fastvit_mci1: taillift works with ViT-"),
        ("convnext_base:laion400m_s13b_b51k", "is a convnext_base"),
        ("EVA02-B-16:merged2b_s8b_b131k", "image tower has the attention of EVA"),
        ("coca_ViT-B-32:laion2b_s13b_b90k", "is a CoCa"),
    ],
)
def test_an_architecture_without_plain_blocks_is_refused_before_its_download(
    name: str, part: str
) -> None:
    with pytest.raises(UserError, match=part):
        load_backbone(name)


def test_a_tokenizer_that_cannot_be_loaded_is_reported_in_one_line(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = {**CONFIGS["Tiny-Map"], "text_cfg": {**TEXT, "hf_tokenizer_name": "nobody/nothing"}}
    (weights / "Tiny-Foreign.json").write_text(json.dumps(text))
    open_clip.add_model_config(weights)
    path = write("Tiny-Map", weights)[0].rpartition(":")[2]
    backbone = load_backbone(f"Tiny-Foreign:{path}")
    assert backbone.tower(torch.zeros(1, 3, SIZE, SIZE)).isfinite().all()
    with pytest.raises(UserError, match="its tokenizer cannot be loaded") as raised:
        backbone.encode_text(["a cat"])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("architecture", "mean", "interpolation", "resize_mode"),
    [
        ("ViT-B-16-SigLIP", 0.5, "bicubic", "squash"),
        ("MobileCLIP-B", 0.0, "bilinear", "shortest"),
        ("RN50", 0.48145466, "bicubic", "shortest"),
        ("ViT-L-14-336", 0.48145466, "bicubic", "shortest"),
    ],
)
def test_a_files_preprocessing_is_what_its_architectures_weights_agree_on(
    architecture: str, mean: float, interpolation: str, resize_mode: str
) -> None:
    usual = usual_preprocessing(architecture)
    assert usual["mean"][0] == mean
    assert (usual["interpolation"], usual["resize_mode"]) == (interpolation, resize_mode)


def test_weights_of_another_shape_are_refused(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"visual.proj": torch.zeros(3, 3)}, path)
    with pytest.raises(UserError, match=r"does not load as .*: it lacks .* and \d+ more") as raised:
        load_backbone(f"{architecture}:{path}")
    assert "\n" not in str(raised.value)


def test_a_pickle_that_runs_code_is_refused(architecture: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "evil.pt"
    torch.save(Evil(trace), path)
    with pytest.raises(UserError, match="does not load"):
        load_backbone(f"{architecture}:{path}")
    assert not trace.exists()


class Evil:
    """An object that writes a file when it is unpickled without restrictions."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.trace,)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("ViT-B-16:openai", "ViT-B-16-quickgelu:openai"),
        ("ViT-L-14:dfn2b", "ViT-L-14-quickgelu:dfn2b"),
    ],
)
def test_weights_of_the_other_gelu_are_refused_by_the_right_name(name: str, right: str) -> None:
    with pytest.raises(UserError, match=f"pass {right}"):
        load_backbone(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ViT-B16:openai", 'did you mean "ViT-B-16'),
        ("ViT-B-16:opnai", "no pretrained tag 'opnai'.*openai"),
        ("ViT-B-16", "ARCH:PRETRAINED_TAG, ARCH:PATH or timm:ARCH.TAG"),
        ("ViT-B-16:/nowhere/weights.pt", "there is no file /nowhere/weights.pt"),
    ],
)
def test_a_wrong_name_gets_a_hint(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        load_backbone(name)
