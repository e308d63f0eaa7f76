"""The labels that come back: taken in by the ids of predictions, kept, and counted."""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from math import inf
from pathlib import Path
from secrets import token_bytes
from time import monotonic, time
from typing import Final, Literal, NamedTuple

from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.predictor import Prediction
from taillift.models.bundle.schema import GROUPS, Group
from taillift.models.duel import Duel, Tally, judge_duel
from taillift.models.errors import UserError
from taillift.models.names import canonical, index_of_name, indices_by_name
from taillift.service.feedback.even_clock import EvenClock, steady_seconds
from taillift.service.feedback.label_store import (
    ClassList,
    GivenLabel,
    Kept,
    LabelStore,
    StoredDifference,
)
from taillift.service.feedback.live_accuracy import LiveAccuracy, LiveReport
from taillift.service.feedback.prediction_id import (
    DAY_SECONDS,
    MAX_SHORT,
    ExpiredIdError,
    ForgedIdError,
    PredictionId,
    Signer,
    id_bytes,
)
from taillift.service.problems import OverloadedError
from taillift.service.settings import Settings, parts

logger = logging.getLogger(__name__)

LabelStatus = Literal[Kept, "unknown_label", "forged", "expired"]
# Shorter keys can be guessed.
MIN_KEY_CHARACTERS: Final = 16
KEY_BYTES: Final = 32
# Requests with labels that may wait for the file, and the time between two looks at it.
MAX_WAITING: Final = 100
REFRESH_SECONDS: Final = 60.0
# How old a report may be that is given while the next one is made.
LAST_SECONDS: Final = 3_600.0
# Ends the name of the file with the time by which labels age.
EVEN_CLOCK: Final = ".even-clock.json"
# Differences that may wait for the file; more are forgotten.
MAX_DIFFERENCES: Final = 10_000


class LabelRequest(NamedTuple):
    """A label as somebody sends it; None: none of the classes."""

    id: str
    label: str | None
    note: str = ""


class TakenLabel(NamedTuple):
    """Result for a label that was sent, its prediction, and the label as the model spells it.

    `group` is that of the label; None if it is none of the classes.
    """

    status: LabelStatus
    prediction: PredictionId | None = None
    label: str | None = None
    group: Group | None = None


class Pairing(NamedTuple):
    """The codes of a champion and of its challenger."""

    champion: int
    challenger: int


class ShadowDifference(NamedTuple):
    """An answer of the champion, by its id, and the other class that the challenger has for it.

    `probability` is that with which the challenger was given a copy of the image, and `least` the
    smallest one that any image could have had.
    """

    id: str
    pairing: Pairing
    champion: str
    challenger: str
    probability: float
    least: float


