"""Reads CIFAR-100's original files, as Python pickles or as binary, in a folder or a .tar.gz."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numpy._core.multiarray import _reconstruct

from taillift.models.errors import UserError
from taillift.training.data.classes import PROMPT_NAMES, Vocabulary
from taillift.training.data.photo import RawPhoto, Split, SplitName, split_in
from taillift.training.data.readers.listing import Listing, unused_entries

SHAPE: Final = (3, 32, 32)
BYTES: Final = 3 * 32 * 32
# A row of the binary files has the coarse label, the fine label and the pixels.
BINARY_ROW: Final = 2 + BYTES
LABELS: Final = "fine_label_names"
PYTHON: Final = ("train", "test", "meta")
BINARY: Final = ("train.bin", "test.bin", f"{LABELS}.txt")
FOLDERS: Final = ("cifar-100-python", "cifar-100-binary")
# All that the authors publish, of which taillift needs a part.
PUBLISHED: Final = {
    *PYTHON,
    *BINARY,
    *FOLDERS,
    *(f"{name}.tar.gz" for name in FOLDERS),
    "file.txt~",
    "coarse_label_names.txt",
    PROMPT_NAMES,
}
CIFAR_SPLITS: Final[tuple[SplitName, ...]] = ("train", "test")
ADVICE: Final = "download CIFAR-100 again"

# All names that an array in a pickle needs. The module was called numpy.core when the files were
# made.
ALLOWED: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler of dicts, lists, strings, numbers and numpy arrays that refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is not in CIFAR's files"
            )
        return ALLOWED[module, name]


def is_cifar(source: Path) -> bool:
    """Return whether `source` is an archive, or a folder with CIFAR's training file."""
    if source.name.endswith((".tar.gz", ".tgz")):
        return source.is_file() and split_in(source.name.partition(".")[0]) is None
    return _data_folder(source) is not None


def read_cifar(source: Path) -> Listing:
    """Return all photos with the 100 fine classes.

    The pixels stay in memory and reach the tower without any loss. The classes' names are in label
    order, so that `tail_indices` makes CIFAR-100-LT of this set. Raises `UserError` if a file is
    missing or damaged, or if a pickle holds anything but arrays.
    """
    files = _read_files(source)
    if "meta" in files:
        names = _unpickle(files["meta"], f"{source}: meta").get(LABELS.encode())
        if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
            raise UserError(f"{source}: meta has no list {LABELS}: {ADVICE}")
        classes = [name.decode("ascii", "replace") for name in names]
        vocabulary = Vocabulary(tuple(classes), f"{source}: meta")
        read = _read_python
    else:
        text = files[f"{LABELS}.txt"].decode("ascii", "replace")
        vocabulary = Vocabulary(tuple(text.split()), f"{source}: {LABELS}.txt")
        read = _read_binary
    splits: dict[SplitName, Split] = {}
    for split in CIFAR_SPLITS:
        pixels, labels = read(files, split, source)
        if labels and not 0 <= min(labels) <= max(labels) < len(vocabulary.classes):
            raise UserError(
                f"{source}: {split} has labels from {min(labels)} to {max(labels)}, and there are "
                f"{len(vocabulary.classes)} classes: {ADVICE}"
            )
        rows = enumerate(pixels.reshape(-1, *SHAPE))
        photos = tuple(RawPhoto(f"{split}/{index}", row) for index, row in rows)
        splits[split] = Split(photos, tuple(labels))
    folder = source if source.is_dir() else source.parent
    layout = f"CIFAR-100's files {', '.join(files)}"
    unused = unused_entries(source, PUBLISHED) if source.is_dir() else []
    return Listing(source, "cifar-100", vocabulary, folder, splits, layout, tuple(unused))


def _data_folder(source: Path) -> Path | None:
    """Return `source`, or the folder in it, that holds CIFAR's training file."""
    folders = (source, *(source / name for name in FOLDERS))
    return next(
        (
            folder
            for folder in folders
            if (folder / "train").is_file() or (folder / "train.bin").is_file()
        ),
        None,
    )


def _read_files(source: Path) -> Mapping[str, bytes]:
    """Return the contents of `PYTHON` or of `BINARY`, by the files' names."""
    files: dict[str, bytes] = {}
    if source.is_dir():
        if folder := _data_folder(source):
            paths = [folder / name for name in (*PYTHON, *BINARY)]
            files = {path.name: path.read_bytes() for path in paths if path.is_file()}
    else:
        try:
            with tarfile.open(source, "r:gz") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name in (*PYTHON, *BINARY) and (file := archive.extractfile(member)):
                        files[name] = file.read()
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise UserError(f"{source} is damaged ({error}): {ADVICE}") from error
    needed = BINARY if "train.bin" in files else PYTHON
    if missing := [name for name in needed if name not in files]:
        raise UserError(
            f"{source} lacks CIFAR-100's file {missing[0]}: {ADVICE}, or unpack an archive of "
            "other photos into a folder"
        )
    return {name: files[name] for name in needed}


def _read_python(
    files: Mapping[str, bytes], split: SplitName, source: Path
) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Return the pixels [N, BYTES] and the N labels of a split."""
    contents = _unpickle(files[split], f"{source}: {split}")
    pixels, labels = contents.get(b"data"), contents.get(b"fine_labels")
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and isinstance(labels, list)
        and all(isinstance(label, int) for label in labels)
        and pixels.shape == (len(labels), BYTES)
    ):
        raise UserError(
            f"{source}: {split} has no uint8 data [N, {BYTES}] with N fine_labels: {ADVICE}"
        )
    return pixels, labels


def _read_binary(
    files: Mapping[str, bytes], split: SplitName, source: Path
) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Return the pixels [N, BYTES] and the N labels of a split."""
    content = np.frombuffer(files[f"{split}.bin"], np.uint8)
    if len(content) % BINARY_ROW or not len(content):
        raise UserError(
            f"{source}: {split}.bin has {len(content):,} bytes, not {BINARY_ROW:,} a photo: "
            f"{ADVICE}"
        )
    rows = content.reshape(-1, BINARY_ROW)
    return rows[:, 2:], rows[:, 1].tolist()


def _unpickle(content: bytes, where: str) -> dict[bytes, Any]:
    try:
        # Python 2 wrote the files, so their strings are bytes.
        contents = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # A damaged pickle may raise anything.
        raise UserError(f"{where} is damaged or not a CIFAR file ({error}): {ADVICE}") from error
    if not isinstance(contents, dict):
        raise UserError(f"{where} is not a CIFAR file (it holds no dict): {ADVICE}")
    return contents
