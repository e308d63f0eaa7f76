"""The queue on the disk: whole photos, a restart, bounds, labels, and what others do there."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from taillift.models.errors import UserError
from taillift.service.review.review_folder import (
    LikelyClass,
    ReviewEntry,
    ReviewFolder,
    encode_features,
)

DAY = 86_400
NOW = 1_700_000_000.0


def entry(number: int, when: float = NOW) -> ReviewEntry:
    return ReviewEntry(
        id=f"photo-{number:04}",
        time=when,
        kind="png",
        predictions=[LikelyClass(label="white", group="few", confidence=0.7)],
        why="tail",
        p=0.25,
        version="0123456789ab",
        number=None,
        digest=2**64 - 1 - number,
        features=encode_features(np.array([0.5, -1, 0], np.float32)),
    )


@dataclass
class Machine:
    """A machine whose clock can be set; `steady` is the time since it was started."""

    wall: float = NOW
    steady: float = 0.0

    def pass_days(self, days: float) -> None:
        self.wall += days * DAY
        self.steady += days * DAY

    def opened(self, path: Path, days: float = 30, most_bytes: int = 10**6) -> ReviewFolder:
        return ReviewFolder(path, days, most_bytes, lambda: self.wall, lambda: self.steady)


def opened(path: Path, days: float = 30, most_bytes: int = 10**6) -> ReviewFolder:
    return Machine().opened(path, days, most_bytes)


def names(folder: ReviewFolder) -> list[str]:
    return [photo.entry.id for photo in folder.photos()]


def test_photos_and_labels_survive_a_restart(tmp_path: Path) -> None:
    machine = Machine()
    first = machine.opened(tmp_path / "queue")
    for number in (2, 1):
        first.add(entry(number, machine.wall), b"bytes", ["red", "white"])
        machine.pass_days(2 / DAY)
    assert first.give_label("photo-0001", "red")
    assert not first.give_label("photo-0009", "red")
    again = machine.opened(tmp_path / "queue")
    assert [photo.entry for photo in again.photos()] == [
        entry(2, NOW).model_copy(update={"at": NOW}),
        entry(1, NOW + 2).model_copy(update={"at": NOW + 2}),
    ]
    assert [photo.entry.id for photo in again.waiting()] == ["photo-0002"]
    found = again.find("photo-0001")
    assert found is not None
    assert found.given is not None
    assert found.given.label == "red"
    assert found.path.read_bytes() == b"bytes"
    assert found.entry.feature_row.tolist() == [0.5, -1, 0]
    assert again.classes() == ["red", "white"]


def test_the_last_label_wins_and_may_say_none_of_the_classes(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    folder.add(entry(1), b"bytes", [])
    for label in ("red", None):
        folder.give_label("photo-0001", label)
    (photo,) = folder.photos()
    assert photo.given is not None
    assert photo.given.label is None
    assert folder.waiting() == []


def test_photos_that_are_too_old_are_removed(tmp_path: Path) -> None:
    machine = Machine()
    folder = machine.opened(tmp_path, days=30)
    for number, later in ((1, 2), (2, 29), (3, 0)):
        folder.add(entry(number, machine.wall), b"bytes", [])
        machine.pass_days(later)
    assert [photo.entry.id for photo in folder.trimmed()] == ["photo-0002", "photo-0003"]
    assert names(opened(tmp_path)) == ["photo-0002", "photo-0003"]


def queue_of(machine: Machine, path: Path) -> ReviewFolder:
    """Return a queue with photos that are 20, 10 and 0 days old."""
    folder = machine.opened(path)
    for number, later in ((1, 10), (2, 10), (3, 0)):
        folder.add(entry(number, machine.wall), b"bytes", [])
        machine.pass_days(later)
    return folder


@pytest.mark.parametrize("days", [0.5, 12, 31, 400, 20_000])
@pytest.mark.parametrize("set_back", [False, True])
def test_a_clock_that_jumps_ahead_takes_no_photo(
    tmp_path: Path, days: float, set_back: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Photos age by the time that passes, before the clock is set right, and after."""
    machine = Machine()
    folder = queue_of(machine, tmp_path)
    machine.wall += days * DAY
    for _ in range(3):
        assert len(folder.trimmed()) == 3
        machine.pass_days(1)
    assert [record.message for record in caplog.records] == [
        f"the clock is {24 * days:.1f} hours ahead of the time that has passed: the photos for "
        "review do not age by that"
    ]
    folder.add(entry(4, machine.wall), b"bytes", [])
    if set_back:
        machine.wall -= days * DAY
    assert names(folder) == ["photo-0001", "photo-0002", "photo-0003", "photo-0004"]
    folder.trimmed()
    machine.pass_days(8)
    assert len(folder.trimmed()) == 3
    machine.pass_days(10)
    assert len(folder.trimmed()) == 2
    machine.pass_days(13)
    assert [photo.entry.id for photo in folder.trimmed()] == []