class LabelBook:
    """The labels of all versions, and what those of each version say. For one thread at a time.

    Labels are counted as long as their predictions are younger than `days`. They stay in the file
    until it is full, and for `days` after they came, whatever the machine's clock says meanwhile.
    """

    def __init__(
        self,
        store: LabelStore,
        signer: Signer,
        days: int,
        clock: Callable[[], float] = time,
        steady: Callable[[], float] = steady_seconds,
    ) -> None:
        """`clock` returns seconds since 1970 and may jump, `steady` seconds that pass evenly."""
        self._store = store
        self._signer = signer
        self._days = days
        self._clock = clock
        path = None if store.path is None else store.path.with_name(store.path.name + EVEN_CLOCK)
        self._even_clock = EvenClock(path, "the labels", clock, steady)
        self.look()
        self._versions = store.versions()
        self._indices = {
            code: indices_by_name(classes.labels) for code, classes in self._versions.items()
        }
        self._current: int | None = None
        self._rival: int | None = None
        self._live: dict[int, LiveAccuracy] = {}
        self._reports: dict[int, LiveReport] = {}
        self._day = self._today
        self._tidied = -1

    @property
    def _today(self) -> int:
        return int(self._clock() // DAY_SECONDS)

    @property
    def _since(self) -> float:
        return self._clock() - self._days * DAY_SECONDS

    def look(self) -> None:
        """Look at the clock; the more often, the more exactly it is known how old labels are."""
        self._even = self._even_clock.look()

    @property
    def _kept_since(self) -> float:
        """The even time before which labels are deleted if there is no room."""
        return self._even - self._days * DAY_SECONDS

    def know(self, code: int, classes: ClassList) -> None:
        """Take in labels of a version with these classes from now on."""
        before = self._versions.get(code)
        if before is not None and before.bundle != classes.bundle:
            logger.warning(
                "labels of the version %d, which was the bundle %s, now count for the bundle %s: "
                "give each store a feedback_file of its own",
                code,
                before.bundle,
                classes.bundle,
            )
        if before != classes:
            self._live.pop(code, None)
            self._reports.pop(code, None)
        self._versions[code] = classes
        self._indices[code] = indices_by_name(classes.labels)
        self._store.know(code, classes)

    def show(self, code: int) -> None:
        """Take in labels for unknown versions if they are classes of this one."""
        self._current = code

    def expect(self, challenger: int | None) -> None:
        """Take in labels of this challenger's classes, too; None: there is no challenger."""
        self._rival = challenger

    def note(self, differences: Sequence[tuple[ShadowDifference, bool]]) -> None:
        """Keep differences, each with whether its photo was chosen for labelling at random.

        Raises `UserError` if the file cannot be written.
        """
        rows = [
            StoredDifference(
                self._versions[one.pairing.challenger].bundle,
                id_bytes(one.id),
                one.champion,
                one.challenger,
                one.least / one.probability,
                chosen,
            )
            for one, chosen in differences
        ]
        self._store.put_differences(rows, self._kept_since)

    def duel(self, pairing: Pairing, every: bool = False) -> Duel:
        """Judge a challenger by the labels of photos on which it and the champion differ.

        Only those count that were chosen for labelling at random; or `every` one, as if they had
        been.
        """
        both = [self._versions[code] for code in pairing]
        groups: dict[str, Group] = {}
        for classes in reversed(both):
            groups |= dict(zip(map(canonical, classes.labels), classes.groups, strict=True))
        rows = defaultdict[str, list[tuple[float, int, int]]](list)
        labels = 0
        for one in self._store.labelled_differences(pairing.champion, both[1].bundle, self._since):
            if not (one.chosen or every):
                continue
            labels += one.photos
            label = None if one.label is None else canonical(one.label)
            won, lost = (canonical(name) == label for name in (one.theirs, one.ours))
            if label in groups and won != lost:
                rows[groups[label]].append((one.stake, won * one.photos, lost * one.photos))
        return judge_duel({group: Tally.of_stakes(rows[group]) for group in GROUPS}, labels)

    def take(self, labels: Sequence[LabelRequest]) -> list[TakenLabel]:
        """Keep and count labels, and say what became of each; the last one of a prediction counts.

        Raises `UserError`, and keeps none, if the file cannot be written.
        """
        self.refresh()
        read = [self._read(label) for label in labels]
        given = [
            GivenLabel(id_bytes(label.id), taken.label, label.note)
            for label, taken in zip(labels, read, strict=True)
            if taken.status == "accepted"
        ]
        if not self._store.has_room(len(given)) and self._tidied != self._today:
            self._tidied = self._today
            self.look()
            if removed := self._store.remove_before(self._kept_since):
                logger.warning("%d labels of old predictions are deleted to make room", removed)
            elif (jump := self._clock() - self._even) > DAY_SECONDS and self._even_clock.path:
                logger.warning(
                    "no label is deleted to make room, because the clock is %.1f days ahead of the "
                    "time that has passed by %s: if the clock is right, remove this file",
                    jump / DAY_SECONDS,
                    self._even_clock.path,
                )
        # Never before labels that came earlier, even if the clock was set back.
        received = max(self._clock(), self._even)
        outcomes = iter(self._store.put(given, int(received * 1000)))
        taken, changes = [], list[tuple[GivenLabel, int]]()
        for label, one in zip(labels, read, strict=True):
            if one.status != "accepted":
                taken.append(one)
                continue
            outcome, raw = next(outcomes), id_bytes(label.id)
            taken.append(one._replace(status=outcome.status))
            if outcome.status == "replaced":
                changes.append((GivenLabel(raw, outcome.before), -1))
            if outcome.status in ("accepted", "replaced"):
                changes.append((GivenLabel(raw, one.label), 1))
        self._count(changes)
        return taken

    def _read(self, label: LabelRequest) -> TakenLabel:
        """Check an id and its label; what can be kept is `accepted` for now."""
        try:
            prediction = self._signer.read(label.id)
        except ForgedIdError:
            return TakenLabel("forged")
        except ExpiredIdError:
            return TakenLabel("expired")
        if label.label is None:
            return TakenLabel("accepted", prediction)
        for code in (prediction.version, self._current, self._rival):
            index = None if code is None else self._index(code, label.label)
            if code is not None and index is not None:
                classes = self._versions[code]
                return TakenLabel(
                    "accepted", prediction, classes.labels[index], classes.groups[index]
                )
        return TakenLabel("unknown_label", prediction)

    def _index(self, code: int, label: str) -> int | None:
        return index_of_name(label, self._indices.get(code, {}))

    def _count(self, changes: Iterable[tuple[GivenLabel, int]]) -> None:
        """Count labels, or with the sign -1 no longer."""

        def version_and_sign(change: tuple[GivenLabel, int]) -> tuple[bytes, int]:
            return change[0].id[1:3], change[1]

        for (code, sign), group in groupby(sorted(changes, key=version_and_sign), version_and_sign):
            version = int.from_bytes(code, "big")
            self._reports.pop(version, None)
            if (live := self._live.get(version)) is not None:
                labels = [label for label, _ in group]
                ids = b"".join(label.id for label in labels)
                live.add(ids, [label.label for label in labels], self._since, sign)

    def refresh(self) -> None:
        """Count anew if a day has passed, or if another process has changed the file."""
        if self._store.has_changed() or self._day != self._today:
            self._day = self._today
            self._live.clear()
            self._reports.clear()

    def is_counted(self, code: int) -> bool:
        """Return whether a report needs no count of all labels; any thread may ask."""
        return self._day == self._today and code in self._live

    def report(self, code: int) -> LiveReport | None:
        """Return what is known of a version; None if its classes are not known.

        A million labels take some seconds the first time of a day.
        """
        self.refresh()
        if code not in self._versions:
            return None
        if code not in self._live:
            live = LiveAccuracy(self._versions[code], self._days)
            for ids, labels in self._store.of_version(code):
                live.add(ids, labels, self._since)
            self._live[code] = live
        if code not in self._reports:
            self._reports[code] = self._live[code].report()
        return self._reports[code]

    def close(self) -> None:
        self._store.close()


class LabelDesk:
    """A label book in a thread of its own, so that the event loop never waits for the file."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time) -> None:
        """Raises `UserError` if a key or the file is unusable."""
        keys = signing_keys(settings)
        # What is lost at the end of the process, to be said at its start to those who want labels.
        self.remarks: list[str] = []
        if keys or settings.feedback_file or settings.review_dir:
            if not keys:
                self.remarks.append("after a restart, old ids are unknown: feedback_key is not set")
            if not settings.feedback_file:
                self.remarks.append("labels are in memory: feedback_file is not set")
        self._clock = clock
        self._signer = Signer(keys or [token_bytes(KEY_BYTES)], settings.feedback_days, clock)
        store = LabelStore(settings.feedback_file, settings.feedback_max)
        self._book = LabelBook(store, self._signer, settings.feedback_days, clock)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="labels")
        self._waiting = 0
        self._shown: int | None = None
        # The last reports by their versions, each with when it was made.
        self._reports: dict[int, tuple[float, LiveReport]] = {}
        # When labels were last kept here.
        self._taken = -inf
        self._pairing: Pairing | None = None
        self._duel: Duel | None = None
        self._differences: deque[tuple[ShadowDifference, bool]] = deque(maxlen=MAX_DIFFERENCES)
        # Called in the event loop with what was sent and what became of it.
        self.listeners: list[Callable[[Sequence[LabelRequest], Sequence[TakenLabel]], None]] = []

    def identify(
        self, code: int, manifest: Manifest, prediction: Prediction, probability: float = 0.0
    ) -> str | None:
        """Return the id of an answer of the version with this code and manifest.

        `probability` is that with which its image was chosen for labelling; 0: it was not. None if
        the version has more classes than an id can tell apart.
        """
        index = int(prediction.requested.argmax())
        if index > MAX_SHORT:
            return None
        return self._signer.sign(
            PredictionId(
                version=code,
                label=index,
                confidence=float(prediction.requested[index]),
                group=manifest.classes[index].group,
                decision=prediction.decision,
                probability=probability,
                time=int(self._clock()),
            )
        )

    def know(self, code: int, manifest: Manifest) -> None:
        """Take in labels of a version with this manifest from now on."""
        classes = ClassList(
            manifest.version,
            tuple(manifest.labels),
            tuple(info.group for info in manifest.classes),
        )

        def know() -> None:
            self._book.know(code, classes)
            self._reports.pop(code, None)  # It may be on other classes.

        self._submit(know)

    def show(self, code: int) -> None:
        """Let the metrics show what is known of this version, which `know` was told of."""
        self._shown = code
        self._submit(lambda: self._book.show(code))
        self._submit(self._publish)

    def expect(self, pairing: Pairing | None) -> None:
        """Let the metrics show the duel of these two, which `know` was told of; None: of none."""
        self._pairing, self._duel = pairing, None
        self._submit(lambda: self._book.expect(None if pairing is None else pairing.challenger))
        self._submit(self._publish)

    def note_difference(self, difference: ShadowDifference, chosen: bool) -> None:
        """Keep a difference soon; its photo was `chosen` for labelling at random, or was not."""
        self._differences.append((difference, chosen))
        if len(self._differences) == 1:
            self._submit(self._keep_differences)

    def _keep_differences(self) -> None:
        """Keep all differences that wait; in the thread."""
        waiting = []
        while self._differences:
            waiting.append(self._differences.popleft())
        if waiting:
            self._book.note(waiting)

    def _submit(self, work: Callable[[], object]) -> None:
        """Let the thread do something that nobody waits for."""

        def logged() -> None:
            try:
                work()
            except UserError as error:
                logger.error("%s", error)

        self._thread.submit(logged)

    def _publish(self) -> None:
        """Compute what the metrics show; in the thread."""
        if self._shown is not None:
            self._recount(self._shown)
        pairing = self._pairing
        duel = None if pairing is None else self._book.duel(pairing)
        if pairing == self._pairing:
            self._duel = duel

    def _recount(self, code: int) -> LiveReport | None:
        """Return what is known of a version, and keep it; in the thread."""
        if (report := self._book.report(code)) is not None:
            self._reports[code] = monotonic(), report
        return report

    @property
    def latest_duel(self) -> Duel | None:
        """The verdict of the labels on the challenger; None if there is none, or not known yet."""
        return self._duel

    async def duel(self, pairing: Pairing, every: bool = False) -> Duel:
        """Judge a challenger, as the book does; raises `UserError` if the file fails."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._book.duel, pairing, every)

    @property
    def latest(self) -> LiveReport | None:
        """The report on the version that is served; None until its labels are counted."""
        known = None if self._shown is None else self._reports.get(self._shown)
        return None if known is None else known[1]

    async def take(self, labels: Sequence[LabelRequest]) -> list[TakenLabel]:
        """Keep and count labels.

        Raises `OverloadedError` if too many requests wait, and `UserError` if the file fails.
        """
        if self._waiting >= MAX_WAITING:
            raise OverloadedError("too many requests with labels wait for the file", 1)
        loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            taken = await loop.run_in_executor(self._thread, self._book.take, labels)
        finally:
            self._waiting -= 1
        self._taken = monotonic()
        # Afterwards: the labels are kept, whether or not they can be counted now.
        self._submit(self._publish)
        for listener in self.listeners:
            listener(labels, taken)
        return taken

    async def report(self, code: int) -> LiveReport | None:
        """Return what is known of a version; None if nothing is, or if the file fails.

        While all labels are counted anew, as on every new day, it is what was known before, if that
        is not older than `LAST_SECONDS` and no labels were kept here since.
        """
        made, last = self._reports.get(code, (-inf, None))
        is_recent = made > self._taken and monotonic() - made < LAST_SECONDS
        if is_recent and not self._book.is_counted(code):
            self._submit(lambda: self._recount(code))
            return last

        def report() -> LiveReport | None:
            found = self._recount(code)
            if found is not None:
                found.compute_shares()
            return found

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, report)
        except UserError as error:
            logger.error("%s", error)
            return None

    async def keep(self) -> None:
        """Look every minute whether a day has passed or another process has changed the file."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            self._submit(self._book.look)
            self._submit(self._publish)

    def close(self) -> None:
        """Finish what waits, and close the file."""
        self._thread.shutdown()
        self._book.close()


def signing_keys(settings: Settings) -> Sequence[bytes]:
    """Return the keys of the settings, the one that signs first; none if none is set.

    Raises `UserError` if one is too short, or if the file cannot be read or has none.
    """
    given, file = settings.feedback_key, settings.feedback_key_file
    keys = [] if given is None else parts(given.get_secret_value())
    if file is not None:
        keys = [*keys, *read_signing_keys(file)]
    for key in keys:
        if len(key) < MIN_KEY_CHARACTERS:
            raise UserError(
                f"a feedback key has at least {MIN_KEY_CHARACTERS} characters: make one with "
                "`openssl rand -hex 32`"
            )
    return [key.encode() for key in keys]


def read_signing_keys(file: Path) -> Sequence[str]:
    """Return the keys in a file, one a line; raise `UserError` if it cannot be read or has none."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"the feedback keys in {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UserError(f"the feedback keys in {file} cannot be read: it is not UTF-8") from None
    keys = [key for line in lines if (key := line.partition("#")[0].strip())]
    if not keys:
        raise UserError(f"{file} holds no feedback key: add one, or leave the setting out")
    return keys
