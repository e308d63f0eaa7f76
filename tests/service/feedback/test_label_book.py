"""The book of labels: which version a label counts for, by which names, and for how long."""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Final

import pytest

from taillift.models.errors import UserError
from taillift.service.feedback.label_book import (
    LabelBook,
    LabelDesk,
    LabelRequest,
    Pairing,
    ShadowDifference,
    signing_keys,
)
from taillift.service.feedback.label_store import ClassList, LabelStore
from taillift.service.feedback.live_accuracy import LiveReport
from taillift.service.feedback.prediction_id import DAY_SECONDS, PredictionId, Signer
from taillift.service.settings import read_settings
from tests.support.palette import palette_manifest

FIRST = ClassList("1111", ("caf\u00e9", "blue"), ("many", "few"))
SECOND = ClassList("2222", ("blue", "caf\u00e9", "new"), ("few", "many", "few"))

START: Final = 1_800_000_000.0


@dataclass
class Desk:
    """A book at a time of our own, and ids for it."""

    store: LabelStore
    now: float = START
    days: int = 90
    steady: float = 0.0
    signer: Signer = field(init=False)
    book: LabelBook = field(init=False)

    def __post_init__(self) -> None:
        def now() -> float:
            return self.now

        self.signer = Signer([b"k" * 16], self.days, now)
        self.book = LabelBook(self.store, self.signer, self.days, now, lambda: self.steady)

    def pass_days(self, days: float) -> None:
        self.now += days * DAY_SECONDS
        self.steady += days * DAY_SECONDS

    def id(self, version: int, answer: int = 0, probability: float = 0.5) -> str:
        prediction = PredictionId(version, answer, 0.9, "many", time=int(self.now))
        return self.signer.sign(replace(prediction, probability=probability))

    def take(self, *labels: tuple[str, str | None]) -> list[str]:
        requests = [LabelRequest(text, label) for text, label in labels]
        return [one.status for one in self.book.take(requests)]

    def report(self, version: int) -> LiveReport:
        report = self.book.report(version)
        assert report is not None
        return report


@pytest.fixture
def desk() -> Desk:
    desk = Desk(LabelStore(None))
    desk.book.know(1, FIRST)
    desk.book.know(2, SECOND)
    desk.book.show(2)
    return desk


