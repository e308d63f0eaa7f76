"""The photos of the queue on the disk: each a folder of its own, which appears whole or not at all.

`ID/photo.jpg` (or .png, .webp) is the photo, `ID/entry.json` says what was predicted, and
`ID/label.json`, once somebody has labelled it, what it shows. The folder is the only memory of the
queue: several services and commands may use it at once.
"""

import json
import logging
import os
import re
import shutil
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from taillift.models.bundle.arrays import Floats
from taillift.models.bundle.atomic import atomic_file, atomic_folder
from taillift.models.bundle.schema import Group, SixDigits
from taillift.models.errors import UserError, first_lines
from taillift.service.feedback.even_clock import JUMP, EvenClock, steady_seconds
from taillift.service.review.photo_metadata import Kind

logger = logging.getLogger(__name__)

ENTRY, LABEL, CLOCK = "entry.json", "label.json", "even-clock.json"
# Ends the name of a file with the labels of a version's classes.
CLASSES: Final = ".classes.json"
LABELS: Final = TypeAdapter(list[str])
ID: Final = re.compile(r"[A-Za-z0-9_-]{8,64}")
# Names of what is being written or removed, and of everything that is written in it.
UNFINISHED: Final = re.compile(rf"\.{ID.pattern}\..+")
OWN: Final = re.compile(
    r"new|old|photo\.\w+|entry\.json|label\.json|even-clock\.json|.+\.classes\.json"
    r"|\.label\.json\..+"
)
DAY_SECONDS: Final = 86_400
# What was left behind half-written is removed after so many seconds: nobody writes for so long.
ABANDONED: Final = 3_600
# With too many bytes, so much more is removed that this need not be done for each new photo.
SPARE: Final = 0.05

Reason = Literal["tail", "random", "differs"]


class LikelyClass(BaseModel):
    """One of the most probable classes of a photo."""

    label: str
    group: Group
    confidence: SixDigits = Field(description="probability from 0 to 1, as it was answered")


class ReviewEntry(BaseModel):
    """A photo that was drawn: what was answered, and what is needed to draw others."""

    model_config = ConfigDict(frozen=True)

    id: str
    time: float = Field(description="seconds since 1970")
    at: float | None = Field(None, description="the same by the queue's clock, without its jumps")
    kind: Kind
    predictions: list[LikelyClass] = Field(min_length=1)
    why: Reason
    p: float = Field(gt=0, le=1, description="the probability with which it was drawn")
    version: str
    number: int | None
    digest: int
    features: str = Field(description="float16 in base64")

    @property
    def came(self) -> float:
        """When the photo came, by the queue's clock."""
        return self.time if self.at is None else self.at

    @property
    def group(self) -> Group:
        """The group of the predicted class."""
        return self.predictions[0].group

    @property
    def feature_row(self) -> Floats:
        """The features [D]."""
        return np.frombuffer(b64decode(self.features), np.float16).astype(np.float32)


class QueueLabel(BaseModel):
    """The label of a photo; None says that it shows none of the classes."""

    label: str | None


@dataclass(frozen=True)
class QueuedPhoto:
    """A photo in the folder, and its label if it has one."""

    entry: ReviewEntry
    path: Path
    size: int
    given: QueueLabel | None = None

    @property
    def place(self) -> tuple[float, float, str]:
        """The place in the order in which the photos came."""
        return self.entry.came, self.entry.time, self.entry.id


