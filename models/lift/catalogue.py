"""Finding out which architectures a backbone may have, which not, and why.

Each is built without numbers and its tower converted, so that the answer is that of loading it.
Nothing is downloaded.

    python -m taillift.models.lift.catalogue

writes architectures.json. Run it after a change of the conversion or another version of open_clip
or timm; a test fails if the file is out of date.
"""

import json
from dataclasses import fields
from typing import Any, Final

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from timm.models import model_entrypoint

from taillift.models.architectures import (
    LIST,
    PREFIX,
    Entry,
    installed_versions,
    matching,
    without_tag,
)
from taillift.models.errors import UserError
from taillift.models.lift.backbone import activations, blank_visual, model_config
from taillift.models.lift.convert import convert, first_block_alone
from taillift.models.lift.positions import image_side
from taillift.models.lift.timm_backbone import DIFFERENCES, blank_trunk, published_tags

# Families of timm in which a plain vision transformer may be looked for.
FAMILIES: Final = {"vision_transformer", "vision_transformer_hybrid", "deit", *DIFFERENCES}


def known_names() -> list[str]:
    """Return the architectures of open_clip, and those of timm's vision transformers."""
    families = {name: model_entrypoint(name).__module__ for name in timm.list_models()}
    transformers = [
        f"{PREFIX}{name}"
        for name, module in families.items()
        if module.rpartition(".")[2] in FAMILIES
    ]
    return [*open_clip.list_models(), *transformers]


def names_like(wanted: str | None) -> list[str]:
    """Return what `matching` finds among `known_names`, or any one architecture of timm.

    Raises what `matching` raises.
    """
    if wanted is not None and wanted.startswith(PREFIX):
        asked = without_tag(wanted)
        if asked.removeprefix(PREFIX) in timm.list_models():
            return [asked]
    return matching(wanted, known_names())


def describe(name: str) -> Entry:
    """Return what is known of an architecture of open_clip or, behind `timm:`, of timm."""
    try:
        if name.startswith(PREFIX):
            architecture = name.removeprefix(PREFIX)
            tags = {"GELU": published_tags(architecture)}
            visual = blank_trunk(architecture)
        else:
            tags = activations(name)
            visual = blank_visual(model_config(name))
    except UserError as error:
        reason = str(error).removeprefix("the backbone's image tower ")
        for rest in (": taillift works with", ", which taillift", ": take a smaller"):
            reason = reason.partition(rest)[0]
        return Entry(name, tags, reason)
    trunk: Any = visual.trunk if isinstance(visual, TimmModel) else visual
    blocks = getattr(
        getattr(trunk, "transformer", trunk), "resblocks", getattr(trunk, "blocks", [])
    )
    with torch.device("meta"), first_block_alone(visual):
        width = convert(visual).width
    return Entry(
        name,
        tags,
        image_size=image_side(visual),
        width=width,
        blocks=len(blocks),
        weights=sum(parameter.numel() for parameter in visual.parameters()),
    )


def write_list() -> None:
    """Write architectures.json, with a line for each architecture."""
    lines = []
    for name in known_names():
        entry = describe(name)
        given = {each.name: getattr(entry, each.name) for each in fields(Entry) if each.init}
        lines.append(json.dumps({key: value for key, value in given.items() if value is not None}))
    versions, rows = json.dumps(installed_versions()), ",\n".join(lines)
    LIST.write_text(f'{{"versions": {versions}, "architectures": [\n{rows}\n]}}\n', "utf-8")


if __name__ == "__main__":
    write_list()
