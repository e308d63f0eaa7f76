"""The file of labels: what it keeps, what it refuses, and how two of them become one."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from taillift.models.errors import UserError
from taillift.service.feedback import label_store
from taillift.service.feedback.label_store import (
    ClassList,
    GivenLabel,
    LabelledDifference,
    LabelStore,
    StoredDifference,
    StoredLabel,
)
from taillift.service.feedback.prediction_id import PredictionId, Signer, id_bytes

SIGNER = Signer([b"k" * 16])
CLASSES = ClassList("2e5e00", ("red", "blue"), ("many", "few"))


def new_id(version: int = 3, time: int = 1_800_000_000) -> bytes:
    return id_bytes(SIGNER.sign(PredictionId(version, 0, 0.9, "many", time=time)))


def statuses(store: LabelStore, *labels: GivenLabel, received: int = 1_000) -> list[str]:
    return [kept.status for kept in store.put(labels, received)]


def test_labels_are_on_the_disk_once_they_are_accepted(tmp_path: Path) -> None:
    one = new_id()
    with LabelStore(tmp_path / "new" / "labels.sqlite") as store:
        assert statuses(store, GivenLabel(one, "red", "a note")) == ["accepted"]
        with LabelStore(tmp_path / "new" / "labels.sqlite") as other:
            assert list(other) == [StoredLabel(one, "red", "a note", 1_000)]


def test_the_file_of_a_running_service_can_be_copied(tmp_path: Path) -> None:
    one = new_id()
    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.know(3, CLASSES)
        store.put([GivenLabel(one, "red")], 1_000)
        shutil.copyfile(store.path or "", tmp_path / "copy.sqlite")
        with LabelStore(tmp_path / "copy.sqlite") as copy:
            assert list(copy) == [StoredLabel(one, "red", "", 1_000)]
            assert copy.versions() == {3: CLASSES}


def test_the_last_label_counts_and_the_others_are_history(tmp_path: Path) -> None:
    one = new_id()
    with LabelStore(tmp_path / "labels.sqlite") as store:
        first, second, third = (GivenLabel(one, label) for label in ("red", None, "blue"))
        assert statuses(store, first, first, second, third) == [
            "accepted",
            "same",
            "replaced",
            "replaced",
        ]
        assert [(label.label, label.received) for label in store] == [("blue", 1_002)]
        assert [label.label for label in store.replaced()] == ["red", None]
        assert len(store) == 1


def test_a_note_alone_is_a_change() -> None:
    one = new_id()
    with LabelStore(None) as store:
        store.put([GivenLabel(one, "red")], 1)
        assert statuses(store, GivenLabel(one, "red", "sure")) == ["replaced"]


def test_labels_of_a_version_are_found_without_the_others() -> None:
    with LabelStore(None) as store:
        ids = {code: new_id(code) for code in (0, 255, 256, 65_534, 65_535)}
        store.put([GivenLabel(one, f"v{code}") for code, one in ids.items()], 1)
        for code, one in ids.items():
            assert list(store.of_version(code)) == [(one, [f"v{code}"])]
        assert list(store.of_version(7)) == []


def test_a_full_file_takes_no_more_and_makes_room_by_age() -> None:
    old, new, more = new_id(time=1_000), new_id(time=2_000), new_id(time=3_000)
    with LabelStore(None, most=2) as store:
        given = [GivenLabel(one, "red") for one in (old, new, more)]
        assert statuses(store, *given) == ["accepted", "accepted", "too_many"]
        assert not store.has_room(1)
        assert store.remove_before(2_000) == 1
        assert statuses(store, GivenLabel(more, "red")) == ["accepted"]
        assert {label.id for label in store} == {new, more}


def test_all_labels_of_a_call_are_kept_or_none(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with LabelStore(path) as store:
        store.put([GivenLabel(new_id(), "red")], 1)
        bad = GivenLabel(new_id(), "a\ud800b")
        with pytest.raises(UserError):
            store.put([GivenLabel(new_id(), "blue"), bad], 1)
        assert len(store) == 1
        assert len(list(store)) == 1
        assert statuses(store, GivenLabel(new_id(), "blue")) == ["accepted"]


def test_another_process_may_write_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with LabelStore(path) as one, LabelStore(path) as two:
        one.put([GivenLabel(new_id(), "red")], 1)
        assert two.has_changed()
        assert not two.has_changed()
        two.put([GivenLabel(new_id(), "a new name"), GivenLabel(new_id(), "red")], 2)
        one.put([GivenLabel(new_id(), "yet another"), GivenLabel(new_id(), "a new name")], 3)
        names = sorted(str(label.label) for label in two)
        assert names == ["a new name", "a new name", "red", "red", "yet another"]
        assert len(one) == 5


def test_files_of_replicas_become_one_whatever_the_order(tmp_path: Path) -> None:
    both, mine, yours = new_id(), new_id(), new_id()
    paths = [tmp_path / name for name in ("a.sqlite", "b.sqlite")]
    with LabelStore(paths[0]) as a, LabelStore(paths[1]) as b:
        a.know(3, CLASSES)
        a.put([GivenLabel(both, "red"), GivenLabel(mine, "red")], 10)
        b.put([GivenLabel(yours, None), GivenLabel(both, "blue", "later")], 20)
    contents = []
    for order in (paths, paths[::-1]):
        with LabelStore(tmp_path / f"{order[0].name}-first") as merged:
            for path in [*order, *order]:
                with LabelStore(path) as other:
                    merged.merge(other)
            assert merged.versions() == {3: CLASSES}
            contents.append((sorted(merged), sorted(merged.replaced())))
    assert contents[0] == contents[1]
    labels, replaced = contents[0]
    assert {label.id: label.label for label in labels} == {both: "blue", mine: "red", yours: None}
    assert [(label.id, label.label) for label in replaced] == [(both, "red")]


def test_merging_says_what_is_new() -> None:
    one, two = new_id(), new_id()
    with LabelStore(None) as a, LabelStore(None) as b:
        a.put([GivenLabel(one, "red")], 10)
        b.put([GivenLabel(one, "blue"), GivenLabel(two, "blue")], 20)
        assert a.merge(b) == (1, 1)
        assert a.merge(b) == (0, 0)
        assert b.merge(a) == (0, 0)


def test_what_is_not_a_file_of_labels_is_refused_in_one_line(tmp_path: Path) -> None:
    text, other, later = (tmp_path / name for name in ("text", "other", "later"))
    text.write_text("no database" * 1000)
    with sqlite3.connect(later) as database:
        database.execute("PRAGMA user_version = 9")
    other.mkdir()
    for path in (text, other, later):
        with pytest.raises(UserError) as refused:
            LabelStore(path)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_file_that_another_process_holds_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taillift.service.feedback.label_store.BUSY_SECONDS", 0.05)
    with LabelStore(tmp_path / "labels.sqlite") as store:
        other = sqlite3.connect(tmp_path / "labels.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="another process has held the file"):
            store.put([GivenLabel(new_id(), "red")], 1)
        other.execute("COMMIT")
        other.close()
        assert statuses(store, GivenLabel(new_id(), "red")) == ["accepted"]
        assert len(store) == 1


def test_a_file_that_was_replaced_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with LabelStore(path) as store:
        path.unlink()
        with pytest.raises(UserError, match=r"labels\.sqlite"):
            store.put([GivenLabel(new_id(), "red")], 1)
        path.touch()
        with pytest.raises(UserError, match="was replaced"):
            store.put([GivenLabel(new_id(), "red")], 1)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_kept(small_disk: Path) -> None:
    with LabelStore(small_disk / "labels.sqlite") as store:
        with pytest.raises(UserError, match="room"):
            store.put([GivenLabel(new_id(), "red", "n" * 400) for _ in range(1_000)], 1)
        assert len(store) == len(list(store)) == 0


def difference(one: bytes, chosen: bool = True, challenger: str = "next") -> StoredDifference:
    return StoredDifference(challenger, one, "red", "blue", 0.5, chosen)


def test_a_difference_waits_for_the_label_of_its_prediction(tmp_path: Path) -> None:
    one, two, other = new_id(), new_id(), new_id(version=4)
    path = tmp_path / "labels.sqlite"
    with LabelStore(path) as store:
        assert store.labelled_differences(3, "next", 0) == []
        store.put_differences([difference(raw) for raw in (one, two, other)], 0)
        assert store.labelled_differences(3, "next", 0) == []
        store.put([GivenLabel(raw, "blue") for raw in (one, two, other)], 1_000)
    with LabelStore(path) as store:
        counted = [LabelledDifference("red", "blue", 0.5, True, "blue", 2)]
        assert store.labelled_differences(3, "next", 0) == counted
        assert store.labelled_differences(3, "another", 0) == []
        assert store.labelled_differences(3, "next", 1_800_000_001) == []
        with LabelStore(tmp_path / "merged.sqlite") as merged:
            merged.merge(store)
            merged.merge(store)
            assert merged.labelled_differences(3, "next", 0) == counted


def test_of_too_many_differences_the_oldest_without_a_label_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(label_store, "MOST_DIFFERENCES", 5)
    monkeypatch.setattr(label_store, "DELETED", 2)
    ids = [new_id(time=1_800_000_000 + number) for number in range(6)]
    with LabelStore(None) as store:
        store.put([GivenLabel(ids[1], "blue")], 1_000)
        store.put_differences(
            [difference(raw, chosen=number == 0) for number, raw in enumerate(ids)], 0
        )
        store.put([GivenLabel(raw, "blue") for raw in ids], 1_000)
        kept = {one.chosen: one.photos for one in store.labelled_differences(3, "next", 0)}
        # The chosen one, the labelled one, and the latest two.
        assert kept == {True: 1, False: 3}