class ReviewFolder:
    """The photos in a folder, at most so many bytes and each for so many days.

    For one thread at a time.
    """

    def __init__(
        self,
        path: Path,
        days: float,
        most_bytes: int,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_seconds,
    ) -> None:
        """Make the folder if there is none; raises `UserError` if it cannot be used.

        `clock` returns seconds since 1970 and may jump, `steady` seconds that pass evenly.
        """
        self.path = path
        self._days = days
        self._most_bytes = most_bytes
        self._clock = EvenClock(path / CLOCK, "the photos for review", clock, steady)
        self._known: dict[str, QueuedPhoto] = {}
        self._size = 0
        try:
            make_private(path)
            with os.scandir(path) as found:
                left = [one for one in found if UNFINISHED.fullmatch(one.name)]
            for one in left:
                with suppress(FileNotFoundError):  # Another process has just removed it.
                    if one.stat().st_mtime < time.time() - ABANDONED and is_photo(Path(one)):
                        shutil.rmtree(one, ignore_errors=True)
        except OSError as error:
            raise UserError(f"{path} cannot be used for review ({error.strerror})") from error

    def photos(self) -> list[QueuedPhoto]:
        """Return all photos that are in the folder now, the oldest first."""
        self._known = {photo.entry.id: photo for photo in self._scan()}
        return sorted(self._known.values(), key=lambda photo: photo.place)

    def waiting(self) -> list[QueuedPhoto]:
        """Return the photos without a label, the oldest first."""
        return [photo for photo in self.photos() if photo.given is None]

    def classes(self) -> list[str]:
        """Return the classes of all versions that photos came from, the latest version's first.

        Raises `UserError` if a list of them cannot be read.
        """
        files = sorted(self.path.glob(f"*{CLASSES}"), key=lambda path: -path.stat().st_mtime)
        found: dict[str, None] = {}
        for path in files:
            try:
                found |= dict.fromkeys(LABELS.validate_json(path.read_bytes()))
            except (OSError, ValidationError) as error:
                reason = first_lines(error)
                raise UserError(
                    f"{path} is not a list of classes ({reason}): move it away"
                ) from error
        return [*found]

    def find(self, key: str) -> QueuedPhoto | None:
        """Return the photo with this id, None if there is none."""
        if not ID.fullmatch(key) or not (self.path / key).is_dir():
            return None
        return self._read(self.path / key)

    def add(self, entry: ReviewEntry, photo: bytes, classes: Sequence[str]) -> None:
        """Write a photo, and the classes of its version; if it is one too many, the oldest go.

        Raises `UserError` if the disk is full or the folder cannot be written.
        """
        listed = self.path / f"{entry.version}{CLASSES}"
        try:
            make_private(self.path)  # Somebody may have removed the whole queue.
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror})") from error
        if not listed.exists():
            with atomic_file(listed) as path:
                path.write_text(json.dumps(list(classes)), "utf-8")
        entry = entry.model_copy(update={"at": self._clock.look()})
        with atomic_folder(self.path / entry.id) as folder:
            (folder / f"photo.{entry.kind}").write_bytes(photo)
            (folder / ENTRY).write_text(entry.model_dump_json(), "utf-8")
        self._size += len(photo)
        if self._size > self._most_bytes:
            self.trimmed()

    def give_label(self, key: str, label: str | None) -> bool:
        """Keep the label of a photo, and return whether the photo is there.

        Raises `UserError` if it cannot be written.
        """
        if self.find(key) is None:
            return False
        with atomic_file(self.path / key / LABEL) as path:
            path.write_text(QueueLabel(label=label).model_dump_json(), "utf-8")
        return True

    def remove(self, key: str) -> bool:
        """Remove a photo, and return whether it was there.

        It goes as a whole: first its folder gets a name that no photo has. Folders that are not
        photos stay: others may keep theirs in the same place.
        """
        if not ID.fullmatch(key) or not is_photo(self.path / key):
            return False
        gone = self.path / f".{key}.gone"
        try:
            (self.path / key).rename(gone)
        except OSError:
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def trimmed(self) -> list[QueuedPhoto]:
        """Remove what is too old, and the oldest of what is too much; return the rest."""
        now = self._clock.look()
        self._date_back(now)
        photos = self.photos()
        self._size = sum(photo.size for photo in photos)
        oldest = now - self._days * DAY_SECONDS
        least = self._most_bytes
        if self._size > self._most_bytes:
            least = int(self._most_bytes * (1 - SPARE))
        kept = list[QueuedPhoto]()
        for photo in photos:
            if photo.entry.came < oldest or self._size > least:
                self.remove(photo.entry.id)
                self._size -= photo.size
            else:
                kept.append(photo)
        for path in self.path.glob("*"):
            # What cannot be read must not stay for ever.
            if ID.fullmatch(path.name) and path.name not in self._known and is_older(path, oldest):
                self.remove(path.name)
        return kept

    def _date_back(self, now: float) -> None:
        """Let photos that are later than `now` begin to age: their clock was ahead."""
        for photo in self.photos():
            if photo.entry.came > now + JUMP:
                entry = photo.entry.model_copy(update={"at": now})
                with suppress(UserError), atomic_file(self.path / entry.id / ENTRY) as path:
                    path.write_text(entry.model_dump_json(), "utf-8")
                    self._known[entry.id] = replace(photo, entry=entry)

    def _scan(self) -> Iterator[QueuedPhoto]:
        try:
            names = [path.name for path in self.path.iterdir()]
        except FileNotFoundError:  # Somebody has removed the whole queue: the next photo makes it.
            return
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror})") from error
        for name in names:
            if ID.fullmatch(name) and (photo := self._read(self.path / name)) is not None:
                yield photo

    def _read(self, folder: Path) -> QueuedPhoto | None:
        """Return a photo as it is now; None, and a warning, if it cannot be read.

        Of one that is known already only the label is read again.
        """
        known = self._known.get(folder.name)
        try:
            if known is None:
                entry = ReviewEntry.model_validate_json((folder / ENTRY).read_bytes())
                path = folder / f"photo.{entry.kind}"
                known = QueuedPhoto(entry, path, path.stat().st_size)
            given = None
            if (folder / LABEL).exists():
                given = QueueLabel.model_validate_json((folder / LABEL).read_bytes())
        except (OSError, ValidationError) as error:
            if folder.is_dir():  # Otherwise it was removed meanwhile.
                logger.warning("%s is not a photo for review: %s", folder, str(error)[:200])
            return None
        return QueuedPhoto(known.entry, known.path, known.size, given)


def make_private(path: Path) -> None:
    """Make a folder that only its owner may look into, unless it is there; raises `OSError`."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def is_photo(folder: Path) -> bool:
    """Return whether a folder is a photo of the queue, whole or in parts."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError:
        return False
    return ENTRY in names or all(map(OWN.fullmatch, names))


def is_older(path: Path, limit: float) -> bool:
    """Return whether a folder was changed last before `limit`, in seconds since 1970."""
    try:
        return path.stat().st_mtime < limit
    except OSError:
        return False


def encode_features(features: Floats) -> str:
    """Return features [D] as an entry keeps them."""
    return b64encode(features.astype(np.float16).tobytes()).decode()
