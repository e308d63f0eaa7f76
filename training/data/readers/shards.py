"""WebDataset shards: tar files of photos, each beside a member of its key that says its class."""

import json
import logging
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import IO, Final, Literal

from pydantic import BaseModel, ValidationError

from taillift.models.errors import UserError
from taillift.training.console import track
from taillift.training.data.cache import cache_file, keep
from taillift.training.data.classes import CLASS_LIST, Vocabulary, human_names, read_class_list
from taillift.training.data.photo import StoredPhoto
from taillift.training.data.readers.folders import SUFFIXES
from taillift.training.data.readers.listing import Listing
from taillift.training.data.split import SPLITS, Split, SplitName

# What says a photo's class, the first that is there: a number, {"label": NAME or NUMBER}, a name.
LABELS: Final = ("cls", "json", "txt")
BRACES: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
BLOCK: Final = 512
GZIP: Final = b"\x1f\x8b"

logger = logging.getLogger(__name__)


class ShardRow(BaseModel):
    """A photo in a shard: its member's name, where its bytes lie, and its class as it is written.

    A class is written as its name or as its number.
    """

    member: str
    start: int
    size: int
    label: str
    by: Literal["name", "number"]


class Index(BaseModel):
    """The photos of the shard that had this size in bytes and time of change in nanoseconds."""

    size: int
    changed: int
    rows: list[ShardRow]


def is_shards(source: Path) -> bool:
    if source.is_dir():
        return any(source.glob("train-*.tar")) or any(_compressed(source))
    return source.suffix == ".tar" and (bool(BRACES.search(source.name)) or source.is_file())


def read_shards(source: Path) -> Listing:
    """A folder of `train-*.tar`, `val-*.tar` and `test-*.tar`, or the training shards' pattern.

    A pattern is like `train-{000..010}.tar`; val and test are then found beside it. Where labels
    are numbers, or to fix the classes, classnames.txt in the folder names them; else the classes
    are those of the training photos. Each shard is read through once, and where its photos lie is
    kept in the cache: later they are read one by one, in any order.

    Raises `UserError` where a shard is compressed, damaged or missing, or a photo has no label.
    """
    folder = source if source.is_dir() else source.parent
    shards = _shards(source, folder)
    rows = {split: _read_rows(paths) for split, paths in shards.items() if paths}
    vocabulary = _vocabulary(folder, rows["train"])
    splits = {split: _split(folder, found, vocabulary) for split, found in rows.items()}
    names = human_names(folder, vocabulary)
    return Listing(source, folder.resolve().name, vocabulary.classes, names, splits)


def expand(pattern: str) -> list[str]:
    """`a-{08..10}.tar` as a-08.tar, a-09.tar, a-10.tar; several braces in every combination."""
    parts = BRACES.split(pattern)
    texts, starts, stops = parts[::3], parts[1::3], parts[2::3]
    ranges = [
        [f"{number:0{len(start)}}" for number in range(int(start), int(stop) + 1)]
        for start, stop in zip(starts, stops, strict=True)
    ]
    return [
        "".join(text for pair in zip(texts, (*chosen, ""), strict=True) for text in pair)
        for chosen in product(*ranges)
    ]


def shard_index(path: Path) -> Index:
    """Where the photos of a shard lie, from the cache or read anew."""
    status = path.stat()
    cached = cache_file("shards", path, ".json")
    try:
        index = Index.model_validate_json(cached.read_bytes())
        if (index.size, index.changed) == (status.st_size, status.st_mtime_ns):
            return index
    except (OSError, ValidationError):
        pass
    index = Index(size=status.st_size, changed=status.st_mtime_ns, rows=_read_shard(path))
    keep(cached, lambda file: file.write_text(index.model_dump_json(), "utf-8"))
    return index


def _shards(source: Path, folder: Path) -> dict[SplitName, list[Path]]:
    if found := next(_compressed(folder), None):
        raise UserError(
            f"{found} is compressed, and photos in it cannot be read one by one: run "
            f"`gunzip` on it (.tgz: rename it to .tar.gz first)"
        )
    shards = {split: sorted(folder.glob(f"{split}-*.tar")) for split in SPLITS}
    if not source.is_dir():
        shards["train"] = [folder / name for name in expand(source.name)]
    if not shards["train"]:
        raise UserError(f"{source} stands for no shard: write the smaller number first in braces")
    for path in shards["train"]:
        if not path.is_file():
            raise UserError(f"{path} is missing: the pattern {source.name} names it")
    return shards


