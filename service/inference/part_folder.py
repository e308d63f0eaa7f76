"""`taillift classify --out FOLDER`: a Parquet file for each part of a large set of photos."""

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from taillift.models.bundle.atomic import atomic_file
from taillift.models.bundle.classifier import Classifier
from taillift.models.errors import UserError, first_lines
from taillift.models.terminal import say
from taillift.service.inference.folder_run import Asked, PredictionRows, classify_photos
from taillift.service.inference.photo_parts import PhotoPart, PhotoSet
from taillift.service.inference.row_file import Cell, part_of

PROGRESS: Final = "_progress.json"
# Held while the progress is changed, because several processes may write their parts.
LOCK: Final = ".lock"
ADVICE: Final = "choose another folder for --out"
# Of a Ray cluster: if actors have all CPUs, the rest of a job of Ray Data waits for ever.
SPARE_CPUS: Final = 1


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
        self._folder, self._table = folder, table
        self._parts, self._count = dict(enumerate(parts)), len(parts)
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
        if made not in ({}, self.made):
            raise UserError(f"{folder} was made by another bundle or with other options: {ADVICE}")

    @classmethod
    def of_one(
        cls, folder: Path, number: int, count: int, part: PhotoPart, table: PredictionRows
    ) -> "PartFolder":
        """Return the folder for one of `count` parts; another process knows the others."""
        one = cls.__new__(cls)
        one._folder, one._table, one._parts, one._count = folder, table, {number: part}, count
        return one

    @property
    def made(self) -> dict[str, Cell]:
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
            progress["made"] = self.made
            progress["parts"][path.name] = recorded
            progress["done"], progress["of"] = len(progress["parts"]), self._count
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
        for number in range(share[0], self._count, share[1]):
            if not self.is_done(number):
                self._tell(number)
                self.write(number)
        self._summarise()

    def write(self, number: int) -> None:
        """Write a part that is missing, or the rest of it."""
        table = self._table
        with self._parts[number].open() as photos:
            classify_photos(table.classifier, photos, self.path(number), table.asked)
            self._record(number, photos)

    def classify_on_ray(self, address: str, opener: Callable[[], Classifier]) -> None:
        """Write the parts that are missing on a Ray cluster, one at a time in each actor.

        `opener` opens the bundle there. All nodes must see the folder, the photos and the bundle at
        the same paths. Raises `UserError`.
        """
        missing = [number for number in range(self._count) if not self.is_done(number)]
        if missing:
            ray = connected_ray(address)
            try:
                self._write_on_ray(ray, address, missing, opener)
            except ray.exceptions.RayError as error:
                reason = first_lines(error)
                raise UserError(f"the Ray cluster at {address} failed: {reason}") from error
            finally:
                ray.shutdown()
        self._summarise()

    def _write_on_ray(
        self, ray: Any, address: str, missing: Sequence[int], opener: Callable[[], Classifier]
    ) -> None:
        actors = int(ray.cluster_resources().get("CPU", 0)) - SPARE_CPUS
        if actors < 1:
            raise UserError(
                f"the Ray cluster at {address} has too few CPUs: it needs {1 + SPARE_CPUS}, one to "
                "classify and one for Ray itself, which would wait for ever"
            )
        run = RayRun(
            Path.cwd(), self._folder.absolute(), self._count, opener, self._table.asked, self.made
        )
        items = [
            {"number": number, "part": ray.cloudpickle.dumps(self._parts[number])}
            for number in missing
        ]
        written = ray.data.from_items(items, override_num_blocks=len(items)).map(
            RayPartWriter,
            fn_constructor_args=(ray.cloudpickle.dumps(run),),
            num_cpus=1,
            concurrency=(1, min(actors, len(items))),
        )
        for row in written.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            self._tell(row["number"])

    def _tell(self, number: int) -> None:
        say(f"part {number + 1} of {self._count}: {self._parts[number].source}", err=True)

    def _summarise(self) -> None:
        """Say how many parts are done, by whomever."""
        progress = {"done": 0, "photos": 0, "errors": 0} | self._read()
        say(
            f"{progress['done']} of {self._count} parts: {progress['photos']:,} photos, "
            f"{progress['errors']:,} cannot be used",
            err=True,
        )


@dataclass(frozen=True)
class RayRun:
    """One run, as an actor on a Ray cluster needs to know it; relative paths begin at `home`."""

    home: Path
    folder: Path
    count: int
    opener: Callable[[], Classifier]
    asked: Asked
    made: Mapping[str, object]


class RayPartWriter:
    """An actor that writes parts. It returns errors that a user can mend, and raises the others."""

    def __init__(self, run: bytes) -> None:
        """`run` is a pickled `RayRun`."""
        from ray import cloudpickle

        self._run: RayRun = cloudpickle.loads(run)
        self._table: PredictionRows | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a part; return its number, and why it cannot be written, if so."""
        try:
            self._write(row["number"], row["part"])
        except (UserError, OSError) as error:
            return {"number": row["number"], "error": str(error)}
        return {"number": row["number"], "error": ""}

    def _write(self, number: int, part: bytes) -> None:
        from ray import cloudpickle

        run = self._run
        if self._table is None:
            os.chdir(run.home)
            self._table = PredictionRows(run.opener(), run.asked)
        one = cloudpickle.loads(part)
        folder = PartFolder.of_one(run.folder, number, run.count, one, self._table)
        if folder.made != run.made:
            raise UserError(f"the bundle on node {os.uname().nodename} is another one")
        if not folder.is_done(number):  # Ray repeats what an actor that died has begun.
            folder.write(number)


def connected_ray(address: str) -> Any:
    """Return Ray's module, connected to a cluster; raises `UserError` if that is impossible."""
    import logging

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise UserError("Ray is not installed: install taillift[ray]") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # If nothing starts in time, Ray raises just that.
        raise UserError(f"no Ray cluster at {address}: {first_lines(error)}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    return ray
