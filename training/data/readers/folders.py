"""Reads a folder with `train/CLASS/*` and, if they exist, `val/CLASS/*` and `test/CLASS/*`."""

import os
from pathlib import Path

from taillift.models.bundle.photo_sources import is_photo_name, is_system_name
from taillift.models.errors import UserError
from taillift.models.names import refuse_two_forms
from taillift.training.data.classes import (
    PROMPT_NAMES,
    SYNSET,
    Vocabulary,
    class_list,
    names_of_folders,
)
from taillift.training.data.photo import Split, SplitName, StoredPhoto, split_called
from taillift.training.data.readers.listing import (
    Listing,
    Unused,
    unused_entries,
)


def is_folders(root: Path) -> bool:
    """Return whether `root` has class folders for training."""
    return root.is_dir() and any(
        split_called(path.name) == "train" and path.is_dir() for path in root.iterdir()
    )


def read_folders(root: Path) -> Listing:
    """List the photos in class folders. The classes are the folders in train/.

    The folder of a split may have any of the names in `split.WORDS`, such as Train or validation.
    `classnames.json` next to it may give the classes names for prompts, and so may a class list
    such as ImageNet's `n01440764 tench`. Raises `UserError` if two folders are for one split, if a
    class in val/ or test/ is not in train/, and for the reasons of `Vocabulary`.
    """
    folders = split_folders(root)
    train = folders["train"]
    classes = tuple(path.name for path in class_folders(train))
    names = names_of_folders(class_list(root), classes) if class_list(root).is_file() else {}
    used = {path.name for path in folders.values()} | {PROMPT_NAMES}
    if names:
        used.add(class_list(root).name)
    vocabulary = Vocabulary(classes, str(train), _shared(names), names)
    unused = unused_entries(root, used)
    splits: dict[SplitName, Split] = {}
    for name, folder in folders.items():
        splits[name], left = _read_split(folder, vocabulary)
        unused += left
    layout = f"class folders in {', '.join(f'{path.name}/' for path in folders.values())}"
    return Listing(root, root.resolve().name, vocabulary, root, splits, layout, tuple(unused))


def split_folders(root: Path) -> dict[SplitName, Path]:
    """Return the folder of each split. Raises `UserError` if two folders are for one split."""
    folders: dict[SplitName, Path] = {}
    for path in sorted(path for path in root.iterdir() if path.is_dir()):
        if split := split_called(path.name):
            other = folders.setdefault(split, path)
            if other != path:
                raise UserError(
                    f"{root} has the folders {other.name} and {path.name}, which are both for "
                    f"{split}: join them, or rename one"
                )
    return {split: folders[split] for split in ("train", "val", "test") if split in folders}


def class_folders(split: Path) -> list[Path]:
    """Return the folders of a split, sorted, without those that systems and tools create."""
    return sorted(
        path for path in split.iterdir() if path.is_dir() and not is_system_name(path.name)
    )


def classes_without_split(root: Path) -> list[Path]:
    """Return the folders of photos that are in `root` itself, and not in its train/, sorted."""
    return [
        folder
        for folder in class_folders(root)
        if split_called(folder.name) is None
        and any(is_photo_name(path.name) for path in folder.iterdir())
    ]


def _shared(names: dict[str, str]) -> dict[str, str]:
    """Return the names of ImageNet's folders, some of which it gives to two classes."""
    lines = (f"{folder} {name}" for folder, name in names.items())
    return names if all(SYNSET.fullmatch(line) for line in lines) else {}


def _read_split(split: Path, vocabulary: Vocabulary) -> tuple[Split, list[Unused]]:
    root = split.parent
    photos: list[StoredPhoto] = []
    labels: list[int] = []
    ignored: list[str] = []
    nested: list[str] = []
    folders = class_folders(split)
    refuse_two_forms([folder.name for folder in folders], str(split))
    for folder in folders:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        before = len(photos)
        for entry in entries:
            if is_photo_name(entry.name) and entry.is_file():
                status = entry.stat()
                file = f"{folder.relative_to(root).as_posix()}/{entry.name}"
                photos.append(StoredPhoto(root, file, status.st_size, status.st_mtime_ns))
            elif is_system_name(entry.name):
                continue
            elif below := photos_below(Path(entry.path)):
                nested += below
            else:
                ignored.append(entry.path)
        # A held-out folder without photos need not be a class.
        if count := len(photos) - before:
            labels += [vocabulary.index_of(folder.name, str(folder))] * count
    loose = [
        path.name
        for path in sorted(split.iterdir())
        if not path.is_dir() and not is_system_name(path.name)
    ]
    left = {
        "entries are not JPEG, PNG or WebP files and are left out": ignored,
        "photos are in folders below the class folders and are left out": nested,
        "files are in no class folder and are left out": loose,
    }
    unused = [Unused(str(split), len(ones), words, ones[0]) for words, ones in left.items() if ones]
    return Split(tuple(photos), tuple(labels)), unused


def photos_below(folder: Path) -> list[str]:
    """Return the paths of all photos in a folder and in the folders below it, sorted."""
    return sorted(
        f"{where}/{name}"
        for where, _, names in os.walk(folder)
        for name in names
        if is_photo_name(name) and not is_system_name(name)
    )
