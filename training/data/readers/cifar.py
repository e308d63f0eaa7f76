"""CIFAR-100's original files, as Python pickles or as binary, in a folder or a .tar.gz."""

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
from taillift.training.data.classes import Vocabulary, human_names
from taillift.training.data.photo import RawPhoto
from taillift.training.data.readers.listing import Listing
from taillift.training.data.split import Split, SplitName

Array = npt.NDArray[np.uint8]

SHAPE: Final = (3, 32, 32)
BYTES: Final = 3 * 32 * 32
# A row of the binary files: coarse label, fine label, pixels.
BINARY_ROW: Final = 2 + BYTES
LABELS: Final = "fine_label_names"
PYTHON: Final = ("train", "test", "meta")
BINARY: Final = ("train.bin", "test.bin", f"{LABELS}.txt")
FOLDERS: Final = ("cifar-100-python", "cifar-100-binary")
AGAIN: Final = "get CIFAR-100 again"

# All that an array in a pickle needs. numpy.core is what the module was called when the files were
# made.
ALLOWED: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings, numbers and numpy arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file does")
        return ALLOWED[module, name]


def is_cifar(source: Path) -> bool:
    if source.name.endswith((".tar.gz", ".tgz")):
        return source.is_file() and not source.name.startswith(("train-", "val-", "test-"))
    return any(
        (folder / name).is_file() for folder in _folders(source) for name in ("train", "train.bin")
    )


def read_cifar(source: Path) -> Listing:
    """The 100 fine classes; the pixels stay in memory and reach the tower without any loss.

    Cut to a tail by `tail_indices` this is CIFAR-100-LT: the classes' names are in label order.
    Raises `UserError` where a file is missing, damaged, or a pickle of anything but arrays.
    """
    files = _files(source)
    splits: dict[SplitName, Split]
    if "meta" in files:
        vocabulary = Vocabulary(_python_names(files["meta"], source), f"{source}: meta")
        splits = {
            "train": _python_split(files, "train", vocabulary, source),
            "test": _python_split(files, "test", vocabulary, source),
        }
    else:
        text = files[f"{LABELS}.txt"].decode("ascii", "replace")
        vocabulary = Vocabulary(tuple(text.split()), f"{source}: {LABELS}.txt")
        splits = {
            "train": _binary_split(files, "train", vocabulary, source),
            "test": _binary_split(files, "test", vocabulary, source),
        }
    folder = source if source.is_dir() else source.parent
    names = human_names(folder, vocabulary)
    return Listing(source, "cifar-100", vocabulary.classes, names, splits)


def _folders(source: Path) -> list[Path]:
    return [source, *(source / name for name in FOLDERS)]


def _files(source: Path) -> Mapping[str, bytes]:
    """The contents of the files that are needed, by name."""
    files = _unpacked(source) if source.is_dir() else _packed(source)
    wanted = BINARY if "train.bin" in files else PYTHON
    if missing := [name for name in wanted if name not in files]:
        raise UserError(f"{source} lacks CIFAR-100's file {missing[0]}: {AGAIN}")
    return {name: files[name] for name in wanted}


def _unpacked(source: Path) -> dict[str, bytes]:
    for folder in _folders(source):
        paths = [folder / name for name in (*PYTHON, *BINARY)]
        if (folder / "train").is_file() or (folder / "train.bin").is_file():
            try:
                return {path.name: path.read_bytes() for path in paths if path.is_file()}
            except OSError as error:
                raise UserError(f"{error.filename} cannot be read ({error.strerror})") from error
    return {}


def _packed(source: Path) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(source, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                if name in (*PYTHON, *BINARY) and (file := archive.extractfile(member)):
                    files[name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{source} is damaged ({error}): {AGAIN}") from error
    return files


def _python_names(meta: bytes, source: Path) -> tuple[str, ...]:
    names = _unpickled(meta, f"{source}: meta").get(LABELS.encode())
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise UserError(f"{source}: meta has no list {LABELS}: {AGAIN}")
    return tuple(name.decode("ascii", "replace") for name in names)


def _python_split(
    files: Mapping[str, bytes], name: SplitName, vocabulary: Vocabulary, source: Path
) -> Split:
    contents = _unpickled(files[name], f"{source}: {name}")
    pixels, labels = contents.get(b"data"), contents.get(b"fine_labels")
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and isinstance(labels, list)
        and all(isinstance(label, int) for label in labels)
        and pixels.shape == (len(labels), BYTES)
    ):
        raise UserError(
            f"{source}: {name} has no uint8 data [N, {BYTES}] with N fine_labels: {AGAIN}"
        )
    return _split(pixels, labels, name, vocabulary, source)


def _binary_split(
    files: Mapping[str, bytes], name: SplitName, vocabulary: Vocabulary, source: Path
) -> Split:
    content = np.frombuffer(files[f"{name}.bin"], np.uint8)
    if len(content) % BINARY_ROW or not len(content):
        raise UserError(
            f"{source}: {name}.bin has {len(content):,} bytes, not {BINARY_ROW:,} a photo: {AGAIN}"
        )
    rows = content.reshape(-1, BINARY_ROW)
    return _split(rows[:, 2:], rows[:, 1].tolist(), name, vocabulary, source)


def _split(
    pixels: Array, labels: list[int], name: SplitName, vocabulary: Vocabulary, source: Path
) -> Split:
    if labels and not 0 <= min(labels) <= max(labels) < len(vocabulary.classes):
        raise UserError(
            f"{source}: {name} has labels from {min(labels)} to {max(labels)}, and there are "
            f"{len(vocabulary.classes)} classes: {AGAIN}"
        )
    photos = [
        RawPhoto(f"{name}/{index}", row) for index, row in enumerate(pixels.reshape(-1, *SHAPE))
    ]
    return Split(tuple(photos), tuple(labels))


def _unpickled(content: bytes, where: str) -> dict[bytes, Any]:
    try:
        # The files are Python 2's: its strings are bytes.
        contents = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # A damaged pickle may raise anything.
        raise UserError(f"{where} is damaged or no CIFAR file ({error}): {AGAIN}") from error
    if not isinstance(contents, dict):
        raise UserError(f"{where} is no CIFAR file (it holds no dict): {AGAIN}")
    return contents