def test_another_bundle_under_the_number_of_a_version_is_told(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody has made a new store and kept the file of labels."""
    desk.book.know(1, FIRST)
    assert caplog.text == ""
    desk.book.know(1, SECOND)
    assert "version 1, which was the bundle 1111, now count for the bundle 2222" in caplog.text


def test_a_difference_in_a_class_that_the_number_no_longer_has_decides_nothing(desk: Desk) -> None:
    desk.book.know(1, ClassList("0000", ("gone", "blue"), ("many", "few")))
    pairing, keys = Pairing(1, 2), (desk.id(1), desk.id(1, 1))
    for key in keys:
        difference = ShadowDifference(key, pairing, "gone", "blue", 1.0, 1.0)
        desk.book.note([(difference, True)])
    assert desk.take((keys[0], "gone"), (keys[1], "blue")) == ["accepted", "accepted"]
    desk.book.know(1, FIRST)
    duel = desk.book.duel(pairing)
    assert (duel.overall.wins, duel.overall.losses, duel.labels) == (1, 0, 2)


def test_a_label_counts_for_the_version_of_its_id(desk: Desk) -> None:
    # The answer 0 is another class in the other version.
    assert desk.take((desk.id(1), "caf\u00e9"), (desk.id(2), "blue")) == ["accepted", "accepted"]
    assert desk.report(1).by_truth.labels.tolist() == [1, 0, 0]
    assert desk.report(1).by_answer.corrected.tolist() == [0, 0]
    assert desk.report(2).by_truth.labels.tolist() == [1, 0, 0, 0]
    assert desk.report(2).by_answer.corrected.tolist() == [0, 0, 0]
    assert desk.book.report(3) is None


def test_labels_before_and_after_the_first_report_count_alike(desk: Desk) -> None:
    desk.take((desk.id(1), "blue"))
    assert desk.report(1).by_truth.labels.tolist() == [0, 1, 0]
    desk.take((desk.id(1), "blue"), (desk.id(2), "blue"))
    assert desk.report(1).by_truth.labels.tolist() == [0, 2, 0]


def test_a_replaced_label_no_longer_counts(desk: Desk) -> None:
    text = desk.id(1)
    desk.take((text, "blue"))
    assert desk.report(1).group_truths.sampled.tolist() == [0, 0, 1]
    desk.take((text, "caf\u00e9"), (text, None), (text, "caf\u00e9"))
    report = desk.report(1)
    assert report.by_truth.labels.tolist() == [1, 0, 0]
    assert report.by_answer.right.tolist() == pytest.approx([2, 0], rel=1e-3)


def test_a_class_is_known_in_any_unicode_form(desk: Desk) -> None:
    assert desk.take((desk.id(1), "cafe\u0301")) == ["accepted"]
    assert [label.label for label in desk.store] == ["caf\u00e9"]


def test_a_class_of_the_version_that_is_served_is_known_for_every_id(desk: Desk) -> None:
    assert desk.take((desk.id(1), "new"), (desk.id(9), "new")) == ["accepted", "accepted"]
    assert desk.report(1).by_truth.labels.tolist() == [0, 0, 1]
    assert desk.take((desk.id(1), "newer")) == ["unknown_label"]


def test_labels_of_a_version_that_was_not_known_yet_count_once_it_is(desk: Desk) -> None:
    desk.take((desk.id(9), "blue"))
    assert desk.book.report(9) is None
    desk.book.know(9, FIRST)
    assert desk.report(9).by_truth.labels.tolist() == [0, 1, 0]


def test_labels_stop_counting_after_their_days_and_stay_until_there_is_no_room() -> None:
    desk = Desk(LabelStore(None, most=2), days=10)
    desk.book.know(1, FIRST)
    old = desk.id(1)
    desk.take((old, "blue"))
    desk.pass_days(6)
    later = desk.id(1)
    assert desk.take((later, "blue"), (desk.id(1), "blue")) == ["accepted", "too_many"]
    assert desk.report(1).by_truth.labels.sum() == 2
    desk.pass_days(6)
    assert desk.report(1).by_truth.labels.sum() == 1
    assert len(desk.store) == 2
    assert desk.take((old, "blue"), (desk.id(1), "blue")) == ["expired", "accepted"]
    assert len(desk.store) == 2
    assert desk.take((later, "blue")) == ["same"]


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("days", [12, 20_000])
def test_a_clock_that_jumps_ahead_deletes_no_label(
    tmp_path: Path, in_file: bool, days: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Also with a restart meanwhile, as long as it does not go on for a day."""
    desk = full_desk(tmp_path / "labels.sqlite" if in_file else None)
    desk.now += days * DAY_SECONDS
    for _ in range(3):
        assert desk.take((desk.id(1), "blue")) == ["too_many"]
        assert len(desk.store) == 2
        desk.pass_days(1)
    assert "the labels do not age by that" in caplog.text
    assert ("if the clock is right, remove this file" in caplog.text) == in_file
    if in_file:
        desk = full_desk(tmp_path / "labels.sqlite", desk.now + 12 * DAY_SECONDS)
        assert desk.take((desk.id(1), "blue")) == ["too_many"]
    desk.now = START + 3 * DAY_SECONDS
    desk.book.look()
    desk.pass_days(6)
    assert desk.take((desk.id(1), "blue")) == ["too_many"]
    desk.pass_days(2.5)
    assert desk.take((desk.id(1), "blue")) == ["accepted"]


def test_labels_that_came_while_the_clock_was_behind_stay_as_long_as_others(tmp_path: Path) -> None:
    full_desk(tmp_path / "labels.sqlite")
    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.remove_before(START + 1)
    desk = full_desk(tmp_path / "labels.sqlite", now=0.0)
    assert {label.received for label in desk.store} == {1000 * int(START)}
    desk.now = START
    assert desk.take((desk.id(1), "blue")) == ["too_many"]
    desk.pass_days(11)
    assert desk.take((desk.id(1), "blue")) == ["accepted"]


def full_desk(path: Path | None, now: float = START) -> Desk:
    """Return a desk whose file is full with two labels of 10 days at most."""
    desk = Desk(LabelStore(path, most=2), now, days=10)
    desk.book.know(1, FIRST)
    if desk.store.has_room(1):
        assert desk.take(*((desk.id(1), "blue") for _ in range(2))) == ["accepted"] * 2
    return desk


def test_the_classes_of_old_versions_are_known_after_a_restart(tmp_path: Path) -> None:
    desk = Desk(LabelStore(tmp_path / "labels.sqlite"))
    desk.book.know(1, FIRST)
    desk.take((desk.id(1), "blue"))
    desk.book.close()
    again = Desk(LabelStore(tmp_path / "labels.sqlite"))
    again.book.know(2, SECOND)
    again.book.show(2)
    assert again.report(1).by_truth.labels.tolist() == [0, 1, 0]
    assert again.take((again.id(1), "caf\u00e9")) == ["accepted"]


def test_keys_come_from_the_setting_and_then_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("\ufeff# comment\n\nfile-key-0123456789  # old\nsecond-key-0123456\n", "utf-8")
    settings = read_settings(
        feedback_key="given-key-0123456, other-key-0123456", feedback_key_file=file
    )
    assert signing_keys(settings) == [
        b"given-key-0123456",
        b"other-key-0123456",
        b"file-key-0123456789",
        b"second-key-0123456",
    ]
    assert signing_keys(read_settings()) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"short\n", "16 characters"), (b"# none\n", "no feedback key"), (b"\xff", "UTF-8")],
)
def test_keys_that_cannot_be_used_are_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "keys.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=says) as refused:
        signing_keys(read_settings(feedback_key_file=file))
    assert "short" not in str(refused.value).replace(str(file), "")
    with pytest.raises(UserError, match="cannot be read"):
        signing_keys(read_settings(feedback_key_file=tmp_path / "missing"))


