"""Writes small data sets in the two file formats of CIFAR-100, for the tests of its reader."""

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


class Python2Pickler(pickle._Pickler):
    """A pickler that writes bytes as Python 2 strings and numpy's module by its old name."""

    # Python's own type stubs leave out these two methods of `pickle._Pickler`.
    write: Callable[[bytes], object]
    memoize: Callable[[object], None]

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_bytes(self, content: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(content)

    dispatch[bytes] = save_bytes

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)  # type: ignore[misc]

    dispatch[type(np.ndarray)] = save_global
    dispatch[type(np.zeros)] = save_global


def pickled(contents: dict[bytes, Any]) -> bytes:
    """Return the contents as a pickle of protocol 2, as the published files have it."""
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(contents)
    return buffer.getvalue()


def class_names(count: int = 100) -> list[bytes]:
    """Return the names class_00, class_01 and so on."""
    return [f"class_{label:02}".encode() for label in range(count)]


def write_python(folder: Path, train: list[int], test: list[int], pixels: Any = None) -> Path:
    """Write the Python version, with these labels, to `folder`, and return the folder.

    `pixels` are those of the training photos, uint8 [N, 3072]. All other photos are black.
    """
    folder.mkdir(parents=True)
    for name, labels in (("train", train), ("test", test)):
        data = np.zeros((len(labels), 3072), np.uint8)
        if name == "train" and pixels is not None:
            data = pixels
        contents = {b"data": data, b"fine_labels": labels, b"coarse_labels": [0] * len(labels)}
        (folder / name).write_bytes(pickled(contents))
    (folder / "meta").write_bytes(pickled({b"fine_label_names": class_names()}))
    return folder


def write_binary(folder: Path, train: list[int], test: list[int]) -> Path:
    """Write the binary version, with these labels, to `folder`, and return the folder."""
    folder.mkdir(parents=True)
    for name, labels in (("train", train), ("test", test)):
        rows = np.zeros((len(labels), 3074), np.uint8)
        rows[:, 1] = labels
        rows[:, 0] = 19
        rows[:, 2:] = np.arange(len(labels))[:, None] % 256
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    (folder / "fine_label_names.txt").write_bytes(b"\n".join(class_names()) + b"\n")
    return folder
