"""Reads list files of `PATH LABEL` lines, as ImageNet-LT, Places-LT and iNaturalist 2018 have."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from taillift.models.bundle.photo_sources import is_system_name, refuse_binary
from taillift.models.errors import UserError
from taillift.training.data.classes import (
    PROMPT_NAMES,
    Vocabulary,
    class_list,
    read_class_list,
    unreadable,
)
from taillift.training.data.photo import SPLITS, Split, SplitName, StoredPhoto, split_called, words
from taillift.training.data.readers.folders import photos_below, split_folders
from taillift.training.data.readers.listing import (
    Listing,
    Unused,
    stored_photos,
    unused_entries,
)
from taillift.training.yaml_file import parse_yaml

DESCRIPTION: Final = "dataset.yaml"


class Description(BaseModel):
    """The content of `dataset.yaml`: the lists, the folder of their paths, and the class list.

    All of them are relative to the folder of the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str
    val: str | None = None
    test: str | None = None
    root: str = "."
    classes: str | None = None


@dataclass(frozen=True, slots=True)
class ListRow:
    """A line of a list file: its number, a photo's path and the index of its class."""

    line: int
    file: str
    label: int


def is_lists(source: Path) -> bool:
    """Return whether `source` is a folder with a list of training photos."""
    return bool(source.is_dir() and _list_files(source, "train"))


def lists_fit(folder: Path) -> bool:
    """Return whether the lists in a folder with class folders are lists of its photos.

    The first line of the training list tells: it must be a label and a photo that exists.
    """
    for path in _list_files(folder, "train"):
        try:
            with path.open(encoding="utf-8-sig") as file:
                parts = next((line for line in file if line.strip()), "").rsplit(maxsplit=1)
        except (OSError, ValueError):
            continue
        if len(parts) == 2 and parts[1].isdigit() and class_list(folder).is_file():
            base = _base(folder, "train", parts[0].strip())
            return (folder / base / parts[0].strip()).is_file()
    return False


def is_description(source: Path) -> bool:
    """Return whether `source` is a YAML file."""
    return source.suffix in {".yaml", ".yml"} and source.is_file()


def read_lists(folder: Path) -> Listing:
    """List the photos of a folder with `train.txt` or one `*_train.txt`, and a class list.

    val and test have the same form. Paths in the lists are relative to the folder, or to the folder
    of the split in it. Raises `UserError` if there are two lists for one split, if a list is
    malformed, or if it names a photo that does not exist or a class that is not in the class list.
    """
    lists: dict[SplitName, str] = {}
    for split in SPLITS:
        files = _list_files(folder, split)
        if len(files) > 1:
            raise UserError(
                f"{folder} has {files[0].name} and {files[1].name}: say in {folder / DESCRIPTION} "
                f"which is meant, as `{split}: {files[0].name}`"
            )
        if files:
            lists[split] = files[0].name
    return _read(folder, folder.resolve().name, Description.model_validate(lists))


def read_description(path: Path) -> Listing:
    """List the photos of the list files that a YAML file names.

    Raises `UserError` if the file is not a valid `Description`, and for the reasons of
    `read_lists`.
    """
    try:
        description = Description.model_validate(parse_yaml(path.read_text("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{path} is not valid at {where} ({first['msg']}): the fields are "
            f"{', '.join(Description.model_fields)}"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from error
    folder = path.parent
    name = folder.resolve().name if path.name == DESCRIPTION else path.stem
    return _read(folder, name, description)


def read_list(path: Path, vocabulary: Vocabulary) -> list[ListRow]:
    """Return the lines of a list file; opens no photo.

    Raises `UserError` with file and line if a line is not `PATH LABEL`, and with the file if it has
    no lines.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise unreadable(path, "text", error) from error
    refuse_binary(text.encode(), str(path))
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        parts = line.rsplit(maxsplit=1)
        if len(parts) < 2:
            raise UserError(f"{path}:{number}: {line.strip()!r} is not a path, a space and a label")
        file, label = parts
        index = vocabulary.parse_index(label, f"{path}:{number}")
        rows.append(ListRow(number, file.strip(), index))
    if not rows:
        raise UserError(f"{path} has no photo: add some, or remove the list")
    return rows


def _read(folder: Path, name: str, description: Description) -> Listing:
    classes = folder / description.classes if description.classes else class_list(folder)
    vocabulary = read_class_list(classes)
    root = folder / description.root
    splits: dict[SplitName, Split] = {}
    lists: list[Path] = []
    for split in SPLITS:
        if file := getattr(description, split):
            path = folder / file
            rows = read_list(path, vocabulary)
            base = _base(root, split, rows[0].file)
            photos = stored_photos(
                root,
                [f"{base}{row.file}" for row in rows],
                [f"{path}:{row.line}" for row in rows],
            )
            splits[split] = Split(photos, tuple(row.label for row in rows))
            lists.append(path)
    unused = _unlisted(root, [photo.file for one in splits.values() for photo in stored(one)])
    if root.samefile(folder):
        tops = {PurePath(photo.file).parts[0] for one in splits.values() for photo in stored(one)}
        used = {path.name for path in (*lists, classes)} | {PROMPT_NAMES, DESCRIPTION} | tops
        unused = unused_entries(folder, used) + unused
    layout = f"the lists {', '.join(path.name for path in lists)}, with {classes.name}"
    return Listing(folder, name, vocabulary, folder, splits, layout, tuple(unused))


def stored(split: Split) -> Iterable[StoredPhoto]:
    """Yield the photos of a split that are files."""
    return (photo for photo in split.photos if isinstance(photo, StoredPhoto))


def _unlisted(root: Path, listed: Iterable[str]) -> list[Unused]:
    """Return the photos that are in the same folders as listed ones, and in no list."""
    known = set(listed)
    tops = {PurePath(file).parts[0] for file in known if not PurePath(file).is_absolute()}
    start = len(str(root / "x")) - 1
    missing = [
        path
        for top in sorted(tops - {".."})
        for path in photos_below(root / top)
        if path[start:] not in known
    ]
    if not missing:
        return []
    return [Unused(str(root), len(missing), "photos are in no list and are left out", missing[0])]


def _base(root: Path, split: SplitName, file: str) -> str:
    """Return where the paths of a list start: in the root, or in the folder of the split in it."""
    try:
        if not (root / file).exists():
            folders = split_folders(root)
            if split in folders and (folders[split] / file).exists():
                return f"{folders[split].name}/"
    except (OSError, ValueError, UserError):  # A path with a NUL raises `ValueError`.
        pass
    return ""


def _list_files(folder: Path, split: SplitName) -> list[Path]:
    return sorted(
        path
        for path in folder.glob("*.txt")
        if split_called(words(path.stem)[-1]) == split
        and path.is_file()
        and not is_system_name(path.name)
    )
