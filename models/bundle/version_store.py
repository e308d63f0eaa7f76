"""A store of bundles: versions that are numbered, roles that choose among them, and their history.

    STORE/versions/1, 2, 3 ...   bundles, which are complete when they appear and never change
    STORE/roles.json             which of them is champion, challenger and previous
    STORE/log.jsonl              one line for each change

Only renames change what a reader sees, so a process that is killed leaves nothing half done.
"""

import fcntl
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from getpass import getuser
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from taillift.models.bundle.atomic import (
    atomic_file,
    file_sha256,
    sync,
    temporary_folder_next_to,
)
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.folder import (
    MANIFEST,
    VERSIONS,
    is_inside,
    read_manifest,
    verify_files,
)
from taillift.models.bundle.manifest import FileRecord, Manifest
from taillift.models.bundle.schema import Precision, SchemaModel
from taillift.models.errors import UserError
from taillift.models.names import canonical

logger = logging.getLogger(__name__)

ROLES: Final = "roles.json"
LOG: Final = "log.jsonl"
LOCK: Final = ".lock"
# A file of the store in each version's folder. The manifest does not list it.
ADDED: Final = "added.json"
# A removed version's folder until its files are deleted.
REMOVED: Final = ".removed-"
# The name of a version's folder.
NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")
# Folders that are being filled have this name between two dots.
INCOMING: Final = "incoming"

# The precisions that a CPU computes, and `add` and `promote` therefore try.
TRIED: Final = (Precision.FP32, Precision.INT8)

Action = Literal[
    "add", "remove", "promote", "rollback", "challenge", "unchallenge", "refused", "salvaged"
]


class RefusedError(UserError):
    """A version cannot have the role that was asked for; the text says why."""


class StaleError(UserError):
    """The roles have changed since they were read."""


class Change(SchemaModel):
    """One line of the log."""

    time: datetime
    who: str
    action: Action
    version: int
    previous: int | None = Field(None, description="the version that had the role before")
    because: str = ""
    etag: int | None = Field(None, description="that of the roles after the change")


class Added(SchemaModel):
    """How a version came into the store."""

    change: Change
    classes_change: bool = False
    new_classes: tuple[str, ...] = ()
    lost_classes: tuple[str, ...] = ()


class Shadow(SchemaModel):
    """The challenger answers copies of images, and nobody sees its answers."""

    share: float = Field(0.05, ge=0, le=1, description="share of the images that are copied")
    few: float = Field(
        1.0,
        ge=0,
        le=1,
        description="the same for images whose first or second class, to the champion, is few-shot",
    )


class Canary(SchemaModel):
    """The challenger answers a share of the keys, each always or never."""

    share: float = Field(gt=0, le=1)


class Challenger(SchemaModel):
    version: int
    shadow: Shadow | None = None
    canary: Canary | None = None


class Roles(SchemaModel):
    """The content of `roles.json`; `change` is the one that led to it."""

    champion: int | None = None
    challenger: Challenger | None = None
    previous: int | None = None
    etag: int = 0
    salt: str = Field("", description="makes the choice of a canary's keys the store's own")
    change: Change | None = None

    def role_of(self, number: int) -> Literal["champion", "challenger", "previous"] | None:
        """Return the role of a version; None if it has none."""
        if number == self.champion:
            return "champion"
        if self.challenger is not None and number == self.challenger.version:
            return "challenger"
        return "previous" if number == self.previous else None


@dataclass(frozen=True)
class StoredVersion:
    """A version in the store, with its manifest and how it came there."""

    number: int
    folder: Path
    manifest: Manifest
    added: Added


