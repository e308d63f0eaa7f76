"""Labels in one SQLite file: the last one of each prediction, and those that it replaced."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from json import dumps, loads
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

from taillift.models.bundle.schema import Group
from taillift.models.errors import UserError
from taillift.service.feedback.prediction_id import FORMAT, MAX_SHORT

SCHEMA_VERSION: Final = 1
# Times are in milliseconds since 1970. A label without a name says: none of the classes.
SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS names (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS versions (
    code INTEGER PRIMARY KEY, bundle TEXT NOT NULL, classes TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS labels (
    id BLOB PRIMARY KEY, name INTEGER, note TEXT, received INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS replaced (
    id BLOB, name INTEGER, note TEXT, received INTEGER, PRIMARY KEY (id, received)
) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
# A file gets this table with the first difference.
DIFFERENCES: Final = """
CREATE TABLE IF NOT EXISTS differences (
    challenger TEXT, id BLOB, ours TEXT NOT NULL, theirs TEXT NOT NULL, stake REAL NOT NULL,
    chosen INTEGER NOT NULL, PRIMARY KEY (challenger, id)
) WITHOUT ROWID
"""
DIFFERENCE: Final = "challenger, id, ours, theirs, stake, chosen"
OLD_WITHOUT_LABEL: Final = (
    "DELETE FROM {table} WHERE substr(id, 11, 4) < ? AND id NOT IN (SELECT id FROM labels)"
)
BUSY_SECONDS: Final = 10.0
CHUNK: Final = 20_000
# Differences of photos that were not chosen for labelling, beyond which the oldest are deleted ...
MOST_DIFFERENCES: Final = 100_000
# ... by so many, if they have no label.
DELETED: Final = 10_000

Kept = Literal["accepted", "replaced", "same", "too_many"]


class GivenLabel(NamedTuple):
    """A label for the prediction with these 26 bytes as its id; None: none of the classes."""

    id: bytes
    label: str | None
    note: str = ""


class KeptLabel(NamedTuple):
    """Result for a label that was to be kept, and the label that it replaced, if it did."""

    status: Kept
    before: str | None = None


class StoredLabel(NamedTuple):
    """A label in the file; `received` is in milliseconds since 1970."""

    id: bytes
    label: str | None
    note: str
    received: int


class StoredDifference(NamedTuple):
    """A prediction to which a challenger, named by its bundle, has another answer (`theirs`).

    `chosen` says whether the photo was chosen for labelling at random, and `stake`, above 0 to 1,
    what it counts then.
    """

    challenger: str
    id: bytes
    ours: str
    theirs: str
    stake: float
    chosen: bool


class LabelledDifference(NamedTuple):
    """So many photos with these two answers, of which the label says what they show."""

    ours: str
    theirs: str
    stake: float
    chosen: bool
    label: str | None
    photos: int


class ClassList(NamedTuple):
    """The classes of a version, in the order of its answers' indices."""

    bundle: str
    labels: tuple[str, ...]
    groups: tuple[Group, ...]


class Database:
    """A store in a SQLite database, which it closes with itself."""

    _database: sqlite3.Connection

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


