"""A folder with `train/CLASS/*` and, where there are, `val/` and `test/`."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from taillift.training.data.classes import Vocabulary, human_names
from taillift.training.data.photo import StoredPhoto
from taillift.training.data.readers.listing import Listing
from taillift.training.data.split import SPLITS, Split

SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".webp"}
# Beside those whose name starts with a dot, what systems and tools put among folders.
NOT_CLASSES: Final = {"@eaDir", "__MACOSX", "__pycache__"}

logger = logging.getLogger(__name__)


def is_folders(root: Path) -> bool:
    return (root / "train").is_dir()


def read_folders(root: Path) -> Listing:
    """A class is a folder in train/; `classnames.json` beside train/ may say what it is called.

    Files of another kind are left out with a warning. Raises `UserError` where a held-out class is
    not among the trained ones, or what `Vocabulary` and `human_names` raise.
    """
    train = root / "train"
    vocabulary = Vocabulary(tuple(path.name for path in class_folders(train)), str(train))
    splits = {
        name: _read_split(root, name, vocabulary) for name in SPLITS if (root / name).is_dir()
    }
    names = human_names(root, vocabulary)
    return Listing(root, root.resolve().name, vocabulary.classes, names, splits)


def class_folders(split: Path) -> list[Path]:
    """The folders of a split, without those that a system or a tool has put there."""
    folders = [path for path in split.iterdir() if path.is_dir()]
    return sorted(
        path for path in folders if not path.name.startswith(".") and path.name not in NOT_CLASSES
    )


def _read_split(root: Path, name: str, vocabulary: Vocabulary) -> Split:
    photos: list[StoredPhoto] = []
    labels: list[int] = []
    ignored: list[str] = []
    for folder in class_folders(root / name):
        found = list(_photos(root, folder, ignored))
        if found:
            photos += found
            labels += [vocabulary.named(folder.name, str(folder))] * len(found)
    if ignored:
        logger.warning(
            "%s: %d entries are no JPEG, PNG or WebP files and are left out, such as %s",
            root / name,
            len(ignored),
            ignored[0],
        )
    return Split(tuple(photos), tuple(labels))


def _photos(root: Path, folder: Path, ignored: list[str]) -> Iterator[StoredPhoto]:
    """The folder's photos by name; what is none is added to `ignored`."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
                status = entry.stat()
                file = f"{folder.relative_to(root).as_posix()}/{entry.name}"
                yield StoredPhoto(root, file, status.st_size, status.st_mtime_ns)
            else:
                ignored.append(entry.path)
