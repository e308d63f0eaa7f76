"""The file next to a checkpoint that an interrupted training run continues from."""

import hashlib
import json
import time
from dataclasses import asdict
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, ZipFile

import torch

from taillift.models.bundle.atomic import atomic_file, file_sha256
from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone
from taillift.training.data.dataset import Dataset
from taillift.training.fit.distributed import Processes
from taillift.training.fit.progress import Progress
from taillift.training.recipe.recipe import Recipe

# Within an epoch, the file is written at most this often, in seconds.
SAVE_EVERY = 600.0
# Raise it when the content of the file changes its meaning.
FORMAT: Final = 1
# Stands behind the sha256 of everything before it, at the end of the file.
SEAL: Final = b"taillift sha256\n"
# The signature of a zip archive's last record, and the record's size without a comment.
ARCHIVE_END: Final = b"PK\5\6"
ARCHIVE_END_BYTES: Final = 22


class Resume:
    """The state of the run with the fingerprint `key`, in a file at `path`; None keeps no file.

    Crops and the order of the photos follow from seed and epoch. So the position of the run and the
    optimisation state are all that the file has to hold.
    """

    def __init__(self, path: Path | None, key: str, processes: Processes) -> None:
        """Read the file. Collective.

        `progress` and `optimisation` are None if there is no file. Raises `UserError` if the file
        is from another run or cannot be read.
        """
        self._key = key
        self._path = path if processes.rank == 0 else None
        self._written = time.monotonic()
        state: dict[str, Any] | str | None = None
        if self._path is not None:
            try:
                state = read_state(self._path, key)
            except UserError as error:
                # Only the first process reads; its error has to end all of them.
                state = str(error)
        state = processes.broadcast(state)
        if isinstance(state, str):
            raise UserError(state)
        self.progress: Progress | None = Progress(**state["progress"]) if state else None
        self.optimisation: dict[str, Any] | None = state["learner"] if state else None

    @property
    def done(self) -> int:
        """The number of steps that are done already."""
        return self.progress.done if self.progress else 0

    @property
    def due(self) -> bool:
        """Whether the file was last written more than `SAVE_EVERY` seconds ago."""
        return time.monotonic() - self._written >= SAVE_EVERY

    def forget(self) -> None:
        """Remove the file, so that the run starts from the beginning the next time."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def write(self, progress: Progress, optimisation: dict[str, Any]) -> None:
        """Replace the file; the old one stays intact until the new one is complete."""
        if self._path is not None:
            # On disk, the optimisation state has the name that it had in the first files.
            state = {"key": self._key, "progress": asdict(progress), "learner": optimisation}
            with atomic_file(self._path) as temporary:
                torch.save(state, temporary)
                digest = file_sha256(temporary).digest()
                with temporary.open("ab") as file:
                    file.write(digest + SEAL)
        self._written = time.monotonic()


def read_state(path: Path, key: str) -> dict[str, Any] | None:
    """Return what the run with the fingerprint `key` has left at `path`; None without a file.

    Raises `UserError` if the file is from another run or cannot be read.
    """
    if not path.exists():
        return None
    try:
        check_seal(path)
        # For older files without a digest: `torch.load` does not verify the archive's checksums.
        with ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise BadZipFile(f"{damaged} does not match its checksum")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved_key = state["key"]
    except Exception as error:  # A damaged file may raise anything.
        raise UserError(
            f"{path}, left by an interrupted run, cannot be read: remove it to start from the "
            "beginning"
        ) from error
    if saved_key != key:
        raise UserError(
            f"{path} was left by an interrupted run with another recipe, other photos or another "
            "backbone: remove it, or write this run's checkpoint elsewhere"
        )
    return state


def check_seal(path: Path) -> None:
    """Raise `ValueError` unless the file is an archive with its digest, or an older one without."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        if data[-len(SEAL) :] == SEAL:
            end = len(data) - len(SEAL) - hashlib.sha256().digest_size
            with memoryview(data) as whole, whole[:end] as archive:
                digest = hashlib.sha256(archive).digest()
            if digest != data[end : -len(SEAL)]:
                raise ValueError("the archive does not match its digest")
        elif not data[-ARCHIVE_END_BYTES:].startswith(ARCHIVE_END):
            raise ValueError("the end is neither that of an archive nor a digest")


def resume_path(checkpoint: Path) -> Path:
    """Return the path of the file that a run which ends in `checkpoint` continues from."""
    return checkpoint.with_name(f"{checkpoint.name}.resume")


def run_key(recipe: Recipe, data: str, backbone: str) -> str:
    """Return the sha256 of all that a run's result depends on.

    That is the recipe with the content of the files that it names, and the sha256 of the photos
    (`data`, as `Dataset.fingerprint_for` gives it) and of the backbone. Raises `UserError` if such
    a file cannot be read.
    """
    files = recipe.head.initial.contents()
    # Recipes had no such fields at first; runs that do not use them keep their keys.
    absent: dict[str, Any] = {"bounded": True} if recipe.bounded else {}
    absent |= {"effort": True} if recipe.effort == "quick" else {}
    absent |= {"unlabelled": True} if recipe.unlabelled is None else {}
    absent |= {"soup": True} if recipe.soup is None else {}
    fields = recipe.model_dump(mode="json", exclude=absent)
    later = ("aim", "give", "chosen", "cues")
    fields["loss"] = {
        name: value
        for name, value in fields["loss"].items()
        if value is not None or name not in later
    }
    if recipe.soup is not None:
        fields["soup"]["parents"] = [run_key(one, data, backbone) for one in recipe.soup.parents]
    parts = [FORMAT, fields, data, backbone, *files]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def run_key_of(recipe: Recipe, dataset: Dataset, backbone: Backbone) -> str:
    """Return the fingerprint of a run, which depends on unlabelled photos only if it uses them."""
    data = dataset.fingerprint_for(recipe.unlabelled is not None)
    return run_key(recipe, data, backbone.sha256)
