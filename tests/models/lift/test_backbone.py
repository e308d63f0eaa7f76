import hashlib
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tiny import ARCHITECTURE, register

from models import UserError
from models.lift.backbone import DEFAULT_FOLDER, Backbone, load_backbone


@pytest.fixture
def architecture(tmp_path: Path) -> str:
    register(tmp_path)
    return ARCHITECTURE


def test_the_default_backbone_is_the_one_of_its_provenance(backbone: Backbone) -> None:
    data = (DEFAULT_FOLDER / "model.safetensors").read_bytes()
    assert backbone.sha256 == hashlib.sha256(data).hexdigest()
    assert backbone.sha256 in (DEFAULT_FOLDER / "README.md").read_text()
    assert (backbone.image.size, backbone.image.patch) == (224, 32)
    assert backbone.projection.shape == (256, 256)
    assert not any(one.requires_grad for one in backbone.tower.parameters())


def test_the_default_backbone_tells_a_cat_from_coffee_by_text(backbone: Backbone) -> None:
    """Text and image towers belong together: related words are nearer than unrelated ones."""
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
    with torch.no_grad():
        expected = source.eval().encode_image(pixels)
        assert torch.allclose(backbone.tower(pixels) @ backbone.projection, expected, atol=1e-5)
    assert backbone.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_of_another_shape_are_refused(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"visual.proj": torch.zeros(3, 3)}, path)
    with pytest.raises(UserError, match=r"does not load: Error.* Missing key") as raised:
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
    """Unpickled without care, it writes a file."""

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
        ("ViT-B16:openai", "did you mean ViT-B-16"),
        ("ViT-B-16:opnai", "no pretrained tag 'opnai'.*openai"),
        ("ViT-B-16", "ARCH:PRETRAINED_TAG or ARCH:PATH"),
        ("ViT-B-16:/nowhere/weights.pt", "there is no file /nowhere/weights.pt"),
    ],
)
def test_a_wrong_name_gets_a_hint(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        load_backbone(name)