class LabelStore(Database):
    """The labels of every version that was served with this file.

    It holds `most` of them, and as many that were replaced. Several processes may use the file.
    A label that was accepted is on the disk. Any thread may use an instance, one at a time.
    """

    def __init__(self, path: Path | None, most: int = 1_000_000) -> None:
        """Opens the file, or a database in memory without one.

        Raises `UserError` if the file is damaged, not writable, or from another schema version.
        """
        self.path = path
        self._most = most
        self._changed = False
        with self._readable_errors():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                path or ":memory:",
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            with self._readable_errors():
                self._prepare()
                if path is not None:
                    self._opened = path.stat()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        database = self._database
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in {0, SCHEMA_VERSION}:
            raise UserError(
                f"{self.path} was written by another version of taillift (schema {version}, not "
                f"{SCHEMA_VERSION}): name another file"
            )
        if version == 0:
            database.executescript(SCHEMA)
        self._read_again()

    def _read_again(self) -> None:
        """Read what is kept in memory of the file."""
        execute = self._database.execute
        (self._seen,) = execute("PRAGMA data_version").fetchone()
        self._names: dict[int, str] = dict(execute("SELECT number, name FROM names").fetchall())
        self._numbers = {name: number for number, name in self._names.items()}
        (self._count,) = execute("SELECT COUNT(*) FROM labels").fetchone()
        (self._replaced,) = execute("SELECT COUNT(*) FROM replaced").fetchone()

    def has_changed(self) -> bool:
        """Return whether another process has changed the file since the last call."""
        with self._readable_errors():
            self._look()
        changed, self._changed = self._changed, False
        return changed

    def _look(self) -> None:
        """Read the file again if another process has changed it."""
        (version,) = self._database.execute("PRAGMA data_version").fetchone()
        if version != self._seen:
            self._read_again()
            self._changed = True

    def __len__(self) -> int:
        """Return the number of predictions that have a label."""
        return int(self._count)

    def has_room(self, labels: int) -> bool:
        """Return whether so many more labels can be kept."""
        return int(self._count) + labels <= self._most

    def put(self, labels: Sequence[GivenLabel], received: int) -> list[KeptLabel]:
        """Keep labels, all of a call or none, and return what became of each.

        A label replaces the earlier one of its prediction. Raises `UserError` if the file cannot be
        written, or is not the one that was opened.
        """
        with self._transaction():
            return [self._put(StoredLabel(*label, received)) for label in labels]

    def _put(self, given: StoredLabel) -> KeptLabel:
        before = self._find(given.id)
        if before is not None and before[1:3] == given[1:3]:
            return KeptLabel("same")
        if (self._count if before is None else self._replaced) >= self._most:
            return KeptLabel("too_many")
        if before is None:
            self._keep(given)
            self._count += 1
            return KeptLabel("accepted")
        self._archive(before)
        self._keep(given._replace(received=max(given.received, before.received + 1)))
        return KeptLabel("replaced", before.label)

    def merge(self, other: "LabelStore") -> tuple[int, int]:
        """Add the labels of another file, and return how many are new and how many replace one.

        The label that was received later wins, and the other one is kept as replaced.
        """
        new = replacing = 0
        with self._transaction():
            for code, classes in other.versions().items():
                self._know(code, classes)
            for label in other.replaced():
                self._archive(label)
            if other._has_differences:
                for differences in other._chunks(f"SELECT {DIFFERENCE} FROM differences"):
                    self._keep_differences(differences)
            for label in other:
                before = self._find(label.id)
                if before is None:
                    self._keep(label)
                    self._count += 1
                    new += 1
                elif (before.received, before.label or "") < (label.received, label.label or ""):
                    self._archive(before)
                    self._keep(label)
                    replacing += 1
                elif before != label:
                    self._archive(label)
        return new, replacing

    def remove_before(self, seconds: float) -> int:
        """Delete the labels that were received before this time, as their predictions were.

        Returns how many they were. `seconds` are since 1970. What they replaced goes, too.
        """
        old = max(0, int(seconds)).to_bytes(4, "big")
        with self._transaction():
            # Bytes 11 to 14 of an id are its time.
            gone = self._database.execute(
                "DELETE FROM labels WHERE substr(id, 11, 4) < ? AND received < ?",
                (old, int(seconds * 1000)),
            )
            self._database.execute(OLD_WITHOUT_LABEL.format(table="replaced"), (old,))
            if self._has_differences:
                self._database.execute(OLD_WITHOUT_LABEL.format(table="differences"), (old,))
        self._read_again()
        return gone.rowcount

    def put_differences(self, differences: Sequence[StoredDifference], since: float) -> None:
        """Keep differences, and if there are too many delete some of photos without a label.

        Those of predictions before `since` go, and of photos that were not chosen the oldest.
        Raises `UserError` if the file cannot be written.
        """
        with self._transaction():
            self._keep_differences(differences)
            execute = self._database.execute
            (count,) = execute("SELECT COUNT(*) FROM differences").fetchone()
            if count > MOST_DIFFERENCES:
                old = max(0, int(since)).to_bytes(4, "big")
                execute(OLD_WITHOUT_LABEL.format(table="differences"), (old,))
                execute(
                    "DELETE FROM differences WHERE (challenger, id) IN (SELECT challenger, id FROM "
                    "differences WHERE NOT chosen AND id NOT IN (SELECT id FROM labels) "
                    "ORDER BY substr(id, 11, 4) LIMIT ?)",
                    (DELETED,),
                )

    @property
    def _has_differences(self) -> bool:
        query = "SELECT 1 FROM sqlite_master WHERE name = 'differences'"
        return self._database.execute(query).fetchone() is not None

    def _keep_differences(self, differences: Sequence[StoredDifference]) -> None:
        self._database.execute(DIFFERENCES)
        self._database.executemany(
            f"INSERT OR REPLACE INTO differences ({DIFFERENCE}) VALUES (?, ?, ?, ?, ?, ?)",
            differences,
        )

    def labelled_differences(
        self, code: int, challenger: str, since: float
    ) -> list[LabelledDifference]:
        """Return the differences between a version and a challenger on photos that have a label.

        Predictions before `since`, in seconds since 1970, are left out.
        """
        first, last = id_range(code)
        query = (
            "SELECT d.ours, d.theirs, d.stake, d.chosen, l.name, COUNT(*) FROM differences d "
            "CROSS JOIN labels l ON l.id = d.id WHERE d.challenger = ? AND d.id >= ? AND d.id < ? "
            "AND substr(d.id, 11, 4) >= ? GROUP BY 1, 2, 3, 4, 5"
        )
        old = max(0, int(since)).to_bytes(4, "big")
        with self._readable_errors():
            if not self._has_differences:
                return []
            rows = self._database.execute(query, (challenger, first, last, old)).fetchall()
        return [
            LabelledDifference(ours, theirs, stake, bool(chosen), self._name(number), photos)
            for ours, theirs, stake, chosen, number, photos in rows
        ]

    def know(self, code: int, classes: ClassList) -> None:
        """Keep the classes of a version, so that its labels can be read without its bundle."""
        if self.versions().get(code) != classes:
            with self._transaction():
                self._know(code, classes)

    def _know(self, code: int, classes: ClassList) -> None:
        pairs = dumps(list(zip(classes.labels, classes.groups, strict=True)), ensure_ascii=False)
        self._database.execute(
            "INSERT OR REPLACE INTO versions VALUES (?, ?, ?)", (code, classes.bundle, pairs)
        )

    def versions(self) -> dict[int, ClassList]:
        """Return the classes of each version that was served with this file."""
        with self._readable_errors():
            rows = self._database.execute("SELECT code, bundle, classes FROM versions").fetchall()
            return {
                code: ClassList(
                    bundle, *(tuple(column) for column in zip(*loads(pairs), strict=True))
                )
                for code, bundle, pairs in rows
            }

    def of_version(self, code: int) -> Iterator[tuple[bytes, list[str | None]]]:
        """Yield the ids of a version's labels, all in one, and the labels, in parts."""
        query = "SELECT id, name FROM labels WHERE id >= ? AND id < ?"
        for rows in self._chunks(query, id_range(code)):
            ids, numbers = zip(*rows, strict=True)
            yield b"".join(ids), [self._name(number) for number in numbers]

    def __iter__(self) -> Iterator[StoredLabel]:
        """Yield the labels by their ids, those of a version together."""
        return self._all("labels")

    def replaced(self) -> Iterator[StoredLabel]:
        """Yield the labels that were replaced."""
        return self._all("replaced")

    def _all(self, table: Literal["labels", "replaced"]) -> Iterator[StoredLabel]:
        for rows in self._chunks(f"SELECT id, name, note, received FROM {table} ORDER BY id"):
            yield from map(self._stored, rows)

    def _chunks(self, query: str, values: Sequence[bytes] = ()) -> Iterator[list[Any]]:
        with self._readable_errors():
            cursor = self._database.execute(query, values)
            while rows := cursor.fetchmany(CHUNK):
                yield rows

    def _find(self, raw: bytes) -> StoredLabel | None:
        query = "SELECT id, name, note, received FROM labels WHERE id = ?"
        row = self._database.execute(query, (raw,)).fetchone()
        return None if row is None else self._stored(row)

    def _stored(self, row: tuple[bytes, int | None, str | None, int]) -> StoredLabel:
        raw, number, note, received = row
        return StoredLabel(raw, self._name(number), note or "", received)

    def _keep(self, label: StoredLabel) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?)", self._row(label)
        )

    def _archive(self, label: StoredLabel) -> None:
        added = self._database.execute(
            "INSERT OR IGNORE INTO replaced VALUES (?, ?, ?, ?)", self._row(label)
        )
        self._replaced += added.rowcount

    def _row(self, label: StoredLabel) -> tuple[bytes, int | None, str | None, int]:
        number = None if label.label is None else self._number(label.label)
        return label.id, number, label.note or None, label.received

    def _name(self, number: int | None) -> str | None:
        if number is not None and number not in self._names:
            self._look()  # Another process has added it.
        return None if number is None else self._names[number]

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._database.execute("INSERT OR IGNORE INTO names (name) VALUES (?)", (name,))
            query = "SELECT number FROM names WHERE name = ?"
            (number,) = self._database.execute(query, (name,)).fetchone()
            self._numbers[name], self._names[number] = number, name
        return self._numbers[name]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Write everything of the block or nothing; raises `UserError` if the file is not there."""
        with self._readable_errors():
            if self.path is not None and not os.path.samestat(self.path.stat(), self._opened):
                raise UserError(f"{self.path} was replaced: start the service again")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._look()
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                self._read_again()
                raise
            # Into the file itself, because people copy it without its log. It may wait if it fails.
            with suppress(sqlite3.Error):
                self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        """Turn errors of the database and of the file into a `UserError` of one line."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            cure = "it must be a file in a folder that this user may write, on a disk that has room"
            if "locked" in str(reason):
                cure = f"another process has held the file for {BUSY_SECONDS:g} seconds; try again"
            raise UserError(
                f"the labels in {self.path} cannot be used ({reason}): {cure}"
            ) from error
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.path} is not a file of labels, or is damaged "
                f"({str(error).splitlines()[0]}): move it away, and labels are collected anew"
            ) from error


def id_range(code: int) -> tuple[bytes, bytes]:
    """Return what every id of a version is not below, and what it is below."""
    first = bytes([FORMAT]) + code.to_bytes(2, "big")
    if code == MAX_SHORT:
        return first, bytes([FORMAT + 1])
    return first, bytes([FORMAT]) + (code + 1).to_bytes(2, "big")
