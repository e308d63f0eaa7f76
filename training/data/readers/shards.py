"""Reads WebDataset shards: tar files of photos, in which members of the same key give the class."""

import json
import logging
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ValidationError

from taillift.models.errors import UserError
from taillift.training.console import track
from taillift.training.data.cache import cache_file, write_cache_file
from taillift.training.data.classes import CLASS_LIST, Vocabulary, prompt_names, read_class_list
from taillift.training.data.photo import SPLITS, Split, SplitName, StoredPhoto
from taillift.training.data.readers.folders import SUFFIXES
from taillift.training.data.readers.listing import Listing

# Suffixes of members with a photo's class. `parse_label` takes the first of them that exists.
LABELS: Final = ("cls", "json", "txt")
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


class ShardIndex(BaseModel):
    """The photos of a shard, with its size in bytes and its time of change in nanoseconds."""

    size: int
    changed: int
    rows: list[ShardRow]


def is_shards(source: Path) -> bool:
    """Return whether `source` is a folder with training shards, a shard, or a pattern of shards."""
    if source.is_dir():
        return any(source.glob("train-*.tar")) or any(_compressed_shards(source))
    return source.suffix == ".tar" and (bool(BRACES.search(source.name)) or source.is_file())


def read_shards(source: Path) -> Listing:
    """List the photos of a folder of shards, or of the training shards that match a pattern.

    The folder holds `train-*.tar`, `val-*.tar` and `test-*.tar`. A pattern is like
    `train-{000..010}.tar`; val and test are then in the same folder. If labels are numbers,
    classnames.txt in the folder names the classes. If they are names, it may fix the classes; else
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
    if (folder / CLASS_LIST).is_file() or any(row.by == "number" for row in training):
        vocabulary = read_class_list(folder / CLASS_LIST)
    else:
        classes = sorted({row.label for row in training})
        vocabulary = Vocabulary(tuple(classes), f"{folder / 'train-*.tar'}")
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
    names = prompt_names(folder, vocabulary)
    return Listing(source, folder.resolve().name, vocabulary.classes, names, splits)


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
        index = ShardIndex.model_validate_json(cached.read_bytes())
        if (index.size, index.changed) == (status.st_size, status.st_mtime_ns):
            return index
    except (OSError, ValidationError):
        pass
    index = ShardIndex(size=status.st_size, changed=status.st_mtime_ns, rows=read_shard(path))
    write_cache_file(cached, lambda file: file.write_text(index.model_dump_json(), "utf-8"))
    return index


def read_shard(path: Path) -> list[ShardRow]:
    """Read through a shard and return its photos.

    Raises `UserError` if it is compressed or damaged, or if a photo has no label.
    """
    photos: list[tuple[str, tarfile.TarInfo]] = []
    labels: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
    try:
        with path.open("rb") as file:
            if file.read(len(GZIP)) == GZIP:
                raise UserError(
                    f"{path} is compressed, and photos in it cannot be read one by one: unpack it "
                    f"with `gunzip < {path.name}` into another file"
                )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if not member.isreg() or member.issparse():
                        continue
                    # The key is the path up to the first dot of the file's name.
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    key, suffix = folder + slash + stem, suffix.lower()
                    if f".{suffix}" in SUFFIXES:
                        photos.append((key, member))
                    elif suffix in LABELS and (content := archive.extractfile(member)):
                        labels[key][suffix] = content.read()
                # A tar file ends with empty blocks, unless it was cut between two members.
                file.seek(archive.offset)
                if file.read(BLOCK) != bytes(BLOCK):
                    raise UserError(f"{path} ends too early: copy it again")
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path} is not a whole tar file ({error}): copy it again") from error
    if unused := sorted(set(labels) - {key for key, _ in photos}):
        logger.warning(
            "%s: %d keys have a label and no JPEG, PNG or WebP photo, such as %s",
            path,
            len(unused),
            unused[0],
        )
    rows = []
    for key, member in photos:
        label, kind = parse_label(labels[key], f"{path}/{key}")
        start, size = member.offset_data, member.size
        rows.append(ShardRow(member=member.name, start=start, size=size, label=label, by=kind))
    return rows


def parse_label(contents: Mapping[str, bytes], where: str) -> tuple[str, LabelKind]:
    """Return a photo's label from the contents of its label members, by their suffixes.

    `cls` holds a number, `json` holds {"label": NAME or NUMBER}, `txt` holds a name. Raises
    `UserError` if there is none of them, or if the first one cannot be read.
    """
    if not contents:
        raise UserError(f"{where} has a photo and no label: add KEY.cls, KEY.json or KEY.txt to it")
    try:
        if "cls" in contents:
            return contents["cls"].decode("utf-8").strip(), "number"
        if "json" in contents:
            label = json.loads(contents["json"])["label"]
            if isinstance(label, int) and not isinstance(label, bool):
                return str(label), "number"
        else:
            label = contents["txt"].decode("utf-8").strip()
        if isinstance(label, str) and label.strip():
            return label, "name"
    except (ValueError, KeyError, TypeError):
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
    shards = {split: sorted(folder.glob(f"{split}-*.tar")) for split in SPLITS}
    if not source.is_dir():
        shards["train"] = [folder / name for name in expand(source.name)]
    if not shards["train"]:
        raise UserError(f"{source} matches no shard: write the smaller number first in braces")
    for path in shards["train"]:
        if not path.is_file():
            raise UserError(f"{path} is missing: the pattern {source.name} names it")
    return shards


def _compressed_shards(folder: Path) -> Iterator[Path]:
    for suffix in ("tar.gz", "tgz"):
        for split in SPLITS:
            yield from sorted(folder.glob(f"{split}-*.{suffix}"))
