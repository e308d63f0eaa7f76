"""The book of labels: which version a label counts for, by which names, and for how long."""

from dataclasses import dataclass, field, replace
from pathlib import Path

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

FIRST = ClassList("1111", ("caf\u00e9", "blue"), ("many", "few"))
SECOND = ClassList("2222", ("blue", "caf\u00e9", "new"), ("few", "many", "few"))


@dataclass
class Desk:
    """A book at a time of our own, and ids for it."""

    store: LabelStore
    now: float = 1_800_000_000.0
    days: int = 90
    signer: Signer = field(init=False)
    book: LabelBook = field(init=False)

    def __post_init__(self) -> None:
        self.signer = Signer([b"k" * 16], self.days, lambda: self.now)
        self.book = LabelBook(self.store, self.signer, self.days, lambda: self.now)

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
    desk.now += 6 * DAY_SECONDS
    later = desk.id(1)
    assert desk.take((later, "blue"), (desk.id(1), "blue")) == ["accepted", "too_many"]
    assert desk.report(1).by_truth.labels.sum() == 2
    desk.now += 6 * DAY_SECONDS
    assert desk.report(1).by_truth.labels.sum() == 1
    assert len(desk.store) == 2
    assert desk.take((old, "blue"), (desk.id(1), "blue")) == ["expired", "accepted"]
    assert len(desk.store) == 2
    assert desk.take((later, "blue")) == ["same"]


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
