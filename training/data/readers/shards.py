"""Reads WebDataset shards: tar files of photos, in which members of the same key give the class."""

import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ValidationError

from taillift.models.bundle.photo_sources import SUFFIXES, is_system_name
from taillift.models.errors import UserError
from taillift.models.names import refuse_two_forms
from taillift.training.console import track
from taillift.training.data.cache import cache_file, write_cache_file
from taillift.training.data.classes import PROMPT_NAMES, Vocabulary, class_list, read_class_list
from taillift.training.data.photo import SPLITS, Split, SplitName, StoredPhoto, split_in
from taillift.training.data.readers.listing import (
    Listing,
    Unused,
    unused_entries,
)

# Suffixes of members with a photo's class. `parse_label` takes the first of them that exists.
LABELS: Final = ("cls", "json", "txt")
# Ends of the names of images, whether taillift reads them or not.
IMAGE_ENDS: Final = (*SUFFIXES, ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl")
BRACES: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
BLOCK: Final = 512
GZIP: Final = b"\x1f\x8b"

LabelKind = Literal["name", "number"]

logger = logging.getLogger(__name__)


class ShardRow(BaseModel):
    """A photo in a shard: the name of its member, the place of its bytes, and its label.

    `by` says whether the label is the name of the class or its number.
    """

    member: str
    start: int
    size: int
    label: str
    by: LabelKind


class UnusedMembers(BaseModel):
    """Members or keys of a shard that are not used: how many, in words, and one of them."""

    count: int
    words: str
    example: str


class ShardContent(BaseModel):
    """The photos of a shard, and what is not used of it."""

    rows: list[ShardRow]
    unused: list[UnusedMembers]


class ShardIndex(ShardContent):
    """The content of a shard with its size in bytes and its time of change in nanoseconds."""

    size: int
    changed: int


def is_shards(source: Path) -> bool:
    """Return whether `source` is a folder with training shards, a shard, or a pattern of shards."""
    if source.is_dir():
        return bool(_shards_of(source)["train"]) or any(_compressed_shards(source))
    return source.suffix == ".tar" and (bool(BRACES.search(source.name)) or source.is_file())


def read_shards(source: Path) -> Listing:
    """List the photos of a folder of shards, or of the training shards that match a pattern.

    In a folder, a shard is for the split that is a word of its name: `train-000.tar`,
    `imagenet1k-validation-07.tar`. A pattern is like `train-{000..010}.tar`; val and test are then
    in the same folder. If labels are numbers,
    a class list in the folder names the classes. If they are names, it may fix the classes; else
    these are the classes of the training photos. Each shard is read through once, and the cache
    keeps the places of its photos. Later they are read one by one, in any order.

    Raises `UserError` if a shard is compressed, damaged or missing, or if a photo has no label.
    """
    folder = source if source.is_dir() else source.parent
    shards = {
        split: [(path, shard_index(path)) for path in track(paths, "Indexing shards", len(paths))]
        for split, paths in _shard_paths(source, folder).items()
        if paths
    }
    training = [row for _, index in shards["train"] for row in index.rows]
    unused = [
        Unused(str(path), left.count, left.words, left.example)
        for indices in shards.values()
        for path, index in indices
        for left in index.unused
    ]
    if not training:
        raise UserError(
            f"{source} has no photo with a label, such as 0001.jpg with 0001.json"
            + (f"; {unused[0]}" if unused else "")
        )
    listed = class_list(folder)
    if listed.is_file() or any(row.by == "number" for row in training):
        vocabulary = read_class_list(listed)
    else:
        classes = sorted({row.label for row in training})
        vocabulary = Vocabulary(tuple(classes), f"{folder} (its training shards)")
    splits: dict[SplitName, Split] = {}
    for split, indices in shards.items():
        photos: list[StoredPhoto] = []
        labels: list[int] = []
        for path, index in indices:
            for row in index.rows:
                photos.append(
                    StoredPhoto(folder, path.name, row.size, index.changed, row.start, row.member)
                )
                parse = vocabulary.index_of if row.by == "name" else vocabulary.parse_index
                labels.append(parse(row.label, f"{path}/{row.member}"))
        splits[split] = Split(tuple(photos), tuple(labels))
    for split, indices in shards.items():
        refuse_two_forms(
            [row.label for _, index in indices for row in index.rows], f"{folder} ({split})"
        )
    if source.is_dir():
        used = {path.name for indices in shards.values() for path, _ in indices}
        unused = unused_entries(folder, used | {listed.name, PROMPT_NAMES}) + unused
    layout = "WebDataset shards: " + ", ".join(
        f"{len(shards[split])} for {split}" for split in shards
    )
    name = folder.resolve().name
    return Listing(source, name, vocabulary, folder, splits, layout, tuple(unused))


def expand(pattern: str) -> list[str]:
    """Return the names for a pattern: `a-{08..10}.tar` gives a-08.tar, a-09.tar and a-10.tar.

    Several braces give all combinations.
    """
    parts = BRACES.split(pattern)
    texts, starts, stops = parts[::3], parts[1::3], parts[2::3]
    ranges = [
        [f"{number:0{len(start)}}" for number in range(int(start), int(stop) + 1)]
        for start, stop in zip(starts, stops, strict=True)
    ]
    return [
        "".join(text for pair in zip(texts, (*numbers, ""), strict=True) for text in pair)
        for numbers in product(*ranges)
    ]


def shard_index(path: Path) -> ShardIndex:
    """Return the index of a shard from the cache, or read the shard if it is not there."""
    status = path.stat()
    cached = cache_file("shards", path, ".json")
    try:
        if cached is None:
            raise FileNotFoundError
        index = ShardIndex.model_validate_json(cached.read_bytes())
        if (index.size, index.changed) == (status.st_size, status.st_mtime_ns):
            return index
    except (OSError, ValidationError):
        pass
    content = read_shard(path)
    index = ShardIndex(size=status.st_size, changed=status.st_mtime_ns, **dict(content))
    write_cache_file(cached, lambda file: file.write_text(index.model_dump_json(), "utf-8"))
    return index


def read_shard(path: Path) -> ShardContent:
    """Read through a shard and return its photos, and what is not used of it.

    The key of a member is its path up to the first dot of the file's name. Members of the same key
    follow each other and are one sample: a photo and its label. Raises `UserError` if the shard is
    compressed or damaged, if a key comes again after another one, or if a sample has two photos or
    no label.
    """
    rows: list[ShardRow] = []
    images: list[str] = []
    others: list[str] = []
    lonely: list[str] = []
    seen: set[str] = set()
    for key, members in groupby(shard_members(path), key=lambda member: member.key):
        where = f"{path}/{key}"
        if key in seen:
            raise UserError(
                f"{where} comes again after other keys: two shards with the same keys may have "
                "been joined; keep them as two files, or give each photo its own key"
            )
        seen.add(key)
        sample = list(members)
        if twice := [
            name for name, count in Counter(one.name for one in sample).items() if count > 1
        ]:
            raise UserError(
                f"{where} has the member {twice[0]} twice: two shards with the same keys may have "
                "been joined; keep them as two files, or give each photo its own key"
            )
        photos = [one for one in sample if f".{one.suffix}" in SUFFIXES]
        labels = {one.suffix: one.content for one in sample if one.suffix in LABELS}
        if len(photos) > 1:
            raise UserError(
                f"{where} has the photos {photos[0].name} and {photos[1].name}: keep one, or give "
                "each its own key"
            )
        if photos:
            label, kind = parse_label(labels, where)
            photo = photos[0]
            rows.append(
                ShardRow(
                    member=photo.name, start=photo.start, size=photo.size, label=label, by=kind
                )
            )
        elif labels:
            lonely.append(key)
        read = next((suffix for suffix in LABELS if suffix in labels), None)
        unread = [one.name for one in sample if one not in photos and one.suffix != read]
        images += [name for name in unread if name.lower().endswith(IMAGE_ENDS)]
        others += [name for name in unread if not name.lower().endswith(IMAGE_ENDS)]
    left = {
        "keys have a label and no JPEG, PNG or WebP photo": lonely,
        "images are not used, as they are not named KEY.jpg, KEY.png or KEY.webp": images,
        "other members are not used": others,
    }
    unused = [
        UnusedMembers(count=len(ones), words=words, example=ones[0])
        for words, ones in left.items()
        if ones
    ]
    return ShardContent(rows=rows, unused=unused)


def shard_photos(root: Path, file: str) -> Iterator[StoredPhoto]:
    """Yield the photos of the shard `file` in the folder `root`, whatever their labels.

    Raises `UserError` if the shard is compressed or damaged.
    """
    changed = (root / file).stat().st_mtime_ns
    for member in shard_members(root / file):
        if f".{member.suffix}" in SUFFIXES:
            yield StoredPhoto(root, file, member.size, changed, member.start, member.name)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a shard: its name, key, suffix and place, and its content if it is a label."""

    name: str
    key: str
    suffix: str
    start: int
    size: int
    content: bytes


def shard_members(path: Path) -> Iterator[Member]:
    """Yield the files in a shard, without those that macOS adds to a tar file.

    Raises `UserError` if the shard is compressed or damaged.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(GZIP)) == GZIP:
                raise UserError(
                    f"{path} is compressed, and photos in it cannot be read one by one: unpack it "
                    f"with `gunzip < {path.name}` into another file"
                )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as archive:
                for member in archive:
                    folder, slash, name = member.name.rpartition("/")
                    if member.isdir() or is_system_name(name):
                        continue
                    stem, _, suffix = name.partition(".")
                    # A link, for example, has no bytes of its own.
                    suffix = suffix.lower() if member.isreg() and not member.issparse() else ""
                    label = archive.extractfile(member) if suffix in LABELS else None
                    yield Member(
                        member.name,
                        folder + slash + stem,
                        suffix,
                        member.offset_data,
                        member.size,
                        label.read() if label else b"",
                    )
                # A tar file ends with empty blocks, unless it was cut between two members.
                file.seek(archive.offset)
                if file.read(BLOCK) != bytes(BLOCK):
                    raise UserError(f"{path} ends too early: copy it again")
                while rest := file.read(BLOCK * BLOCK):
                    if any(rest):
                        raise UserError(
                            f"{path} has more after its end: two shards have been joined by `cat`; "
                            "keep them as two files, or join them with `tar -A`"
                        )
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path} is not a whole tar file ({error}): copy it again") from error


