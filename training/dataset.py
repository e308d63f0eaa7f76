"""Labelled photos: a folder with `train/CLASS/*` and, where there are, `val/` and `test/`."""

import logging
import os
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from models import UserError
from models.bundle.atomic import atomic_folder
from models.bundle.folder import file_record
from models.bundle.images import ImageError, decode
from training.progress import track

SplitName = Literal["train", "val", "test"]
SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".webp"}
SAMPLES: Final = Path(__file__).parent / "samples"
SAMPLE_NAMES: Final = tuple(sorted(path.stem for path in SAMPLES.glob("*.tar")))

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Photos and the index of each one's class in `Dataset.classes`."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Dataset:
    """`classes` in the order of the logits, most training photos first, then by name."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None

    @property
    def counts(self) -> list[int]:
        """Training photos of each class."""
        counted = Counter(self.train.labels)
        return [counted[index] for index in range(len(self.classes))]

    @property
    def held_out(self) -> tuple[SplitName, Split] | None:
        """What a model is measured on: `test`, else `val`."""
        if self.test is not None:
            return "test", self.test
        return ("val", self.val) if self.val is not None else None


def load_dataset(source: str) -> Dataset:
    """Read a folder of photos, or a sample set by its name.

    A photo that cannot be decoded is left out with a warning that names it, and so are files of
    another kind. Raises `UserError` where there are fewer than two classes, a class has no
    readable training photo, or a held-out class is not among the trained ones.
    """
    root = Path(source)
    if source in SAMPLE_NAMES and not (root / "train").is_dir():
        root = unpack_sample(source)
    if not (root / "train").is_dir():
        samples = ", ".join(SAMPLE_NAMES)
        raise UserError(
            f"{root} has no folder train/: give a folder with train/CLASS/*.jpg, or one of the "
            f"sample sets ({samples})"
        )
    _check_names(class_folders(root / "train"))
    found = {name: _find(root / name) for name in ("train", "val", "test")}
    readable = _readable([path for paths in found.values() for path in paths])
    counts = _count_classes(root / "train", found["train"], readable)
    classes = tuple(sorted(counts, key=lambda name: (-counts[name], name)))
    splits = {name: _split(paths, readable, classes) for name, paths in found.items()}
    train = splits["train"]
    assert train is not None
    return Dataset(root.resolve().name, classes, train, splits["val"], splits["test"])


def unpack_sample(name: str) -> Path:
    """Unpack a sample set to the user's cache on first use; returns its folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taillift"
    source = SAMPLES / f"{name}.tar"
    target = base / file_record(source).sha256[:12] / name
    if not target.is_dir():
        with atomic_folder(target) as folder, tarfile.open(source) as archive:
            for member in archive:
                # The archive holds one folder of the set's own name.
                member.name = member.name.removeprefix(name).lstrip("/") or "."
                archive.extract(member, folder, filter="data")
    return target


def class_name(folder: str) -> str:
    """A folder's name as a person would write it."""
    return folder.replace("_", " ")


def class_folders(split: Path) -> list[Path]:
    """The folders of a split, without those that a system or a tool has put there."""
    if not split.is_dir():
        return []
    folders = [path for path in split.iterdir() if path.is_dir()]
    return sorted(path for path in folders if not path.name.startswith((".", "@", "__")))


def _find(split: Path) -> list[Path]:
    paths = [path for folder in class_folders(split) for path in sorted(folder.iterdir())]
    photos = [path for path in paths if path.suffix.lower() in SUFFIXES]
    if ignored := sorted(set(paths) - set(photos)):
        logger.warning(
            "%s: %d entries are not JPEG, PNG or WebP files by name and are left out, such as %s",
            split,
            len(ignored),
            ignored[0],
        )
    return photos


def _check_names(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.name.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{folder!r}: the class's name is not UTF-8: rename it") from None


def _readable(paths: list[Path]) -> set[Path]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = track(pool.map(_problem, paths), "Checking photos", len(paths))
        broken = {path: problem for path, problem in zip(paths, problems, strict=True) if problem}
    for path, problem in broken.items():
        logger.warning("%s is left out: %s", path, problem)
    return set(paths) - set(broken)


def _problem(path: Path) -> str | None:
    try:
        decode(path.read_bytes(), target=1)
    except ImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror
    return None


def _count_classes(train: Path, found: list[Path], readable: set[Path]) -> dict[str, int]:
    readable_in = Counter(path.parent.name for path in found if path in readable)
    counts = {folder.name: readable_in[folder.name] for folder in class_folders(train)}
    for name, count in counts.items():
        if count == 0:
            raise UserError(
                f"{train / name} has no readable photo (JPEG, PNG or WebP): add some or remove "
                "the folder"
            )
    if len(counts) < 2:
        raise UserError(f"{train} has {len(counts)} class folder(s): at least two are needed")
    return counts


def _split(paths: list[Path], readable: set[Path], classes: tuple[str, ...]) -> Split | None:
    index = {name: position for position, name in enumerate(classes)}
    kept = [path for path in paths if path in readable]
    for path in kept:
        if path.parent.name not in index:
            raise UserError(
                f"{path.parent} has photos of a class that train/ lacks: add "
                f"train/{path.parent.name} or remove it"
            )
    if not kept:
        return None
    return Split(tuple(kept), tuple(index[path.parent.name] for path in kept))
