"""A bundle's folder: `manifest.json` and the files that it lists, never changed once written."""

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
from pydantic import ValidationError

from taillift.models.bundle.atomic import atomic_folder
from taillift.models.bundle.ensemble import Ensemble, Floats
from taillift.models.bundle.manifest import FileRecord, Manifest
from taillift.models.bundle.prediction_sets import Labels
from taillift.models.bundle.schema import Precision
from taillift.models.errors import UserError

MANIFEST: Final = "manifest.json"
MODEL: Final = "model.onnx"
DELTA: Final = "delta.safetensors"
GOLDEN: Final = "golden.npz"
REPORT: Final = "report"


def read_manifest(folder: Path) -> Manifest:
    """Raises `UserError` where `folder` is no bundle, or its manifest unreadable or not valid."""
    try:
        with _readable(folder):
            text = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} is no bundle (it has no {MANIFEST}): make one with `taillift export`"
        ) from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{folder / MANIFEST} is not valid at {where} ({first['msg']}): export the bundle again"
        ) from error


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare every listed file's size and sha256, and the manifest's version with theirs.

    Raises `UserError` at the first that differs or cannot be read.
    """
    for name in (MODEL, GOLDEN):
        if name not in manifest.files:
            raise UserError(f"{folder / MANIFEST} does not list {name}: export the bundle again")
    if (version := content_version(manifest.files)) != manifest.version:
        raise UserError(
            f"{folder / MANIFEST} says version {manifest.version} and lists the files of version "
            f"{version}: copy the whole bundle again"
        )
    with _readable(folder):
        for name, record in manifest.files.items():
            _verify_file(folder / name, record)


def _verify_file(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing: copy the whole bundle again")
    if file_record(path) != record:
        raise UserError(
            f"{path} is not the file that the manifest lists (its hash differs): "
            "copy the whole bundle again"
        )


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """What the system refuses to read in the block is one line, but for what is not there."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except PermissionError as error:
        raise UserError(
            f"{error.filename} may not be read by this user: run `chmod -R a+rX {folder}`, and see "
            "that the folders above it can be entered"
        ) from error
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be read ({error.strerror}): copy the whole bundle "
            "again"
        ) from error


def file_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(sha256=digest, size=path.stat().st_size)


def content_version(files: dict[str, FileRecord]) -> str:
    """The first 12 hex digits of the sha256 over the files' names and hashes, in name order."""
    lines = "".join(f"{name} {files[name].sha256}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


class BundleBuilder:
    """A bundle that is being made: fill the folder `path`, then call `finish`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished = False

    def finish(self, make_manifest: Callable[[str, dict[str, FileRecord]], Manifest]) -> Manifest:
        """Hash every file in the folder, write the manifest and return it.

        `make_manifest` is given the content version and the files' records by their names.
        """
        paths = sorted(path for path in self.path.rglob("*") if path.is_file())
        files = {path.relative_to(self.path).as_posix(): file_record(path) for path in paths}
        manifest = make_manifest(content_version(files), files)
        (self.path / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")
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
    """Keep views uint8 [N, S, S, 3] and the logits float32 [N, C] that they must give.

    Logits that are not given by precision are those of fp32.
    """
    every = logits if isinstance(logits, Mapping) else {Precision.FP32: logits}
    arrays = {str(precision): values for precision, values in every.items()}
    np.savez_compressed(folder / GOLDEN, allow_pickle=False, pixels=pixels, **arrays)


def read_golden(
    folder: Path, precision: Precision = Precision.FP32
) -> tuple[np.ndarray, np.ndarray]:
    """What `write_golden` wrote; raises `UserError` where it is not that."""
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
    """The named arrays of a bundle's npz file; raises `UserError` where it is not whole."""
    try:
        with (
            _readable(path.parent),
            path.open("rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            return [arrays[name] for name in names]
    except FileNotFoundError:
        raise UserError(f"{path} is missing: export the bundle again") from None
    except (ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): export the bundle again") from error


@dataclass(frozen=True)
class HeldOutScores:
    """Of each held-out photo its class int64 [N] and, by ensemble, its score float32 [N]."""

    labels: Labels
    ensembles: Mapping[Ensemble, Floats]


def scores_file(precision: Precision) -> str:
    return f"calibration.{precision}.npz"


def write_scores(folder: Path, precision: Precision, scores: HeldOutScores) -> None:
    """Keep the scores beside the model."""
    ensembles = {_key(ensemble): values for ensemble, values in scores.ensembles.items()}
    np.savez_compressed(
        folder / scores_file(precision),
        allow_pickle=False,
        labels=scores.labels.astype(np.int32),
        **ensembles,
    )


def read_scores(
    folder: Path, precision: Precision, ensembles: Sequence[Ensemble], classes: int
) -> HeldOutScores:
    """What `write_scores` wrote for these `ensembles`; raises `UserError` where it is not that."""
    path = folder / scores_file(precision)
    labels, *scores = read_arrays(path, ["labels", *map(_key, ensembles)])
    if not (
        (labels.dtype, labels.ndim) == (np.dtype(np.int32), 1)
        and all((one.dtype, one.shape) == (np.dtype(np.float32), labels.shape) for one in scores)
        and _within(labels, 0, classes - 1)
        and all(_within(one, 0, 1) for one in scores)
    ):
        raise UserError(
            f"{path} does not hold classes int32 [N] below {classes} and scores float32 [N] from "
            f"0 to 1 for {', '.join(ensembles)}: export the bundle again"
        )
    return HeldOutScores(labels.astype(np.int64), dict(zip(ensembles, scores, strict=True)))


def _key(ensemble: Ensemble) -> str:
    return f"score_{ensemble}"


def _within(values: np.ndarray, least: float, most: float) -> bool:
    """NaN is within nothing."""
    return bool(((values >= least) & (values <= most)).all())