def test_a_clock_that_was_behind_makes_no_photo_old(tmp_path: Path) -> None:
    """A machine without a battery begins in 1970, and asks for the time later."""
    machine = Machine(wall=0.0)
    folder = queue_of(machine, tmp_path)
    machine.wall = NOW
    assert len(folder.trimmed()) == 3
    machine.pass_days(11)
    assert len(folder.trimmed()) == 2


def test_after_a_start_a_clock_is_believed_within_a_day_and_later_once_it_has_gone_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()
    queue_of(machine, tmp_path).trimmed()
    machine.wall += 0.9 * DAY
    machine.opened(tmp_path).trimmed()
    assert not caplog.records
    machine.wall += 25 * DAY
    folder = machine.opened(tmp_path)
    assert len(folder.trimmed()) == 3
    assert "nobody has looked at the photos for review for 25.0 days" in caplog.text
    machine.pass_days(0.5)
    # A restart does not make it forget that it doubts.
    folder = machine.opened(tmp_path)
    assert len(folder.trimmed()) == 3
    machine.pass_days(0.6)
    assert [photo.entry.id for photo in folder.trimmed()] == ["photo-0003"]


@pytest.mark.parametrize("days", [12, 400])
def test_a_clock_that_is_set_right_within_a_day_after_a_start_takes_no_photo(
    tmp_path: Path, days: float
) -> None:
    machine = Machine()
    queue_of(machine, tmp_path).trimmed()
    machine.wall += days * DAY
    folder = machine.opened(tmp_path)
    assert len(folder.trimmed()) == 3
    machine.pass_days(0.8)
    machine.wall -= days * DAY
    for _ in range(4):
        assert len(folder.trimmed()) == 3
        machine.pass_days(2)
    machine.pass_days(3)
    assert len(folder.trimmed()) == 2


def test_a_start_in_1970_and_the_right_time_at_the_next_start_take_no_photo(tmp_path: Path) -> None:
    machine = Machine()
    queue_of(machine, tmp_path).trimmed()
    machine.wall = 0
    folder = machine.opened(tmp_path)
    folder.add(entry(4, machine.wall), b"bytes", [])
    machine.wall = NOW + 20 * DAY
    folder = machine.opened(tmp_path)
    folder.trimmed()
    machine.pass_days(2)
    assert len(folder.trimmed()) == 4


def test_photos_of_a_time_to_come_age_from_now_on(tmp_path: Path) -> None:
    """As after the queue's clock was lost while the machine's is behind."""
    machine = Machine()
    queue_of(machine, tmp_path)
    (tmp_path / "even-clock.json").write_text("{")
    machine.wall -= 100 * DAY
    folder = machine.opened(tmp_path)
    assert len(folder.trimmed()) == 3
    assert all(photo.entry.at == machine.wall for photo in folder.photos())
    machine.pass_days(29)
    assert len(folder.trimmed()) == 3
    machine.pass_days(2)
    assert folder.trimmed() == []


def test_two_processes_let_the_time_pass_once(tmp_path: Path) -> None:
    machine = Machine()
    one = queue_of(machine, tmp_path)
    other = machine.opened(tmp_path)
    for _ in range(18):
        machine.pass_days(0.5)
        for folder in (one, other):
            assert len(folder.trimmed()) == 3
    machine.pass_days(1.5)
    assert len(other.trimmed()) == 2


def test_a_full_disk_does_not_stop_the_time(small_disk: Path) -> None:
    machine = Machine()
    folder = queue_of(machine, small_disk)
    with suppress(OSError), (small_disk / "full").open("wb") as file:
        while True:
            file.write(bytes(2**10))
            file.flush()
    machine.pass_days(5)
    assert len(folder.trimmed()) == 3
    machine.pass_days(6)
    assert len(folder.trimmed()) == 2


def test_with_too_many_bytes_the_oldest_go_at_once(tmp_path: Path) -> None:
    folder = opened(tmp_path, most_bytes=1_000)
    for number in range(12):
        folder.add(entry(number, NOW + number), bytes(100), [])
        assert sum(photo.size for photo in folder.photos()) <= 1_000
    assert names(folder)[-1] == "photo-0011"
    assert len(names(folder)) >= 9
    assert names(folder) == sorted(names(folder))