def test_on_a_new_day_the_last_numbers_are_given_until_all_labels_are_counted_again() -> None:
    now, key, counting = [START], "a-key-of-the-tests", Event()
    desk = LabelDesk(read_settings(feedback_days=10, feedback_key=key), lambda: now[0])
    prediction = PredictionId(1, 0, 0.9, "many", probability=0.5, time=int(START))
    label = LabelRequest(Signer([key.encode()]).sign(prediction), "red")
    desk.know(1, palette_manifest("1", {}))

    async def ask() -> None:
        (taken,) = await desk.take([label])
        assert taken.status == "accepted"
        first = await desk.report(1)
        assert first is not None
        assert first.by_truth.labels.sum() == 1
        now[0] += 11 * DAY_SECONDS
        desk._thread.submit(counting.wait, 20)
        assert await desk.report(1) is first
        counting.set()
        async with asyncio.timeout(20):
            while (again := await desk.report(1)) is first:
                await asyncio.sleep(0.01)
        assert again is not None
        assert again.by_truth.labels.sum() == 0

    asyncio.run(ask())
    desk.close()


def test_labels_count_at_once_even_if_another_process_has_changed_the_file(tmp_path: Path) -> None:
    """Its change alone is counted within a minute, or with the next labels that come here."""
    key = "a-key-of-the-tests"
    settings = read_settings(feedback_file=tmp_path / "labels.sqlite", feedback_key=key)
    here, there = (LabelDesk(settings, lambda: START) for _ in range(2))
    for desk in (here, there):
        desk.know(1, palette_manifest("1", {}))

    def label(name: str, confidence: float) -> list[LabelRequest]:
        prediction = PredictionId(1, 0, confidence, "many", probability=0.5, time=int(START))
        return [LabelRequest(Signer([key.encode()]).sign(prediction), name)]

    async def counted() -> int:
        report = await here.report(1)
        return 0 if report is None else int(report.by_truth.labels.sum())

    async def ask() -> None:
        for number in range(20):
            assert await counted() == 2 * number
            await there.take(label("red", number / 100))
            await here.take(label("blue", 0.5 + number / 100))

    asyncio.run(ask())
    here.close()
    there.close()


def test_the_service_says_at_its_start_what_a_restart_would_lose(tmp_path: Path) -> None:
    def remarks(**settings: object) -> list[str]:
        desk = LabelDesk(read_settings(**settings))
        desk.close()
        return desk.remarks

    file, key = tmp_path / "labels.sqlite", "a-key-of-the-service"
    assert remarks(feedback_file=file, feedback_key=key) == []
    assert ["feedback_file" in line for line in remarks(feedback_key=key)] == [True]
    assert ["feedback_key" in line for line in remarks(feedback_file=file)] == [True]
    assert len(remarks(review_dir=tmp_path)) == 2


def test_the_service_says_nothing_of_labels_to_those_who_do_not_ask_for_them() -> None:
    desk = LabelDesk(read_settings())
    desk.close()
    assert desk.remarks == []
