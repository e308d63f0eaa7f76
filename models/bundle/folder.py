"""A bundle's folder: `manifest.json` and the files that it lists, which never change."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from taillift.models.bundle.arrays import Floats, Labels
from taillift.models.bundle.atomic import atomic_file, atomic_folder, file_sha256
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.manifest import FileRecord, Manifest
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.errors import UserError, first_lines

logger = logging.getLogger(__name__)

MANIFEST: Final = "manifest.json"
# The folder with the bundles of a store.
VERSIONS: Final = "versions"
MODEL: Final = "model.onnx"
DELTA: Final = "delta.safetensors"
GOLDEN: Final = "golden.npz"
REPORT: Final = "report"
CONFUSION: Final = "report/confusion.csv"
# Bytes of an npz file once unpacked: the scores of ten million photos, or 400 golden images.
MAX_ARRAYS: Final = 2**28
# Bytes of a manifest: that of 20,000 classes has 5 million.
MAX_MANIFEST: Final = 2**26


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest and check the version that follows from it.

    Raises `UserError` if `folder` is not a bundle, or if its manifest is unreadable, not valid, of
    another version than it says, or does not list a file that is used.
    """
    path = folder / MANIFEST
    try:
        with readable(folder), path.open("rb") as file:
            text = file.read(MAX_MANIFEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        what, advice = instead_of_bundle(folder)
        raise UserError(f"{folder} is not a bundle ({what}): {advice}") from None
    if len(text) > MAX_MANIFEST:
        raise UserError(f"{path} has more than {MAX_MANIFEST:,} bytes: export the bundle again")
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{path} is not valid at {where} ({message}): export the bundle again"
        ) from error
    for name in used_files(manifest):
        if name not in manifest.files:
            raise UserError(f"{path} does not list {name}: export the bundle again")
    if manifest.schema_version == 1:
        if (version := content_version(manifest.files)) != manifest.version:
            raise UserError(
                f"{path} says version {manifest.version} and lists the files of version "
                f"{version}: copy the whole bundle again"
            )
        tell_of_first_schema(folder, manifest.version)
    elif (version := document_version(json.loads(text))) != manifest.version:
        raise UserError(
            f"{path} says version {manifest.version} and its content has version {version}: it "
            "was changed after the bundle was made; copy the whole bundle again"
        )
    return manifest


def instead_of_bundle(path: Path) -> tuple[str, str]:
    """Return in words why a path without a manifest is not a bundle, and what to do."""
    if (path / VERSIONS).is_dir():
        version = path / VERSIONS / "1"
        return "it is a store", f"serve it with --store, or name a version of it, such as {version}"
    if path.is_file():
        return "it is a file", f"if it is a checkpoint, pass it to `taillift export {path} PHOTOS`"
    what = f"it has no {MANIFEST}" if path.exists() else "it does not exist"
    return what, "make one with `taillift export`"


@cache
def tell_of_first_schema(folder: Path, version: str) -> None:
    """Log once that a bundle's version says nothing about its manifest."""
    logger.warning(
        "%s (%s) is of schema 1: its version does not cover the manifest with the labels and "
        "temperatures; `taillift upgrade-bundle` makes it schema 2",
        folder,
        version,
    )