def parse_label(contents: Mapping[str, bytes], where: str) -> tuple[str, LabelKind]:
    """Return a photo's label from the contents of its label members, by their suffixes.

    `cls` holds a number, `json` holds {"label": NAME or NUMBER}, `txt` holds a name. Raises
    `UserError` if there is none of them, or if the first one cannot be read.
    """
    if not contents:
        raise UserError(f"{where} has a photo and no label: add KEY.cls, KEY.json or KEY.txt to it")
    try:
        if "cls" in contents:
            return contents["cls"].decode("utf-8-sig").strip(), "number"
        if "json" in contents:
            label = json.loads(contents["json"])["label"]
            if isinstance(label, int) and not isinstance(label, bool):
                return str(label), "number"
        else:
            label = contents["txt"].decode("utf-8-sig").strip()
        if isinstance(label, str) and label.strip():
            label.encode("utf-8")
            return label, "name"
    # RecursionError: too many nested brackets.
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(
        f'{where}: the label cannot be read: write a number in .cls, {{"label": NAME}} in .json, '
        "or the class's name in .txt"
    )


def _shard_paths(source: Path, folder: Path) -> dict[SplitName, list[Path]]:
    """Return the shards of each split. Raises `UserError` if one is compressed or missing."""
    if compressed := next(_compressed_shards(folder), None):
        raise UserError(
            f"{compressed} is compressed, and photos in it cannot be read one by one: run "
            f"`gunzip` on it (.tgz: rename it to .tar.gz first)"
        )
    shards = _shards_of(folder)
    if not source.is_dir():
        shards["train"] = [folder / name for name in expand(source.name)]
    if not shards["train"]:
        raise UserError(f"{source} matches no shard: write the smaller number first in braces")
    for path in shards["train"]:
        if not path.is_file():
            raise UserError(f"{path} is missing: the pattern {source.name} names it")
    return shards


def _shards_of(folder: Path) -> dict[SplitName, list[Path]]:
    """Return the shards of each split. An archive next to its unpacked folder is not a shard."""
    paths = [
        path
        for path in sorted(folder.glob("*.tar"))
        if not is_system_name(path.name) and not path.with_suffix("").is_dir()
    ]
    return {split: [path for path in paths if split_in(path.stem) == split] for split in SPLITS}


def _compressed_shards(folder: Path) -> Iterator[Path]:
    for suffix in (".tar.gz", ".tgz"):
        for path in sorted(folder.glob(f"*{suffix}")):
            name = path.name.removesuffix(suffix)
            if split_in(name) and not is_system_name(name) and not (folder / name).is_dir():
                yield path
