"""`taillift classify --out FOLDER`: a Parquet file for each part of a large set of photos."""

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from taillift.models.bundle.atomic import atomic_file
from taillift.models.errors import UserError
from taillift.models.terminal import say
from taillift.service.inference.folder_run import PredictionRows, classify_photos
from taillift.service.inference.photo_parts import PhotoPart, PhotoSet
from taillift.service.inference.row_file import Cell, part_of

PROGRESS: Final = "_progress.json"
# Held while the progress is changed, because several processes may write their parts.
LOCK: Final = ".lock"
ADVICE: Final = "choose another folder for --out"


def parse_share(text: str) -> tuple[int, int]:
    """Return which of how many shares, such as (1, 8) of "2/8", the first being 0.

    Raises `UserError` if it is none.
    """
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise UserError(f"--share {text} is not a share such as 2/8")
    return int(first) - 1, int(count)


class PartFolder:
    """A folder of files part-*.parquet, one for each part, and `_progress.json`.

    Each file is there whole or not at all, so several processes may write different parts.
    """

    def __init__(self, folder: Path, parts: Sequence[PhotoPart], table: PredictionRows) -> None:
        """Raises `UserError` if the folder has another run's files."""
        self._folder, self._parts, self._table = folder, parts, table
        try:
            folder.mkdir(parents=True, exist_ok=True)
            others = [path.name for path in folder.iterdir() if path.name[0] not in "._"]
        except OSError as error:
            raise UserError(f"{folder} cannot be used: {error.strerror}") from error
        names = {self.path(number).name for number in range(len(parts))}
        names |= {part_of(self.path(number)).name for number in range(len(parts))}
        if foreign := sorted({*others} - names):
            raise UserError(f"{folder} has {foreign[0]}, which is not of this run: {ADVICE}")
        made = self._read()["made"]
        if made not in ({}, self._made):
            raise UserError(f"{folder} was made by another bundle or with other options: {ADVICE}")

    @property
    def _made(self) -> dict[str, Cell]:
        return {**self._table.same, "columns": list(self._table.types)}

    def path(self, number: int) -> Path:
        """Return the file of a part."""
        return self._folder / f"part-{number:05}.parquet"

    def is_done(self, number: int) -> bool:
        """Return whether a part has its file; raises `UserError` if the file is of another part."""
        path = self.path(number)
        if not path.exists():
            return False
        part_of(path).unlink(missing_ok=True)
        recorded = self._read()["parts"].get(path.name)
        if recorded is None:
            with self._parts[number].open() as photos:
                self._record(number, photos)
        elif recorded["source"] != self._parts[number].source:
            raise UserError(f"{path} is of {recorded['source']}, not its place now: {ADVICE}")
        return True

    def _record(self, number: int, photos: PhotoSet) -> None:
        """Record a file that is whole; raises `UserError` if it has other photos or options."""
        from pyarrow import parquet

        path, part = self.path(number), self._parts[number]
        same = self._table.same
        is_ours = parquet.read_schema(path).names == list(self._table.types)
        columns = ["photo", "error", *(same if is_ours else ())]
        written = parquet.read_table(path, columns=columns).to_pydict()
        if not is_ours or any({*written[name]} - {value} for name, value in same.items()):
            raise UserError(f"{path} was made by another bundle or with other options: {ADVICE}")
        if written["photo"] != list(photos.names):
            raise UserError(f"{path} has other photos than {part.source}: {ADVICE}")
        recorded = {
            "source": part.source,
            "photos": len(written["photo"]),
            "errors": sum(error is not None for error in written["error"]),
        }
        with (self._folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            progress = self._read()
            progress["made"] = self._made
            progress["parts"][path.name] = recorded
            progress["done"], progress["of"] = len(progress["parts"]), len(self._parts)
            for name in ("photos", "errors"):
                progress[name] = sum(one[name] for one in progress["parts"].values())
            with atomic_file(self._folder / PROGRESS) as file:
                file.write_text(json.dumps(progress, indent=2), "utf-8")

    def _read(self) -> dict[str, Any]:
        try:
            progress: dict[str, Any] = json.loads((self._folder / PROGRESS).read_text("utf-8"))
            return progress
        except FileNotFoundError:
            return {"made": {}, "parts": {}}
        except (OSError, ValueError) as error:
            raise UserError(f"{self._folder / PROGRESS} cannot be read: {error}") from error

    def classify(self, share: tuple[int, int]) -> None:
        """Write the parts of a share that are missing: one of them, the first being 0, of many."""
        for number in range(share[0], len(self._parts), share[1]):
            if not self.is_done(number):
                part, table = self._parts[number], self._table
                say(f"part {number + 1} of {len(self._parts)}: {part.source}", err=True)
                with part.open() as photos:
                    classify_photos(table.classifier, photos, self.path(number), table.asked)
                    self._record(number, photos)
        progress = {"done": 0, "photos": 0, "errors": 0} | self._read()
        say(
            f"{progress['done']} of {len(self._parts)} parts: {progress['photos']:,} photos, "
            f"{progress['errors']:,} cannot be used",
            err=True,
        )
