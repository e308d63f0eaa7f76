"""Checkpoints keep what was trained, say where it comes from, and give the model back."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone, load_backbone
from taillift.training.data.dataset import Dataset
from taillift.training.fit.checkpoint import (
    CheckpointMetadata,
    check_free,
    checkpoint_stem,
    metadata_path,
    read_metadata,
    restore,
    save,
)
from taillift.training.fit.distributed import Processes
from taillift.training.fit.provenance import new_provenance
from taillift.training.fit.resume import resume_path
from taillift.training.recipe.recipe import Recipe
from taillift.training.train import Run, Trainer
from tests.support.tiny import write_backbone

PIXELS = torch.randint(
    0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


ADAPTFORMER = {"tuners": [{"name": "adaptformer", "rank": 2}], "head": {"scale": 25.0}}
QUICK = {"epochs": 2, "batch": 16, "optimiser": {"head_rate": 0.05, "tuner_rate": 0.05}}

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe_of(**changes: object) -> Recipe:
    return Recipe.model_validate({"name": "run", **QUICK, **changes})


def train(colours: Dataset, backbone: str, recipe: Recipe) -> Run:
    return Trainer(colours, load_backbone(backbone), torch.device("cpu")).train(recipe)


@pytest.fixture(scope="module")
def run(colours: Dataset, tiny_backbone: str) -> Run:
    return train(colours, tiny_backbone, recipe_of(**ADAPTFORMER))


@pytest.fixture
def checkpoint(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "run" / "lift.safetensors"
    save(path, run.model, run.metadata)
    return path


@torch.no_grad()
def test_a_restored_model_gives_the_same_logits(run: Run, checkpoint: Path) -> None:
    model, metadata = restore(checkpoint)
    assert metadata == run.metadata
    assert torch.equal(model.eval()(PIXELS)[0], run.model.eval()(PIXELS)[0])


def shapes_in(path: Path) -> dict[str, list[int]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def test_a_checkpoint_holds_only_what_was_trained(run: Run, checkpoint: Path) -> None:
    size = sum(int(np.prod(shape)) for shape in shapes_in(checkpoint).values())
    assert size == run.metadata.trainable_parameters == 2 * (4 * 64 + 2 + 3 * 64 + 1) + 3 * 64


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0, "head": {"initial": {"name": "class-mean"}}},
        {"epochs": 0, "head": {"space": "projected", "scale": None}},
        {"tuners": [{"name": "sparse", "ratio": 0.01}]},
        {"tuners": [{"name": "ssf"}, {"name": "vpt-deep", "prompts": 2}], "blocks": 1},
        {"head": {"kind": "linear", "initial": {"name": "prototypes"}}},
    ],
    ids=["class means", "zero-shot", "sparse", "two tuners", "linear head"],
)
def test_a_model_of_any_recipe_is_restored_without_texts_or_photos(
    colours: Dataset,
    tiny_backbone: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
) -> None:
    """An untrained head of class means cannot be computed again from the backbone alone."""
    run = train(colours, tiny_backbone, recipe_of(**changes))
    path = tmp_path / "run.safetensors"
    save(path, run.model, run.metadata)
    monkeypatch.setattr(Backbone, "encode_text", lambda *_: pytest.fail("encoded texts"))
    model, _ = restore(path)
    with torch.no_grad():
        assert torch.equal(model.eval()(PIXELS)[0], run.model.eval()(PIXELS)[0])
    assert "head.weight" in shapes_in(path)


def test_the_metadata_has_all_that_is_needed_to_build_the_model(checkpoint: Path) -> None:
    metadata = read_metadata(checkpoint)
    assert metadata.classes == metadata.names == ("red", "green", "blue")
    assert metadata.counts == (30, 21, 5)
    assert metadata.prompts[2] == "a photo of a blue."
    assert (metadata.preprocessing.size, metadata.preprocessing.expand) == (32, 12)
    assert metadata.recipe == recipe_of(**ADAPTFORMER)


def test_the_metadata_has_the_provenance_of_the_model(
    run: Run, colours: Dataset, checkpoint: Path
) -> None:
    metadata = read_metadata(checkpoint)
    assert metadata.data_sha256 == colours.fingerprint
    provenance = metadata.record
    assert provenance.versions["torch"] == torch.__version__
    assert {"python", "taillift", "open_clip_torch", "timm", "numpy"} <= provenance.versions.keys()
    assert provenance.machine.cores >= 1
    assert provenance.machine.processor
    assert len(provenance.losses) == 2
    assert provenance.processes == 1
    assert provenance.precision in ("fp32", "bf16")
    assert 0 <= provenance.waiting <= 1
    assert provenance.seconds > 0
    assert 50e6 < provenance.peak_memory < 50e9
    assert metadata_in(checkpoint.with_name("lift.safetensors.yaml")) == run.metadata


def metadata_in(path: Path) -> CheckpointMetadata:
    return CheckpointMetadata.model_validate(yaml.safe_load(path.read_text("utf-8")))


def test_saving_does_not_touch_a_recipe_of_the_same_name(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("title: my own\n")
    save(tmp_path / "mine.safetensors", run.model, run.metadata)
    assert recipe.read_text() == "title: my own\n"


def test_checkpoints_with_dots_in_their_names_have_different_files(
    run: Run, tmp_path: Path
) -> None:
    first, second = (tmp_path / f"lr0.{digits}.safetensors" for digits in ("01", "02"))
    interrupted = resume_path(second)
    interrupted.write_text("from the other run")
    save(first, run.model, run.metadata)
    assert interrupted.exists()
    save(second, run.model, run.metadata.model_copy(update={"data": "other"}))
    assert [metadata_in(metadata_path(path)).data for path in (first, second)] == [
        "colours",
        "other",
    ]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", ["lr0.01", "mine.yaml", ".safetensors"])
def test_a_name_without_the_suffix_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"end the name in \.safetensors, such as"):
        save(tmp_path / name, run.model, run.metadata, replace=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_metadata_goes_is_replaced_only_on_request(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    metadata_path(path).write_text("something else")
    with pytest.raises(UserError, match=r"run\.safetensors\.yaml exists already"):
        check_free(path, replace=False)
    assert not path.exists()
    save(path, run.model, run.metadata, replace=True)
    assert metadata_in(metadata_path(path)) == run.metadata


def test_the_provenance_names_the_commit_and_whether_files_differ_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        completed = subprocess.run(
            ["git", *author, *arguments], capture_output=True, text=True, check=True
        )
        return completed.stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    processes = Processes(torch.device("cpu"))
    assert new_provenance(processes, None).revision is None
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    clean = new_provenance(processes, None)
    assert (clean.revision, clean.changed) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("two")
    assert new_provenance(processes, None).changed


def test_a_finished_checkpoint_is_replaced_only_on_request(run: Run, checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    other = run.metadata.model_copy(update={"data": "other"})
    with pytest.raises(UserError, match="exists already"):
        save(checkpoint, run.model, other)
    assert checkpoint.read_bytes() == before
    save(checkpoint, run.model, other, replace=True)
    assert read_metadata(checkpoint).data == "other"


def test_only_the_first_process_writes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    save(tmp_path / "run.safetensors", run.model, run.metadata)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": recipe_of(tuners=[{"name": "adaptformer", "rank": 4}])},
        {"recipe": recipe_of()},
        {"recipe": recipe_of(tuners=[{"name": "full"}])},
        {"classes": ("a", "b"), "names": ("a", "b"), "counts": (3, 4)},
    ],
    ids=["other rank", "head only", "full", "other classes"],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    run: Run, tmp_path: Path, change: dict[str, object]
) -> None:
    """A checkpoint whose metadata and tensors disagree never loads with parts missing."""
    path = tmp_path / "bad.safetensors"
    save(
        path, run.model, CheckpointMetadata.model_validate({**run.metadata.model_dump(), **change})
    )
    with pytest.raises(UserError, match=r"does not fit its own recipe: (head|tower)\."):
        restore(path)


def test_another_backbone_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trained on other weights.*--backbone"):
        restore(checkpoint, write_backbone(tmp_path, seed=1))


def test_a_truncated_file_is_refused(checkpoint: Path) -> None:
    data = checkpoint.read_bytes()
    for length in (0, 5, len(data) // 2, len(data) - 1):
        checkpoint.write_bytes(data[:length])
        with pytest.raises(UserError, match="is not a checkpoint"):
            restore(checkpoint)


def test_a_missing_file_and_another_programs_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        restore(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match=r"is a folder and not a checkpoint: .* NAME\.safetensors"):
        restore(tmp_path)
    foreign = Path(write_backbone(tmp_path).split(":")[1])
    with pytest.raises(UserError, match="is not a taillift checkpoint"):
        restore(foreign)


@pytest.mark.parametrize(
    ("backbone", "stem"),
    [
        ("default", "mine-3"),
        ("ViT-B-16-quickgelu:openai", "mine-ViT-B-16-quickgelu-openai-3"),
        ("ViT-B-16:weights/laion.2b.safetensors@384", "mine-ViT-B-16-laion.2b@384-3"),
        ("timm:vit_small_patch14.lvd142m@224", "mine-timm-vit_small_patch14.lvd142m@224-3"),
        ("RN50:my weights.pt", "mine-RN50-my-weights-3"),
    ],
)
def test_a_checkpoint_is_named_after_recipe_backbone_and_seed(backbone: str, stem: str) -> None:
    assert checkpoint_stem(Recipe(name="mine", seed=3), backbone) == stem
