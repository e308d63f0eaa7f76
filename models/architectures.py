"""The architectures that work as backbones, those that do not, and why, without torch.

architectures.json has what `models.lift.catalogue` finds out by building each one.
"""

import json
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

from taillift.models.errors import UserError, did_you_mean

# Before the name of an architecture of timm without text; the others are open_clip's.
PREFIX: Final = "timm:"
# Behind the name of an architecture of open_clip, for the same with another activation.
QUICK: Final = "-quickgelu"
LIST: Final = Path(__file__).with_name("architectures.json")
# What a list of architectures is made from, as pip names it.
SOURCES: Final = ("open_clip_torch", "timm")
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


def installed_versions() -> dict[str, str]:
    """Return the installed versions of the packages that define architectures."""
    return {package: version(package) for package in SOURCES}


def published(wanted: str | None) -> list[Entry] | None:
    """Return what architectures.json says of those that `matching` finds.

    None if it was made with other versions of open_clip or timm, or lacks an architecture of timm;
    it has those that resemble vision transformers. Raises what `matching` raises.
    """
    document = json.loads(LIST.read_text("utf-8"))
    if document["versions"] != installed_versions():
        return None
    entries = {each["name"]: Entry(**each) for each in document["architectures"]}
    try:
        return [entries[name] for name in matching(wanted, list(entries))]
    except UserError:
        if wanted is not None and wanted.startswith(PREFIX):
            return None
        raise


def matching(wanted: str | None, known: Sequence[str]) -> list[str]:
    """Return the architectures among `known` that a user asks for; a tag behind a name is ignored.

    This is one, or all with `wanted` in their names, or those of open_clip if it is None. Raises
    `UserError` if there is none.
    """
    if wanted is None:
        return [name for name in known if not name.startswith(PREFIX)]
    asked = without_tag(wanted)
    if asked in known:
        return [asked]
    if found := [name for name in known if wanted.lower() in name.lower()]:
        return found
    hint = did_you_mean(asked, known) or ": `taillift backbones` lists those of open_clip"
    raise UserError(f"there is no architecture {wanted!r}{hint}")


def without_tag(name: str) -> str:
    """Return a backbone's name without the tag or the path of its weights."""
    if not name.startswith(PREFIX):
        return name.partition(":")[0]
    return PREFIX + name.removeprefix(PREFIX).partition(":")[0].partition(".")[0]


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
