"""Checkpoints: what a run trained, with all that is needed to build the rest of the model again."""

import json
import re
from pathlib import Path
from typing import Final

import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from taillift.models.bundle.atomic import atomic_file
from taillift.models.bundle.schema import Preprocessing
from taillift.models.errors import UserError
from taillift.models.lift.backbone import load_backbone
from taillift.models.lift.model import Model
from taillift.training.console import is_first
from taillift.training.fit.build import build_model, weight_shape
from taillift.training.fit.provenance import Provenance
from taillift.training.fit.resume import read_state, resume_path
from taillift.training.recipe.recipe import Part, Recipe

KEY: Final = "taillift"
# The files next to a checkpoint append to its whole name, so that they are never another
# checkpoint's files, and never a recipe.
SUFFIX: Final = ".safetensors"
# The end of the name of a file of weights; the size of images may follow it.
WEIGHT_SUFFIX: Final = re.compile(r"\.(safetensors|pth|pt|bin)(?=@|$)")


class ParentCheckpoint(Part):
    """A checkpoint that went into an average with this `share`, and how it was made."""

    file: str
    sha256: str
    share: float
    recipe: Recipe
    record: Provenance
    parents: tuple["ParentCheckpoint", ...] = ()


class CheckpointMetadata(BaseModel):
    """The metadata of a checkpoint, next to its tensors.

    `names` are the names of the classes in `prompts`. `added` names the further sources that were
    trained on. `data_sha256` is the fingerprint of the data, `key` that of the run; `added` and
    `key` are empty in checkpoints from before they existed. `record` is the provenance.
    `pool_sha256` is the fingerprint of the unlabelled photos, `pseudo_counts` what the
    accepted pseudo-labels of each class counted as at the end, in labelled photos; both are empty
    without unlabelled photos. `parents` are the checkpoints that this one is the average of;
    `recipe` then says what the average consists of, and `key` is empty if `taillift merge` made
    it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    architecture: str
    pretrained: str
    backbone_sha256: str
    data: str
    data_sha256: str
    added: tuple[str, ...] = ()
    classes: tuple[str, ...]
    names: tuple[str, ...]
    counts: tuple[int, ...]
    prompts: tuple[str, ...]
    preprocessing: Preprocessing
    recipe: Recipe
    key: str = ""
    pool_sha256: str = ""
    pseudo_counts: tuple[float, ...] = ()
    trainable_parameters: int
    record: Provenance
    parents: tuple[ParentCheckpoint, ...] = ()

    @property
    def sources(self) -> str:
        """The names of all photos that were trained on, such as photos+labelled."""
        return "+".join((self.data, *self.added))

    @property
    def prior_counts(self) -> tuple[float, ...]:
        """Each class's count in the loss: its photos, and what its pseudo-labels count as."""
        extra = self.pseudo_counts or (0.0,) * len(self.counts)
        return tuple(count + more for count, more in zip(self.counts, extra, strict=True))


def save(path: Path, model: Model, metadata: CheckpointMetadata, replace: bool = False) -> None:
    """Write a checkpoint, complete or not at all, with a readable copy of its metadata.

    Only the first process writes. Removes the file that an interrupted run would have continued
    from. Raises what `check_free` raises.
    """
    if not is_first():
        return
    check_free(path, replace)
    with atomic_file(path) as temporary:
        temporary.write_bytes(serialise(kept_tensors(model), {KEY: metadata.model_dump_json()}))
    with atomic_file(metadata_path(path)) as temporary:
        content = metadata.model_dump(mode="json")
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
    resume_path(path).unlink(missing_ok=True)


def check_free(path: Path, replace: bool) -> None:
    """Check that a checkpoint can be written to `path`; to be called before training.

    Raises `UserError` if `path` does not end in ".safetensors", or if a checkpoint or its metadata
    exists there already and `replace` is false.
    """
    if path.suffix != SUFFIX:
        raise UserError(f"--out {path}: end the name in {SUFFIX}, such as {path}{SUFFIX}")
    for file in (path, metadata_path(path)):
        if file.exists() and not replace:
            raise UserError(f"{file} exists already: choose another --out or pass --replace")


