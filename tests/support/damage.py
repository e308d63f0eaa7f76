"""Ways in which a bundle can be damaged on the disk."""

from pathlib import Path

import numpy as np

from taillift.models.bundle.folder import (
    MANIFEST,
    MODEL,
    file_record,
    read_golden,
    read_manifest,
    write_golden,
    write_manifest,
)


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / MODEL).unlink()  # It may be a link to another version's file.
    (folder / MODEL).write_bytes(content)


def lose_a_file(folder: Path) -> None:
    (folder / "golden.npz").unlink()


def name_another_schema(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"schema_version": 2', '"schema_version": 9'))


def change_golden_logits(folder: Path) -> None:
    pixels, logits = read_golden(folder)
    replace_golden(folder, pixels, logits + np.float32(1))


def replace_golden(folder: Path, pixels: np.ndarray, logits: np.ndarray) -> None:
    """Give a bundle other golden views and logits, as whoever made it could have."""
    (folder / "golden.npz").unlink()  # It may be a link to another version's file.
    write_golden(folder, pixels, logits)
    manifest = read_manifest(folder)
    files = {**manifest.files, "golden.npz": file_record(folder / "golden.npz")}
    write_manifest(folder / MANIFEST, manifest.model_copy(update={"files": files}))