class VersionStore:
    """The store in `folder`. Several processes may use it, also over a network."""

    def __init__(self, folder: Path) -> None:
        """Raises `UserError` if the folder is not a store."""
        if (folder / MANIFEST).is_file():
            raise UserError(
                f"{folder} is a bundle and not a store: put it into one with `taillift models add "
                f"STORE {folder}`"
            )
        if not (folder / VERSIONS).is_dir():
            raise UserError(
                f"{folder} is not a store (it has no folder {VERSIONS}): make one with `taillift "
                f"models add {folder} BUNDLE`"
            )
        self.folder = folder

    @classmethod
    def at(cls, folder: Path) -> "VersionStore":
        """Return the store in `folder`, which is made if nothing is there.

        Raises `UserError` if something else is, or if it cannot be written.
        """
        exists, is_store = folder.exists(), (folder / VERSIONS).is_dir()
        if exists and not is_store and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"{folder} is neither a store nor an empty folder: choose another name")
        try:
            (folder / VERSIONS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}") from error
        return cls(folder)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the versions, ascending."""
        names = (path.name for path in (self.folder / VERSIONS).iterdir() if path.is_dir())
        return sorted(int(name) for name in names if NUMBER.fullmatch(name))

    def path(self, number: int) -> Path:
        """Return the folder of a version; raises `UserError` if the store does not have it."""
        path = self.folder / VERSIONS / str(number)
        # The name of a number of 300 digits is too long to look for.
        if number not in self.numbers or not path.is_dir():
            known = ", ".join(map(str, self.numbers)) or "none"
            raise UserError(f"{self.folder} has no version {number} (it has {known})")
        return path

    def version(self, number: int) -> StoredVersion:
        """Read a version's manifest; its files are not checked.

        Raises `UserError` if it is missing or its manifest is not valid.
        """
        path = self.path(number)
        return StoredVersion(number, path, read_manifest(path), self._added(number))

    def roles(self) -> Roles:
        """Read the roles; raises `UserError` if the file is damaged."""
        path = self.folder / ROLES
        try:
            return Roles.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Roles()
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not valid"
            raise UserError(
                f"{path} cannot be read ({reason}): write back what the last line of {LOG} says, "
                "or move it away and promote a version"
            ) from error

    def log(self) -> list[Change]:
        """Return the history; a line that was cut off by a crash is left out."""
        try:
            lines = (self.folder / LOG).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.folder / LOG} cannot be read: {error.strerror}") from error
        changes = []
        for line in lines:
            try:
                changes.append(Change.model_validate_json(line))
            except ValidationError:
                continue
        return changes

    def add(
        self, bundle: Path, classes_change: bool = False, note: str = "", who: str | None = None
    ) -> int:
        """Copy a bundle into the store, check the copy and return its number.

        A bundle that is in the store already keeps its number. Raises `UserError` if the bundle is
        damaged or does not compute what it must, and `RefusedError` if its classes are not the
        champion's and `classes_change` is false.
        """
        manifest = read_manifest(bundle)
        if (number := self._same(manifest)) is not None:
            return number
        new, lost = self._class_changes(manifest)
        if (new or lost) and not classes_change:
            raise RefusedError(class_refusal(bundle, new, lost))
        with self._incoming() as folder:
            copy_bundle(bundle, folder, manifest)
            check_bundle(folder)
            self._share_files(folder, manifest)
            added = Added(
                change=change_of("add", 0, who, because=note),
                classes_change=classes_change,
                new_classes=tuple(new),
                lost_classes=tuple(lost),
            )
            return self._take_in(folder, added)

    def remove(self, number: int, who: str | None = None) -> None:
        """Delete a version; raises `UserError` if it is missing or has a role."""
        with self._changing():
            path, roles = self.path(number), self.roles()
            if (role := roles.role_of(number)) is not None:
                raise RefusedError(
                    f"version {number} is {role}: give the role to another version first"
                )
            grave = path.with_name(f"{REMOVED}{number}")
            shutil.rmtree(grave, ignore_errors=True)
            path.rename(grave)
            self._append(change_of("remove", number, who))
            shutil.rmtree(grave, ignore_errors=True)

    def promote(
        self,
        number: int,
        because: str = "",
        who: str | None = None,
        etag: int | None = None,
        classes_change: bool = False,
    ) -> Roles:
        """Make a version champion, and the champion previous.

        Its files are not checked. Raises `StaleError` if the roles' etag is not `etag`, and
        `RefusedError` if the classes differ from the champion's and neither this call nor `add`
        allowed it.
        """

        def changed(roles: Roles) -> Roles:
            self.check_promotion(number, classes_change)
            challenger = roles.challenger
            if challenger is not None and challenger.version == number:
                challenger = None
            return roles.model_copy(
                update={
                    "champion": number,
                    "previous": roles.champion if self._has(roles.champion) else roles.previous,
                    "challenger": challenger,
                }
            )

        return self._change_roles("promote", number, because, who, etag, changed)

    def check_promotion(self, number: int, classes_change: bool = False) -> None:
        """Raise what `promote` raises, whatever the etag, and change nothing."""
        stored, roles = self.version(number), self.roles()
        if number == roles.champion:
            raise RefusedError(f"version {number} is the champion already")
        allowed = classes_change or stored.added.classes_change or number == roles.previous
        new, lost = self._class_changes(stored.manifest)
        if (new or lost) and not allowed:
            raise RefusedError(class_refusal(stored.folder, new, lost))

    def rollback(self, because: str = "", who: str | None = None, etag: int | None = None) -> Roles:
        """Exchange champion and previous; raises `RefusedError` if there is no previous one."""

        def changed(roles: Roles) -> Roles:
            self.path(self.rollback_target(roles))
            return roles.model_copy(update={"champion": roles.previous, "previous": roles.champion})

        return self._change_roles("rollback", self.rollback_target, because, who, etag, changed)

    def rollback_target(self, roles: Roles) -> int:
        """Return the version that a rollback leads to; raises `RefusedError` if there is none."""
        if roles.previous is None:
            raise RefusedError(f"{self.folder} has no previous version to roll back to")
        return roles.previous

    def challenge(
        self,
        challenger: Challenger,
        because: str = "",
        who: str | None = None,
        etag: int | None = None,
    ) -> Roles:
        """Let a version be compared with the champion; raises `RefusedError` if it is that."""

        def changed(roles: Roles) -> Roles:
            self.path(challenger.version)
            if roles.champion is None:
                raise RefusedError(f"{self.folder} has no champion to challenge: promote one")
            if challenger.version == roles.champion:
                raise RefusedError(f"version {challenger.version} is the champion itself")
            return roles.model_copy(update={"challenger": challenger})

        return self._change_roles("challenge", challenger.version, because, who, etag, changed)

    def unchallenge(
        self, because: str = "", who: str | None = None, etag: int | None = None
    ) -> Roles:
        """End the comparison; raises `RefusedError` if there is none."""

        def target(roles: Roles) -> int:
            if roles.challenger is None:
                raise RefusedError(f"{self.folder} has no challenger")
            return roles.challenger.version

        def changed(roles: Roles) -> Roles:
            return roles.model_copy(update={"challenger": None})

        return self._change_roles("unchallenge", target, because, who, etag, changed)

    def note_refusal(self, number: int, because: str, who: str) -> None:
        """Write to the log that a version could not get its role."""
        with self._changing():
            self._append(change_of("refused", number, who, because=because))

    def _change_roles(
        self,
        action: Action,
        version: int | Callable[[Roles], int],
        because: str,
        who: str | None,
        etag: int | None,
        changed: Callable[[Roles], Roles],
    ) -> Roles:
        with self._changing():
            before = self.roles()
            if etag is not None and etag != before.etag:
                raise StaleError(
                    f"the roles have changed since: their etag is {before.etag} and not {etag}; "
                    "read them again"
                )
            number = version if isinstance(version, int) else version(before)
            after = changed(before)
            change = change_of(
                action,
                number,
                who,
                previous=before.champion if action in {"promote", "rollback"} else None,
                because=because,
                etag=before.etag + 1,
            )
            after = after.model_copy(
                update={
                    "etag": before.etag + 1,
                    "salt": before.salt or secrets.token_hex(16),
                    "change": change,
                }
            )
            with atomic_file(self.folder / ROLES) as file:
                file.write_text(after.model_dump_json(indent=2) + "\n", "utf-8")
            self._append(change)
            return after

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        """Yield the name of a folder to fill; whatever is still there after the block is deleted.

        If the process is killed, the next change deletes it.
        """
        with ExitStack() as stack:
            with self._changing():
                target = self.folder / VERSIONS / INCOMING
                incoming = stack.enter_context(temporary_folder_next_to(target))
                stack.enter_context(owned(incoming))
            yield incoming / "new"

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Let no other process change the store in the block; finish what a crash broke off."""
        try:
            lock = (self.folder / LOCK).open("a")
        except OSError as error:
            raise UserError(f"{self.folder} cannot be changed: {error.strerror}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._recover()
            yield

    def _recover(self) -> None:
        """Log the changes that were made and not logged, and delete what was left behind."""
        log = self.log()
        known = {(line.action, line.version) for line in log}
        change = self.roles().change
        if change is not None and change.etag not in {line.etag for line in log}:
            self._append(change)
        for number in self.numbers:
            if not {("add", number), ("salvaged", number)} & known:
                self._append(self._added(number).change)
        for path in (self.folder / VERSIONS).iterdir():
            name = path.name
            if name.startswith(REMOVED) and NUMBER.fullmatch(name.removeprefix(REMOVED)):
                number = int(name.removeprefix(REMOVED))
                if ("remove", number) not in known:
                    self._append(change_of("remove", number, None))
                shutil.rmtree(path, ignore_errors=True)
            elif name.startswith(f".{INCOMING}.") and is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)

    def _append(self, change: Change) -> None:
        """Write a line to the log; if that is impossible, the next change does it."""
        line = change.model_dump_json(exclude_none=True).encode() + b"\n"
        try:
            with (self.folder / LOG).open("ab+") as file:
                size = file.seek(0, os.SEEK_END)
                if size:
                    file.seek(size - 1)
                    if file.read(1) != b"\n":  # A crash cut the last line off.
                        line = b"\n" + line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            logger.warning(
                "%s lacks a line about version %d (%s): the next change writes it",
                self.folder / LOG,
                change.version,
                error.strerror,
            )

    def _take_in(self, folder: Path, added: Added) -> int:
        """Rename a checked folder to the next number and return it."""
        with self._changing():
            used = [change.version for change in self.log()]
            number = max([0, *used, *self.numbers]) + 1
            # A file that somebody has put there, or a broken link.
            while os.path.lexists(self.folder / VERSIONS / str(number)):
                number += 1
            change = added.change.model_copy(update={"version": number})
            text = added.model_copy(update={"change": change}).model_dump_json(indent=2)
            (folder / ADDED).write_text(text + "\n", "utf-8")
            for path in (*folder.rglob("*"), folder):
                sync(path)
            folder.rename(self.folder / VERSIONS / str(number))
            sync(self.folder / VERSIONS)
            self._append(change)
        return number

    def _added(self, number: int) -> Added:
        path = self.folder / VERSIONS / str(number) / ADDED
        try:
            return Added.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            # The folder was not made by `add`; it serves all the same.
            by_hand = "the folder was put there by hand"
            return Added(change=change_of("salvaged", number, "unknown", because=by_hand))

    def _has(self, number: int | None) -> bool:
        return number is not None and number in self.numbers

    def _same(self, manifest: Manifest) -> int | None:
        """Return the number of the version that is this bundle already, if its files are sound."""
        for number in reversed(self.numbers):
            try:
                stored = self.version(number)
                if stored.manifest.version == manifest.version:
                    verify_files(stored.folder, stored.manifest)
                    return number
            except UserError:
                continue
        return None

    def _class_changes(self, manifest: Manifest) -> tuple[list[str], list[str]]:
        """Return the classes that the champion does not have, and those that only it has.

        If the champion was deleted or damaged, the previous one is served and counts.
        """
        roles, new = self.roles(), {canonical(label) for label in manifest.labels}
        for number in (roles.champion, roles.previous):
            with suppress(UserError):
                if number is not None:
                    old = {canonical(label) for label in self.version(number).manifest.labels}
                    return sorted(new - old), sorted(old - new)
        return [], []

    def _share_files(self, folder: Path, manifest: Manifest) -> None:
        """Replace copies of files that another version holds already by links to them."""
        held: dict[FileRecord, Path] = {}
        for number in self.numbers:
            try:
                stored = self.version(number)
            except UserError:
                continue
            held |= {record: stored.folder / name for name, record in stored.manifest.files.items()}
        for name, record in manifest.files.items():
            source = held.get(record)
            if source is None:
                continue
            try:
                if file_sha256(source).hexdigest() != record.sha256:
                    continue
                link = folder / f"{name}.link"
                os.link(source, link)
                link.replace(folder / name)
            except OSError:  # This file system has no links.
                continue


