"""Arrays in one SQLite file, so that a restart loses nothing."""

import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from taillift.models.errors import UserError

SCHEMA_VERSION: Final = 1
Arrays = Mapping[str, npt.NDArray[Any]]

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS arrays (
    bundle TEXT NOT NULL, name TEXT NOT NULL,
    dtype TEXT NOT NULL, shape TEXT NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (bundle, name)
) WITHOUT ROWID
"""


class Store:
    """Named arrays of every bundle version that was ever served from here, kept apart.

    One process writes at a time: a second one is refused. `save` may run in another thread than
    the one that opened it, one call at a time.
    """

    def __init__(self, path: Path) -> None:
        """Raises `UserError` where the file is damaged, in use, or of another kind."""
        self._path = path
        self._saved: dict[tuple[str, str], int] = {}
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=1, check_same_thread=False)
        try:
            with self._told():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    def save(self, bundle: str, arrays: Arrays) -> None:
        """Make `arrays` all that is kept for the bundle version, at once or not at all."""
        sums = {(bundle, name): zlib.crc32(one.tobytes()) for name, one in arrays.items()}
        kept = {key: value for key, value in self._saved.items() if key[0] == bundle}
        with self._told(), self._database as database:
            for key in kept.keys() - sums.keys():
                database.execute("DELETE FROM arrays WHERE bundle = ? AND name = ?", key)
            for key, value in sums.items():
                if kept.get(key) != value:
                    database.execute(
                        "INSERT OR REPLACE INTO arrays VALUES (?, ?, ?, ?, ?)",
                        (*key, *_packed(arrays[key[1]])),
                    )
        self._saved = {k: v for k, v in self._saved.items() if k[0] != bundle} | sums

    def load(self, bundle: str) -> dict[str, npt.NDArray[Any]]:
        """Empty where nothing was kept for the bundle version."""
        query = "SELECT name, dtype, shape, data FROM arrays WHERE bundle = ?"
        with self._told():
            arrays = {
                name: _unpacked(dtype, shape, data)
                for name, dtype, shape, data in self._database.execute(query, (bundle,))
            }
        self._saved |= {(bundle, n): zlib.crc32(one.tobytes()) for n, one in arrays.items()}
        return arrays

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

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
    def _told(self) -> Iterator[None]:
        """What goes wrong, as one line."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise UserError(
                    f"{self._path} is in use by another process: give every replica its own file"
                ) from error
            raise UserError(f"{self._path} cannot be used: {error}") from error
        except (sqlite3.DatabaseError, zlib.error, ValueError, TypeError) as error:
            raise UserError(
                f"{self._path} is damaged ({str(error).splitlines()[0]}): move it away, and "
                "monitoring begins anew"
            ) from error
        except OSError as error:
            raise UserError(f"{self._path} cannot be used: {error.strerror}") from error


def _packed(array: npt.NDArray[Any]) -> tuple[str, str, bytes]:
    shape = ",".join(str(size) for size in array.shape)
    return array.dtype.str, shape, zlib.compress(array.tobytes(), 1)


def _unpacked(dtype: str, shape: str, data: bytes) -> npt.NDArray[Any]:
    sizes = [int(size) for size in shape.split(",") if size]
    return np.frombuffer(zlib.decompress(data), dtype).reshape(sizes).copy()