def checkpoint_stem(recipe: Recipe, backbone: str) -> str:
    """Return the usual name of a checkpoint, without its suffix: recipe, backbone and seed.

    The embedded backbone is not named. Of a backbone in a file, the file's name is taken.
    """
    parts = [recipe.name, str(recipe.seed)]
    if backbone != "default":
        architecture, _, weights = backbone.partition(":")
        parts[1:1] = [architecture, WEIGHT_SUFFIX.sub("", Path(weights).name)]
    return re.sub(r"[^\w.+@-]+", "-", "-".join(filter(None, parts)))


def metadata_path(checkpoint: Path) -> Path:
    """Return the path of the YAML file with a checkpoint's metadata, for people to read."""
    return checkpoint.with_name(f"{checkpoint.name}.yaml")


def kept_tensors(model: Model) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint keeps: those of `Model.state`, and the head.

    The backbone and the recipe give all others again. The head is kept even if it was not trained:
    the texts or photos that it came from may be missing when the checkpoint is restored.
    """
    head = {f"head.{name}": tensor for name, tensor in model.head.named_parameters()}
    tensors = model.state() | head
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def restore(path: Path, backbone_name: str | None = None) -> tuple[Model, CheckpointMetadata]:
    """Build the model that a checkpoint came from, with the checkpoint's tensors.

    `backbone_name` is for a backbone that has moved since. Raises `UserError` if the file is not a
    checkpoint, the backbone has other weights, or the tensors do not fit the model.
    """
    metadata = read_metadata(path)
    backbone = load_backbone(backbone_name or metadata.backbone)
    if backbone.sha256 != metadata.backbone_sha256:
        raise UserError(
            f"{path} was trained on other weights than {backbone.name} (sha256 "
            f"{metadata.backbone_sha256[:12]}, here {backbone.sha256[:12]}): pass --backbone with "
            "the weights that it was trained on"
        )
    shape = weight_shape(backbone, metadata.recipe.head, len(metadata.classes))
    model = build_model(backbone, metadata.recipe, torch.zeros(shape))
    expected = {name: list(tensor.shape) for name, tensor in kept_tensors(model).items()}
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        for name in sorted(shapes.keys() | expected.keys()):
            own, needed = shapes.get(name, "absent"), expected.get(name, "absent")
            if own != needed:
                raise UserError(
                    f"{path} does not fit its own recipe: {name} is {own} in the file and {needed} "
                    "in the model: train again"
                )
        model.load_state_dict({name: file.get_tensor(name) for name in shapes}, strict=False)
    return model, metadata


def read_metadata(path: Path) -> CheckpointMetadata:
    """Read a checkpoint's metadata; raises `UserError` if the file is not a valid checkpoint."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder and not a checkpoint: name the file NAME{SUFFIX} that `taillift "
            "train` wrote"
        )
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: make it with `taillift train`") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a checkpoint ({error}): train again") from error
    if text is None:
        raise UserError(f"{path} is not a taillift checkpoint: it lacks the metadata `{KEY}`")
    try:
        return CheckpointMetadata.model_validate(json.loads(text))
    except (ValidationError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: its metadata is not valid: train again") from error


def checkpoint_key(checkpoint: Path) -> str | None:
    """Return the key of the run that ended in `checkpoint`; None if it cannot be read."""
    try:
        return read_metadata(checkpoint).key
    except UserError:
        return None


def make_room(checkpoint: Path, key: str, replace: bool) -> None:
    """Prepare a run that ends in `checkpoint`; `replace` removes what another interrupted run left.

    Raises `UserError` if another run's checkpoint is there, unless `replace` allows overwriting it.
    """
    if checkpoint.exists() and not replace and checkpoint_key(checkpoint) != key:
        raise UserError(
            f"{checkpoint} is of another recipe, data or backbone: choose another --out, or pass "
            "--replace"
        )
    if replace:
        state = resume_path(checkpoint)
        try:
            read_state(state, key)
        except UserError:
            state.unlink()