def copy_bundle(bundle: Path, folder: Path, manifest: Manifest) -> None:
    """Copy the manifest and every listed file to a new folder; raises `UserError`."""
    for name in (MANIFEST, *manifest.files):
        target = folder / name
        if not is_inside(folder, name):
            raise UserError(f"{bundle / MANIFEST} lists {name}, which is outside the folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(bundle / name, target)
        except FileNotFoundError:
            raise UserError(f"{bundle / name} is missing: copy the whole bundle again") from None


def check_bundle(folder: Path) -> Manifest:
    """Check the files' hashes, and that the graphs compute what they must on this CPU.

    Raises `UserError`.
    """
    manifest = read_manifest(folder)
    for precision in TRIED:
        if precision in manifest.variants:
            Classifier.open(folder, precision=precision)
    return manifest


def class_refusal(bundle: Path, new: Sequence[str], lost: Sequence[str]) -> str:
    """Return the line that refuses a bundle whose classes are not the champion's."""
    parts = []
    for names, what in ((new, "new"), (lost, "missing")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{', '.join(names[:3])}{more} {what}")
    return (
        f"{bundle} has other classes than the champion ({'; '.join(parts)}): pass "
        "--classes-change if that is meant"
    )


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Mark a folder as in use by this process until the block ends, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # Some network file systems lock no folders; then none is deleted.
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_abandoned(folder: Path) -> bool:
    """Tell whether the process that made a folder with `owned` has ended."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(handle)


def change_of(
    action: Action,
    version: int,
    who: str | None,
    *,
    previous: int | None = None,
    because: str = "",
    etag: int | None = None,
) -> Change:
    """Return a change of this moment; `who` is this process's user if it is None."""
    return Change(
        time=datetime.now(UTC),
        who=who or user(),
        action=action,
        version=version,
        previous=previous,
        because=because,
        etag=etag,
    )


def user() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getuser()
    except (KeyError, OSError):  # A container may run as a number without a name.
        return str(os.getuid())
