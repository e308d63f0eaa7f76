"""The architectures that a backbone may have: which work, which do not, and why.

Each is built without numbers and its tower converted, so that the answer is that of loading it.
Nothing is downloaded.
"""

import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from timm.models import get_arch_name, model_entrypoint

from taillift.models.errors import UserError, did_you_mean
from taillift.models.lift.backbone import QUICK, activations, blank_visual, model_config
from taillift.models.lift.convert import convert, first_block_alone
from taillift.models.lift.positions import image_side
from taillift.models.lift.timm_backbone import (
    DIFFERENCES,
    PREFIX,
    blank_trunk,
    published_tags,
)

# Families of timm in which a plain vision transformer may be looked for.
FAMILIES: Final = {"vision_transformer", "vision_transformer_hybrid", "deit", *DIFFERENCES}
COLUMNS: Final = 80
# A longer name stands in a line of its own.
LONGEST: Final = 42


@dataclass(frozen=True)
class Entry:
    """An architecture. If it does not work, `reason` says why and its measures are None.

    `image_size` is the side of images in pixels, `width` that of the features, `weights` the number
    of the image tower's. A ResNet has 0 `blocks`. `tags` are those of published weights, by the
    activation that they were trained with.
    """

    name: str
    tags: dict[str, list[str]]
    reason: str = ""
    image_size: int | None = None
    width: int | None = None
    blocks: int | None = None
    weights: int | None = None
    works: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "works", not self.reason)


def names_like(wanted: str | None) -> list[str]:
    """Return the architectures that a user asks for.

    This is one, or all with `wanted` in their names, or those of open_clip if it is None. Raises
    `UserError` if there is none.
    """
    native = open_clip.list_models()
    if wanted is None:
        return list(native)
    families = {name: model_entrypoint(name).__module__ for name in timm.list_models()}
    transformers = [
        f"{PREFIX}{name}"
        for name, module in families.items()
        if module.rpartition(".")[2] in FAMILIES
    ]
    known = [*native, *transformers]
    if wanted.startswith(PREFIX):
        asked = PREFIX + get_arch_name(wanted.removeprefix(PREFIX).partition(":")[0])
        if asked.removeprefix(PREFIX) in families:
            return [asked]
    else:
        asked = wanted.partition(":")[0]
    if asked in known:
        return [asked]
    if found := [name for name in known if wanted.lower() in name.lower()]:
        return found
    hint = did_you_mean(asked, known) or ": `taillift backbones` lists those of open_clip"
    raise UserError(f"there is no architecture {wanted!r}{hint}")


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


def table(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield lines of at most 80 columns: those that work as a table, the others by their reason."""
    working = [entry for entry in entries if entry.works]
    refused: defaultdict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if not entry.works:
            refused[entry.reason].append(entry.name)
    longest = min(LONGEST, max((len(entry.name) for entry in working), default=0))
    if working:
        yield f"{'':{longest}} side width blocks weights tags GELU"
    for entry in working:
        assert entry.weights is not None
        plain, quick = entry.tags["GELU"], entry.tags.get("QuickGELU", [])
        used = "both" if plain and quick else "plain" if plain else "quick" if quick else "-"
        name = entry.name
        if len(name) > longest:
            yield name
            name = ""
        yield (
            f"{name:{longest}} {entry.image_size:4} {entry.width:5} {entry.blocks or '-':>6} "
            f"{entry.weights / 1e6:5.0f} M {len(plain) + len(quick):4} {used}"
        )
    if refused:
        yield "These do not work:"
    for reason, names in refused.items():
        yield from wrapped(f"{', '.join(names)}: {reason}")


def wrapped(text: str) -> list[str]:
    """Return lines of at most 80 columns, of which the first is not indented."""
    return textwrap.wrap(
        text, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def details(entry: Entry) -> Iterator[str]:
    """Yield lines of at most 80 columns about one architecture."""
    yield entry.name
    if not entry.works:
        yield from wrapped(f"does not work: {entry.reason}")
    else:
        assert entry.weights is not None
        yield f"images: {entry.image_size} x {entry.image_size} pixels"
        yield f"width: {entry.width}"
        yield f"blocks: {entry.blocks or 'none, it is a ResNet'}"
        yield f"weights: {entry.weights / 1e6:.1f} million in the image tower"
    for activation, tags in entry.tags.items():
        if tags:
            yield from wrapped(f"tags that use {activation}: {', '.join(tags)}")
    if entry.tags.get("QuickGELU") and entry.works and not entry.name.endswith(QUICK):
        yield from wrapped(f"for tags and files that use QuickGELU, pass {entry.name}{QUICK}")