def _compressed(folder: Path) -> Iterator[Path]:
    for ending in ("tar.gz", "tgz"):
        yield from (path for split in SPLITS for path in sorted(folder.glob(f"{split}-*.{ending}")))


def _read_rows(paths: list[Path]) -> list[tuple[Path, int, ShardRow]]:
    """Every photo with its shard and the shard's time of change."""
    indices = [(path, shard_index(path)) for path in track(paths, "Indexing shards", len(paths))]
    return [(path, index.changed, row) for path, index in indices for row in index.rows]


def _vocabulary(folder: Path, training: list[tuple[Path, int, ShardRow]]) -> Vocabulary:
    if (folder / CLASS_LIST).is_file() or any(row.by == "number" for _, _, row in training):
        return read_class_list(folder / CLASS_LIST)
    classes = sorted({row.label for _, _, row in training})
    return Vocabulary(tuple(classes), f"{folder / 'train-*.tar'}")


def _split(folder: Path, rows: list[tuple[Path, int, ShardRow]], vocabulary: Vocabulary) -> Split:
    photos = [
        StoredPhoto(folder, path.name, row.size, changed, row.start, row.member)
        for path, changed, row in rows
    ]
    labels = [
        (vocabulary.named if row.by == "name" else vocabulary.numbered)(
            row.label, f"{path}/{row.member}"
        )
        for path, _, row in rows
    ]
    return Split(tuple(photos), tuple(labels))


def _read_shard(path: Path) -> list[ShardRow]:
    try:
        with path.open("rb") as file:
            if file.read(len(GZIP)) == GZIP:
                raise UserError(
                    f"{path} is compressed, and photos in it cannot be read one by one: unpack it "
                    f"with `gunzip < {path.name}` into another file"
                )
            file.seek(0)
            return _read_members(path, file)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path} is no whole tar file ({error}): copy it again") from error


def _read_members(path: Path, file: IO[bytes]) -> list[ShardRow]:
    photos: list[tuple[str, tarfile.TarInfo]] = []
    labels: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            key, suffix = _key(member.name)
            if not member.isreg() or member.issparse():
                continue
            if f".{suffix}" in SUFFIXES:
                photos.append((key, member))
            elif suffix in LABELS and (content := archive.extractfile(member)):
                labels[key][suffix] = content.read()
        _check_end(path, file, archive.offset)
    if unused := sorted(set(labels) - {key for key, _ in photos}):
        logger.warning(
            "%s: %d keys have a label and no JPEG, PNG or WebP photo, such as %s",
            path,
            len(unused),
            unused[0],
        )
    return [_row(path, key, member, labels[key]) for key, member in photos]


def _check_end(path: Path, file: IO[bytes], end: int) -> None:
    """A tar file ends with empty blocks; one that was cut between two members does not."""
    file.seek(end)
    if file.read(BLOCK) != bytes(BLOCK):
        raise UserError(f"{path} ends too early: copy it again")


def _row(path: Path, key: str, member: tarfile.TarInfo, labels: dict[str, bytes]) -> ShardRow:
    label, by = _label(labels, f"{path}/{key}")
    return ShardRow(
        member=member.name, start=member.offset_data, size=member.size, label=label, by=by
    )


def _label(labels: dict[str, bytes], where: str) -> tuple[str, Literal["name", "number"]]:
    try:
        if "cls" in labels:
            return labels["cls"].decode("utf-8").strip(), "number"
        if "json" in labels:
            return _json_label(json.loads(labels["json"])["label"])
        if "txt" in labels:
            return _name(labels["txt"].decode("utf-8").strip()), "name"
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f'{where}: the label cannot be read: write a number in .cls, {{"label": NAME}} in '
            ".json, or the class's name in .txt"
        ) from None
    raise UserError(f"{where} has a photo and no label: add KEY.cls, KEY.json or KEY.txt to it")


def _json_label(label: object) -> tuple[str, Literal["name", "number"]]:
    match label:
        case bool():
            raise TypeError
        case int():
            return str(label), "number"
        case str():
            return _name(label), "name"
    raise TypeError


def _name(label: str) -> str:
    if not label.strip():
        raise ValueError
    return label


def _key(member: str) -> tuple[str, str]:
    """The path up to the first dot of the file's name, and what follows, in lower case."""
    folder, slash, name = member.rpartition("/")
    stem, _, suffix = name.partition(".")
    return folder + slash + stem, suffix.lower()