def test_a_restart_counts_the_bytes_that_are_there(tmp_path: Path) -> None:
    for number in range(9):
        opened(tmp_path).add(entry(number, NOW + number), bytes(100), [])
    folder = opened(tmp_path, most_bytes=500)
    folder.trimmed()
    folder.add(entry(9, NOW + 9), bytes(100), [])
    assert sum(photo.size for photo in folder.photos()) <= 500
    assert names(folder)[-1] == "photo-0009"


def test_what_others_do_in_the_folder_is_seen(tmp_path: Path) -> None:
    """Two replicas, or a command, may use one folder."""
    one, other = opened(tmp_path), opened(tmp_path)
    one.add(entry(1), b"bytes", [])
    one.add(entry(2), b"bytes", [])
    assert names(other) == ["photo-0001", "photo-0002"]
    other.remove("photo-0001")
    other.give_label("photo-0002", "red")
    assert one.waiting() == []
    assert names(one) == ["photo-0002"]
    assert not one.remove("photo-0001")


@pytest.mark.parametrize("key", ["..", "../photo-0001", "photo-0001/..", "", "a" * 99, ".hidden-x"])
def test_no_id_leads_out_of_the_folder(tmp_path: Path, key: str) -> None:
    folder = opened(tmp_path / "queue")
    folder.add(entry(1), b"bytes", [])
    assert folder.find(key) is None
    assert not folder.give_label(key, "red")
    assert not folder.remove(key)
    assert names(folder) == ["photo-0001"]


def test_half_written_and_damaged_photos_are_not_taken_for_whole(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    for number in range(1, 5):
        folder.add(entry(number), b"bytes", [])
    (tmp_path / "photo-0001" / "entry.json").write_text('{"id": "photo-0001"')
    (tmp_path / "photo-0002" / "photo.png").unlink()
    (tmp_path / "photo-0003" / "label.json").write_text("{")
    abandoned, fresh = tmp_path / ".photo-0005.x", tmp_path / ".photo-0006.y"
    for left in (abandoned, fresh):
        (left / "new").mkdir(parents=True)
    os.utime(abandoned, (0, 0))
    (tmp_path / "notes.txt").write_text("by hand")
    assert names(opened(tmp_path)) == ["photo-0004"]
    assert not abandoned.exists()
    assert fresh.exists()


def test_what_is_not_a_photo_of_the_queue_is_left_alone(tmp_path: Path) -> None:
    """Somebody may name a folder in which other things are."""
    others = [tmp_path / name for name in ("versions-of-models", ".ssh", ".settings-of.editors")]
    for other in others:
        other.mkdir()
        (other / "config").write_text("by hand")
        os.utime(other, (0, 0))
    folder = opened(tmp_path)
    folder.trimmed()
    assert not folder.remove("versions-of-models")
    assert [(other / "config").read_text() for other in others] == ["by hand"] * 3


def test_a_damaged_photo_goes_when_it_is_too_old(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    for number in (1, 2, 3):
        folder.add(entry(number), b"bytes", [])
    (tmp_path / "photo-0001" / "entry.json").unlink()
    (tmp_path / "photo-0002" / "entry.json").write_text("{")
    (tmp_path / "photo-0002" / ".DS_Store").write_text("of a file manager")
    for number in (1, 2):
        os.utime(tmp_path / f"photo-000{number}", (0, 0))
    folder = opened(tmp_path)
    assert [photo.entry.id for photo in folder.trimmed()] == ["photo-0003"]
    assert sorted(path.name for path in tmp_path.glob("*photo*")) == ["photo-0003"]


def test_a_full_disk_leaves_nothing_half_written(small_disk: Path) -> None:
    folder = opened(small_disk)
    with pytest.raises(UserError, match="the disk is full"):
        folder.add(entry(1), bytes(2**17), [])
    assert names(folder) == []
    assert [path for path in small_disk.iterdir() if path.name.startswith("photo")] == []


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used for review"):
        opened(tmp_path / "file" / "queue")


def test_a_queue_that_somebody_has_removed_is_made_again(tmp_path: Path) -> None:
    folder = opened(tmp_path / "queue")
    folder.add(entry(1), b"bytes", [])
    shutil.rmtree(tmp_path / "queue")
    assert folder.trimmed() == []
    folder.add(entry(2), b"bytes", [])
    assert names(folder) == ["photo-0002"]


@pytest.mark.parametrize("removed", [False, True])
def test_only_its_owner_may_look_into_a_new_folder(tmp_path: Path, removed: bool) -> None:
    folder = opened(tmp_path / "queue")
    if removed:
        shutil.rmtree(tmp_path / "queue")
        folder.add(entry(1), b"bytes", [])
    assert (tmp_path / "queue").stat().st_mode & 0o077 == 0