def used_files(manifest: Manifest) -> list[str]:
    """Return the names of the files without which the bundle cannot be opened."""
    graphs = [FILES[precision] for precision in manifest.variants]
    scores = [scores_file(name) for name, variant in manifest.variants.items() if variant.sets]
    return [*graphs, GOLDEN, *scores]


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare every listed file's size and sha256.

    Raises `UserError` for the first that differs or cannot be read.
    """
    for name in manifest.files:
        verify_file(folder, manifest, name)


def verify_file(folder: Path, manifest: Manifest, name: str) -> None:
    """Compare one listed file's size and sha256.

    Raises `UserError` if it differs, cannot be read or is outside the folder.
    """
    path, record = folder / name, manifest.files[name]
    with readable(folder):
        if not is_inside(folder, name):
            raise UserError(f"{folder / MANIFEST} lists {name}, which is outside the folder")
        if not path.is_file():
            raise UserError(f"{path} is missing: copy the whole bundle again")
        if path.stat().st_size != record.size or file_record(path) != record:
            raise UserError(
                f"{path} is not the file that the manifest lists (its hash differs): "
                "copy the whole bundle again"
            )


def is_inside(folder: Path, name: str) -> bool:
    """Return whether `name` can be that of a file in a folder, wherever links lead."""
    return "\0" not in name and (folder / name).resolve().is_relative_to(folder.resolve())


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Raise `UserError` for what the system refuses to read in the block.

    A file that does not exist keeps its own error.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except PermissionError as error:
        raise UserError(
            f"{error.filename} may not be read by this user: run `chmod -R a+rX {folder}`, and "
            "make sure that the folders above it can be entered"
        ) from error
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be read ({error.strerror}): copy the whole bundle "
            "again"
        ) from error


def file_record(path: Path) -> FileRecord:
    """Return a file's sha256, in hex, and its size in bytes."""
    return FileRecord(sha256=file_sha256(path).hexdigest(), size=path.stat().st_size)


