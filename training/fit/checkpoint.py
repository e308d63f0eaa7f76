"""A training run's result: what was trained, and everything needed to build the rest again."""

import json
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
from taillift.models.lift.backbone import Backbone, load_backbone
from taillift.models.lift.model import Model
from taillift.training.fit.build import build, weight_shape
from taillift.training.fit.distributed import is_first
from taillift.training.fit.provenance import Provenance
from taillift.training.fit.resume import resume_path
from taillift.training.recipe.recipe import Recipe

KEY: Final = "taillift"
# What lies beside it has its whole name and more, which is no other's and no recipe's.
ENDING: Final = ".safetensors"


class CheckpointMetadata(BaseModel):
    """What a checkpoint says of itself, beside the tensors.

    `names` are what the classes are called in `prompts`; `data_sha256` is the data's fingerprint.
    `key` is the run's, by which it is known again; empty in checkpoints that are older than it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    architecture: str
    pretrained: str
    backbone_sha256: str
    data: str
    data_sha256: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    counts: tuple[int, ...]
    prompts: tuple[str, ...]
    preprocessing: Preprocessing
    recipe: Recipe
    key: str = ""
    trainable_parameters: int
    record: Provenance


def save(path: Path, model: Model, facts: CheckpointMetadata, replace: bool = False) -> None:
    """Write one safetensors file, whole or not at all, and its facts beside it, as YAML to read.

    Only the first process writes. The state that an interrupted run would continue from goes.
    Raises what `check_free` raises.
    """
    if not is_first():
        return
    check_free(path, replace)
    with atomic_file(path) as temporary:
        temporary.write_bytes(serialise(kept_tensors(model), {KEY: facts.model_dump_json()}))
    with atomic_file(metadata_path(path)) as temporary:
        content = facts.model_dump(mode="json")
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
    resume_path(path).unlink(missing_ok=True)


def check_free(path: Path, replace: bool) -> None:
    """To know before the work.

    Raises `UserError` where `path` is no checkpoint's name, or where one stands there, or its facts
    beside it, and is not to be replaced.
    """
    if path.suffix != ENDING:
        raise UserError(f"--out {path}: end the name in {ENDING}, such as {path}{ENDING}")
    for one in (path, metadata_path(path)):
        if one.exists() and not replace:
            raise UserError(f"{one} exists already: choose another --out or pass --replace")


def metadata_path(checkpoint: Path) -> Path:
    """Where what a checkpoint says of itself stands, for people."""
    return checkpoint.with_name(f"{checkpoint.name}.yaml")


def kept_tensors(model: Model) -> dict[str, Tensor]:
    """What the backbone and the recipe do not give again: `Model.state`, and the head anyway.

    An untrained head came from texts or photos, which need not be there when it is restored.
    """
    head = {f"head.{name}": one for name, one in model.head.named_parameters()}
    return {name: one.detach().contiguous() for name, one in (model.state() | head).items()}


def restore(path: Path, backbone_name: str | None = None) -> tuple[Model, CheckpointMetadata]:
    """Build the model that a checkpoint was made from and put its tensors in.

    `backbone_name` says where the backbone is now, if it has moved. Raises `UserError` where the
    file is no checkpoint, the backbone is another one, or the tensors do not fit.
    """
    facts = read_metadata(path)
    backbone = load_backbone(backbone_name or facts.backbone)
    _check_backbone(path, backbone, facts)
    shape = weight_shape(backbone, facts.recipe.head, len(facts.classes))
    model = build(backbone, facts.recipe, torch.zeros(shape))
    wanted = kept_tensors(model)
    with safe_open(path, "pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        shapes = {name: list(one.shape) for name, one in wanted.items()}
        _check_tensors(path, found, shapes)
        model.load_state_dict({name: file.get_tensor(name) for name in found}, strict=False)
    return model, facts


def read_metadata(path: Path) -> CheckpointMetadata:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: make it with `taillift train`") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no checkpoint ({error}): train again") from error
    if text is None:
        raise UserError(f"{path} is not a taillift checkpoint: it lacks the metadata `{KEY}`")
    try:
        return CheckpointMetadata.model_validate(json.loads(text))
    except (ValidationError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: its metadata is not valid: train again") from error


def _check_backbone(path: Path, backbone: Backbone, facts: CheckpointMetadata) -> None:
    if backbone.sha256 != facts.backbone_sha256:
        raise UserError(
            f"{path} was trained on other weights than {backbone.name} (sha256 "
            f"{facts.backbone_sha256[:12]}, here {backbone.sha256[:12]}): pass --backbone with the "
            "weights that it was trained on"
        )


def _check_tensors(path: Path, found: dict[str, list[int]], wanted: dict[str, list[int]]) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{path} does not fit its own recipe: {name} is {found.get(name, 'absent')} in the "
                f"file and {wanted.get(name, 'absent')} in the model: train again"
            )
