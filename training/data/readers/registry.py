"""The layouts that a set of photos can have on disk, and the choice of its reader.

A new layout is a module next to this one, with a test for it and a function that reads it, and one
line in `LAYOUTS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from taillift.models.errors import UserError
from taillift.training.data.cache import SAMPLE_NAMES, unpack_sample
from taillift.training.data.photo import split_called
from taillift.training.data.readers.cifar import is_cifar, read_cifar
from taillift.training.data.readers.csv_table import is_table, read_table, tables_in
from taillift.training.data.readers.folders import classes_without_split, is_folders, read_folders
from taillift.training.data.readers.listing import Listing
from taillift.training.data.readers.lists import (
    DESCRIPTION,
    is_description,
    is_lists,
    lists_fit,
    read_description,
    read_lists,
)
from taillift.training.data.readers.shards import is_shards, read_shards


@dataclass(frozen=True)
class Layout:
    """A layout: its description for users, a test whether a path has it, and its reader."""

    description: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Listing]


FOLDERS: Final = Layout("class folders (train/CLASS/*.jpg)", is_folders, read_folders)
LISTS: Final = Layout("list files (train.txt, classnames.txt)", is_lists, read_lists)
TABLE: Final = Layout("a CSV or TSV file with the columns path and label", is_table, read_table)
LAYOUTS: Final = (
    FOLDERS,
    LISTS,
    Layout(f"a description of lists ({DESCRIPTION})", is_description, read_description),
    TABLE,
    Layout("WebDataset shards (train-*.tar)", is_shards, read_shards),
    Layout("CIFAR-100's files (cifar-100-python, .tar.gz)", is_cifar, read_cifar),
)


def read_source(source: str, labelled_only: bool = False) -> Listing:
    """List the photos of `source`: a path in one of `LAYOUTS`, or the name of a sample set.

    With `labelled_only`, the rows of a table that have no class are left out, and not refused.
    In a folder with a `dataset.yaml`, this file says which lists are read. Next to class folders,
    lists are read if they are lists of the photos in them. A set's train/ stands for the set.
    Raises `UserError` if the source has no known layout or several, and for the reasons of the
    layout's reader.
    """
    try:
        path = Path(source)
        if is_train_folder(path):
            source, path = str(path.parent), path.parent
        if (path / DESCRIPTION).is_file():
            path = path / DESCRIPTION
        layouts = [layout for layout in LAYOUTS if layout.matches(path)]
        if FOLDERS in layouts and LISTS in layouts:
            layouts.remove(FOLDERS if lists_fit(path) else LISTS)
        if len(layouts) > 1:
            raise UserError(
                f"{path} holds {layouts[0].description} and {layouts[1].description}: keep one, or "
                f"say in {path / DESCRIPTION} which lists are meant"
            )
        if layouts:
            if labelled_only and layouts[0] is TABLE:
                return read_table(path, labelled_only)
            return layouts[0].read(path)
        if source in SAMPLE_NAMES:
            return read_folders(unpack_sample(source))
        samples = ", ".join(SAMPLE_NAMES)
        if not path.exists():
            raise UserError(f"{path} does not exist, and it is not a sample set ({samples})")
        if path.is_dir() and (tables := tables_in(path)):
            raise UserError(f"{path} is a folder: name the CSV file itself, like {tables[0]}")
        if path.is_dir() and (classes := classes_without_split(path)):
            raise UserError(
                f"{path} has photos in {classes[0].name}/ but no train/: if its folders are the "
                f"classes, move them into {path / 'train'}"
            )
        descriptions = "; ".join(layout.description for layout in LAYOUTS)
        raise UserError(
            f"{path} is not a set of photos: give one of {descriptions}; or a sample set "
            f"({samples})"
        )
    except OSError as error:
        raise UserError(f"{error.filename or source} cannot be read ({error.strerror})") from error


def is_train_folder(path: Path) -> bool:
    """Return whether `path` is the train/ of a set in class folders, and not a set of its own."""
    is_set = (path / DESCRIPTION).is_file() or any(layout.matches(path) for layout in LAYOUTS)
    return split_called(path.name) == "train" and path.is_dir() and not is_set
