"""Reads list files of `PATH LABEL` lines, as ImageNet-LT, Places-LT and iNaturalist 2018 have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from taillift.models.errors import UserError
from taillift.training.data.classes import CLASS_LIST, Vocabulary, prompt_names, read_class_list
from taillift.training.data.photo import SPLITS, Split, SplitName
from taillift.training.data.readers.listing import Listing, stored_photos
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
    classes: str = CLASS_LIST


@dataclass(frozen=True, slots=True)
class ListRow:
    """A line of a list file: its number, a photo's path and the index of its class."""

    line: int
    file: str
    label: int


def is_lists(source: Path) -> bool:
    """Return whether `source` is a folder with a list of training photos."""
    return bool(source.is_dir() and _list_files(source, "train"))


def is_description(source: Path) -> bool:
    """Return whether `source` is a YAML file."""
    return source.suffix in {".yaml", ".yml"} and source.is_file()


def read_lists(folder: Path) -> Listing:
    """List the photos of a folder with `train.txt` or one `*_train.txt`, and classnames.txt.

    val and test have the same form. Paths in the lists are relative to the folder. Raises
    `UserError` if there are two lists for one split, if a list is malformed, or if it names a photo
    that does not exist or a class that is not in classnames.txt.
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
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
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
    vocabulary = read_class_list(folder / description.classes)
    splits: dict[SplitName, Split] = {}
    for split in SPLITS:
        if file := getattr(description, split):
            path = folder / file
            rows = read_list(path, vocabulary)
            photos = stored_photos(
                folder / description.root,
                [row.file for row in rows],
                [f"{path}:{row.line}" for row in rows],
            )
            splits[split] = Split(photos, tuple(row.label for row in rows))
    return Listing(folder, name, vocabulary.classes, prompt_names(folder, vocabulary), splits)


def _list_files(folder: Path, split: SplitName) -> list[Path]:
    return sorted([*folder.glob(f"{split}.txt"), *folder.glob(f"*_{split}.txt")])
