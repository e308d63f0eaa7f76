"""List files of `PATH LABEL`, as ImageNet-LT, Places-LT and iNaturalist 2018 are published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from taillift.models.errors import UserError
from taillift.training.data.classes import CLASS_LIST, Vocabulary, human_names, read_class_list
from taillift.training.data.readers.listing import Listing, stored_photos
from taillift.training.data.split import SPLITS, Split, SplitName
from taillift.training.yaml_file import parse_yaml

DESCRIPTION: Final = "dataset.yaml"


class Description(BaseModel):
    """What `dataset.yaml` says: list files, the folder that their paths start from, the classes.

    All are relative to the file's own folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str
    val: str | None = None
    test: str | None = None
    root: str = "."
    classes: str = CLASS_LIST


@dataclass(frozen=True, slots=True)
class ListRow:
    """One line of a list: a photo's path and the number of its class."""

    line: int
    file: str
    label: int


def is_lists(source: Path) -> bool:
    return bool(source.is_dir() and _list_files(source, "train"))


def is_description(source: Path) -> bool:
    return source.suffix in {".yaml", ".yml"} and source.is_file()


def read_lists(folder: Path) -> Listing:
    """A folder with `train.txt` (or one `*_train.txt`), val and test alike, and classnames.txt.

    The paths in them start from the folder. Raises `UserError` where a list is malformed, names a
    photo that is not there or a class that classnames.txt has not.
    """
    found = {name: _list_file(folder, name) for name in SPLITS}
    return _read(folder, folder.resolve().name, Description.model_validate(found))


def read_description(path: Path) -> Listing:
    """Lists that a YAML file names; raises `UserError` where it is not a `Description`, too."""
    try:
        description = Description.model_validate(parse_yaml(path.read_text("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{path} is not valid at {where} ({first['msg']}): it takes "
            f"{', '.join(Description.model_fields)}"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from error
    folder = path.parent
    name = folder.resolve().name if path.name == DESCRIPTION else path.stem
    return _read(folder, name, description)


def read_list(path: Path, vocabulary: Vocabulary) -> list[ListRow]:
    """Read the lines of a list file; opens no photo.

    Raises `UserError` with file and line where one is not `PATH LABEL`, or with the file where it
    has none.
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
        rows.append(ListRow(number, file.strip(), vocabulary.numbered(label, f"{path}:{number}")))
    if not rows:
        raise UserError(f"{path} has no photo: add some, or remove the list")
    return rows


def _read(folder: Path, name: str, description: Description) -> Listing:
    vocabulary = read_class_list(folder / description.classes)
    root = folder / description.root
    files = {split: getattr(description, split) for split in SPLITS}
    splits = {
        split: _read_split(folder / file, root, vocabulary) for split, file in files.items() if file
    }
    names = human_names(folder, vocabulary)
    return Listing(folder, name, vocabulary.classes, names, splits)


def _read_split(path: Path, root: Path, vocabulary: Vocabulary) -> Split:
    rows = read_list(path, vocabulary)
    places = [f"{path}:{row.line}" for row in rows]
    photos = stored_photos(root, [row.file for row in rows], places)
    return Split(photos, tuple(row.label for row in rows))


def _list_file(folder: Path, split: SplitName) -> str | None:
    files = _list_files(folder, split)
    if len(files) > 1:
        raise UserError(
            f"{folder} has {files[0].name} and {files[1].name}: say in {folder / DESCRIPTION} "
            f"which is meant, as `{split}: {files[0].name}`"
        )
    return files[0].name if files else None


def _list_files(folder: Path, split: SplitName) -> list[Path]:
    return sorted([*folder.glob(f"{split}.txt"), *folder.glob(f"*_{split}.txt")])
