"""Reads a folder with `train/CLASS/*` and, if they exist, `val/CLASS/*` and `test/CLASS/*`."""

import logging
import os
from pathlib import Path
from typing import Final

from taillift.training.data.classes import Vocabulary, prompt_names
from taillift.training.data.photo import SPLITS, Split, StoredPhoto
from taillift.training.data.readers.listing import Listing

SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".webp"}
# Folders that systems and tools create, besides those whose names start with a dot.
NOT_CLASSES: Final = {"@eaDir", "__MACOSX", "__pycache__"}

logger = logging.getLogger(__name__)


def is_folders(root: Path) -> bool:
    """Return whether `root` has class folders for training."""
    return (root / "train").is_dir()


def read_folders(root: Path) -> Listing:
    """List the photos in class folders. The classes are the folders in train/.

    `classnames.json` next to train/ may give the classes names for prompts. Files that are not
    photos are left out with a warning. Raises `UserError` if a class in val/ or test/ is not in
    train/, and for the reasons of `Vocabulary` and `prompt_names`.
    """
    train = root / "train"
    vocabulary = Vocabulary(tuple(path.name for path in class_folders(train)), str(train))
    splits = {
        name: _read_split(root, name, vocabulary) for name in SPLITS if (root / name).is_dir()
    }
    names = prompt_names(root, vocabulary)
    return Listing(root, root.resolve().name, vocabulary.classes, names, splits)


def class_folders(split: Path) -> list[Path]:
    """Return the folders of a split, sorted, without those that systems and tools create."""
    folders = [path for path in split.iterdir() if path.is_dir()]
    return sorted(
        path for path in folders if not path.name.startswith(".") and path.name not in NOT_CLASSES
    )


def _read_split(root: Path, name: str, vocabulary: Vocabulary) -> Split:
    photos: list[StoredPhoto] = []
    labels: list[int] = []
    ignored: list[str] = []
    for folder in class_folders(root / name):
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        before = len(photos)
        for entry in entries:
            if Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
                status = entry.stat()
                file = f"{folder.relative_to(root).as_posix()}/{entry.name}"
                photos.append(StoredPhoto(root, file, status.st_size, status.st_mtime_ns))
            else:
                ignored.append(entry.path)
        # A held-out folder without photos need not be a class.
        if count := len(photos) - before:
            labels += [vocabulary.index_of(folder.name, str(folder))] * count
    if ignored:
        logger.warning(
            "%s: %d entries are not JPEG, PNG or WebP files and are left out, such as %s",
            root / name,
            len(ignored),
            ignored[0],
        )
    return Split(tuple(photos), tuple(labels))