def content_version(files: dict[str, FileRecord]) -> str:
    """Return the version of schema 1, which stands for the files alone.

    It is the first 12 hex digits of the sha256 over the files' names and hashes, by name.
    """
    lines = "".join(f"{name} {files[name].sha256}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def document_version(document: dict[str, Any]) -> str:
    """Return the version of schema 2, which stands for the files and everything said of them.

    It is the first 12 hex digits of the sha256 over the manifest as JSON in ASCII, without its
    version, with sorted keys and without spaces.
    """
    covered = {key: value for key, value in document.items() if key != "version"}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_manifest(path: Path, manifest: Manifest) -> Manifest:
    """Write a manifest in schema 2 with the version that follows from it, and return it."""
    second = manifest.model_copy(update={"schema_version": 2})
    version = document_version(json.loads(second.model_dump_json()))
    complete = second.model_copy(update={"version": version})
    path.write_text(complete.model_dump_json(indent=2) + "\n", "utf-8")
    return complete


def upgrade(bundle: Path, target: Path | None = None) -> Manifest:
    """Give a bundle of schema 1 a manifest of schema 2, in its place or in a copy at `target`.

    Returns the new manifest. Raises `UserError` if the bundle is damaged or of schema 2 already.
    """
    old = read_manifest(bundle)
    verify_files(bundle, old)
    if old.schema_version > 1:
        raise UserError(f"{bundle} ({old.version}) is of schema 2 already: use it as it is")
    if target is None:
        with atomic_file(bundle / MANIFEST) as temporary:
            manifest = write_manifest(temporary, old)
            shutil.copymode(bundle / MANIFEST, temporary)
        return manifest
    with new_bundle(target) as builder:
        for name in old.files:
            (builder.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, builder.path / name)
        return builder.finish(lambda files: old.model_copy(update={"files": files}))


class BundleBuilder:
    """A bundle that is being made: fill the folder `path`, then call `finish`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished = False

    def finish(self, make_manifest: Callable[[dict[str, FileRecord]], Manifest]) -> Manifest:
        """Hash every file in the folder, write the manifest and return it with its version.

        `make_manifest` is given the files' records by their names.
        """
        paths = sorted(path for path in self.path.rglob("*") if path.is_file())
        files = {path.relative_to(self.path).as_posix(): file_record(path) for path in paths}
        manifest = write_manifest(self.path / MANIFEST, make_manifest(files))
        self.finished = True
        return manifest


@contextmanager
def new_bundle(target: Path, replace: bool = False) -> Iterator[BundleBuilder]:
    """Yield a builder whose folder becomes `target` at the end of the block.

    Nothing is left at `target` if the block raises an exception or ends without a call of
    `finish`, which raises `RuntimeError`. An existing bundle is replaced only if `replace` is
    true, and a folder that is not a bundle never.
    """
    with atomic_folder(target, MANIFEST if replace else None) as folder:
        builder = BundleBuilder(folder)
        yield builder
        if not builder.finished:
            raise RuntimeError(f"{target} was not written: its builder was not finished")


def write_golden(
    folder: Path, pixels: np.ndarray, logits: Mapping[Precision, np.ndarray] | np.ndarray
) -> None:
    """Write views uint8 [N, S, S, 3] and the logits float32 [N, C] that they must give.

    Logits that are not given by precision are those of fp32.
    """
    by_precision = logits if isinstance(logits, Mapping) else {Precision.FP32: logits}
    arrays = {str(precision): values for precision, values in by_precision.items()}
    np.savez_compressed(folder / GOLDEN, allow_pickle=False, pixels=pixels, **arrays)


def read_golden(
    folder: Path, precision: Precision = Precision.FP32
) -> tuple[np.ndarray, np.ndarray]:
    """Read what `write_golden` wrote; raises `UserError` if it is something else."""
    path = folder / GOLDEN
    pixels, logits = read_arrays(path, ["pixels", str(precision)])
    if not (
        (pixels.dtype, pixels.ndim) == (np.dtype(np.uint8), 4)
        and (logits.dtype, logits.ndim) == (np.dtype(np.float32), 2)
        and len(pixels) == len(logits) > 0
    ):
        raise UserError(
            f"{path} has pixels {pixels.dtype} {pixels.shape} and logits {logits.dtype} "
            f"{logits.shape}, not uint8 [N, S, S, 3] and float32 [N, C]: export the bundle again"
        )
    return pixels, logits


def read_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Read the named arrays of a bundle's npz file; raises `UserError` if it is damaged."""
    try:
        with readable(path.parent):
            file = path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: export the bundle again") from None
    try:
        with file, np.load(file, allow_pickle=False) as arrays:
            size = sum(member.file_size for member in arrays.zip.infolist())
            if size > MAX_ARRAYS:
                raise ValueError(f"it would take {size:,} bytes, more than {MAX_ARRAYS:,}")
            return [arrays[name] for name in names]
    except Exception as error:  # A damaged file may raise anything.
        raise UserError(
            f"{path} is damaged ({first_lines(error)}): export the bundle again"
        ) from error


@dataclass(frozen=True)
class HeldOutScores:
    """Each held-out photo's class int64 [N] and, for each ensemble, its score float32 [N]."""

    labels: Labels
    ensembles: Mapping[Ensemble, Floats]


def scores_file(precision: Precision) -> str:
    """Return the name of the file that holds a variant's scores."""
    return f"calibration.{precision}.npz"


def write_scores(folder: Path, precision: Precision, scores: HeldOutScores) -> None:
    """Write the scores next to the model."""
    ensembles = {f"score_{ensemble}": values for ensemble, values in scores.ensembles.items()}
    np.savez_compressed(
        folder / scores_file(precision),
        allow_pickle=False,
        labels=scores.labels.astype(np.int32),
        **ensembles,
    )


def read_scores(
    folder: Path, precision: Precision, ensembles: Sequence[Ensemble], classes: int
) -> HeldOutScores:
    """Read what `write_scores` wrote for these `ensembles`.

    Raises `UserError` if it is something else.
    """
    path = folder / scores_file(precision)
    labels, *scores = read_arrays(path, ["labels", *(f"score_{name}" for name in ensembles)])
    if not (
        (labels.dtype, labels.ndim) == (np.dtype(np.int32), 1)
        and all((part.dtype, part.shape) == (np.dtype(np.float32), labels.shape) for part in scores)
        and ((labels >= 0) & (labels < classes)).all()
        # Not true of NaN.
        and all(((part >= 0) & (part <= 1)).all() for part in scores)
    ):
        raise UserError(
            f"{path} does not hold classes int32 [N] below {classes} and scores float32 [N] from "
            f"0 to 1 for {', '.join(ensembles)}: export the bundle again"
        )
    return HeldOutScores(labels.astype(np.int64), dict(zip(ensembles, scores, strict=True)))
