"""Named arrays in one SQLite file, so that a restart loses nothing."""

import logging
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np

from taillift.models.errors import UserError
from taillift.service.feedback.label_store import Database
from taillift.service.tail.snapshot import Array

logger = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS arrays (
    bundle TEXT NOT NULL, name TEXT NOT NULL,
    dtype TEXT NOT NULL, shape TEXT NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (bundle, name)
) WITHOUT ROWID
"""


class Store(Database):
    """The arrays of every bundle version that was ever served with this file, kept apart.

    One process writes at a time: a second one is refused. `save` and `load` may run in other
    threads than the one that opened the file, one `save` at a time.
    """

    def __init__(self, path: Path) -> None:
        """Raises `UserError` if the file is damaged, in use, or from another schema version."""
        self._path = path
        self._lock = Lock()
        # Checksums of the arrays in the file, so that only those that changed are written.
        self._checksums: dict[tuple[str, str], int] = {}
        self._open()

    @property
    def in_place(self) -> bool:
        """Whether the file is still the one that was opened: neither removed nor replaced."""
        try:
            return os.path.samestat(self._path.stat(), self._opened)
        except OSError:
            return False

    def save(self, bundle: str, arrays: Mapping[str, Array]) -> None:
        """Replace everything saved for the bundle version by `arrays`, in one transaction.

        A file that is no longer in its place is made again, with these arrays.
        """
        if not self.in_place:
            logger.warning("%s was removed or replaced: it is written again", self._path)
            self._database.close()
            self._checksums.clear()
            self._open()
        sums = {(bundle, name): zlib.crc32(array.tobytes()) for name, array in arrays.items()}
        saved = {key: value for key, value in self._checksums.items() if key[0] == bundle}
        with self._lock, self._readable_errors(), self._database as database:
            for key in saved.keys() - sums.keys():
                database.execute("DELETE FROM arrays WHERE bundle = ? AND name = ?", key)
            for (_, name), value in sums.items():
                if saved.get((bundle, name)) == value:
                    continue
                array = arrays[name]
                shape = ",".join(str(size) for size in array.shape)
                data = zlib.compress(array.tobytes(), 1)
                database.execute(
                    "INSERT OR REPLACE INTO arrays VALUES (?, ?, ?, ?, ?)",
                    (bundle, name, array.dtype.str, shape, data),
                )
        # Nothing stays in the log next to the file, which may be moved or replaced without it.
        with self._lock, self._readable_errors():
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        others = {key: value for key, value in self._checksums.items() if key[0] != bundle}
        self._checksums = others | sums

    def load(self, bundle: str) -> dict[str, Array]:
        """Return what was saved for the bundle version; empty if nothing was."""
        query = "SELECT name, dtype, shape, data FROM arrays WHERE bundle = ?"
        arrays = {}
        with self._lock, self._readable_errors():
            for name, dtype, shape, data in self._database.execute(query, (bundle,)):
                sizes = [int(size) for size in shape.split(",") if size]
                arrays[name] = np.frombuffer(zlib.decompress(data), dtype).reshape(sizes).copy()
        self._checksums |= {
            (bundle, name): zlib.crc32(array.tobytes()) for name, array in arrays.items()
        }
        return arrays

    def _open(self) -> None:
        with self._readable_errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, timeout=1, check_same_thread=False)
        try:
            with self._readable_errors():
                self._prepare()
                self._opened = self._path.stat()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        database = self._database
        # Held until the file is closed: what a second writer wrote would be lost.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in {0, SCHEMA_VERSION}:
            raise UserError(
                f"{self._path} was written by another version of taillift (schema {version}, not "
                f"{SCHEMA_VERSION}): name another file"
            )
        with database:
            database.execute(SCHEMA)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        for (finding,) in database.execute("PRAGMA quick_check(1)"):
            if finding != "ok":
                raise sqlite3.DatabaseError(finding)

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        """Turn errors of the database and of the file into a `UserError` of one line."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise UserError(
                    f"{self._path} is in use by another process: give every replica its own file"
                ) from error
            raise UserError(
                f"{self._path} cannot be used ({error}): name a file in a folder that this user "
                "may write"
            ) from error
        except (sqlite3.DatabaseError, zlib.error, ValueError, TypeError) as error:
            raise UserError(
                f"{self._path} is damaged ({str(error).splitlines()[0]}): move it away, and "
                "monitoring begins anew"
            ) from error
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be used ({error.strerror}): name a file in a folder that "
                "this user may write"
            ) from error
