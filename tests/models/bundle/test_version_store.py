import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from taillift.models.bundle.folder import (
    MANIFEST,
    MODEL,
    file_record,
    read_manifest,
    verify_files,
    write_manifest,
)
from taillift.models.bundle.manifest import ClassInfo
from taillift.models.bundle.version_store import (
    Canary,
    Challenger,
    RefusedError,
    StaleError,
    VersionStore,
)
from taillift.models.errors import UserError
from tests.support.damage import (
    change_golden_logits,
    flip_a_byte,
    lose_a_file,
    name_another_schema,
)
from tests.support.palette import palette_manifest, write_bundle


@pytest.fixture
def store(tmp_path: Path, bundle: Path) -> VersionStore:
    """A store whose champion is the palette bundle."""
    store = VersionStore.at(tmp_path / "store")
    store.promote(store.add(bundle))
    return store


def renamed_classes(old: str, new: str) -> tuple[ClassInfo, ...]:
    """Return the palette's classes with one label changed."""
    return tuple(
        info.model_copy(update={"label": new}) if info.label == old else info
        for info in palette_manifest("", {}).classes
    )


def test_versions_are_numbered_and_their_files_are_the_bundles(
    store: VersionStore, tmp_path: Path, bundle: Path
) -> None:
    second = write_bundle(tmp_path / "second", name="second")
    assert store.add(second, note="a try", who="ann") == 2
    assert store.numbers == [1, 2]
    for number, source in ((1, bundle), (2, second)):
        stored = store.version(number)
        verify_files(stored.folder, stored.manifest)
        assert stored.manifest == read_manifest(source)
    assert store.version(2).added.change.because == "a try"
    assert [(line.action, line.version) for line in store.log()] == [
        ("add", 1),
        ("promote", 1),
        ("add", 2),
    ]
    assert store.log()[2].who == "ann"


def test_a_version_does_not_change_with_the_folder_it_came_from(
    store: VersionStore, tmp_path: Path
) -> None:
    second = write_bundle(tmp_path / "second", name="second")
    number = store.add(second)
    with (second / MODEL).open("r+b") as file:
        file.write(b"changed")
    verify_files(store.path(number), store.version(number).manifest)


def test_equal_files_of_two_versions_take_their_space_once(
    store: VersionStore, tmp_path: Path
) -> None:
    store.add(write_bundle(tmp_path / "second", name="second"))
    one, two = store.path(1) / MODEL, store.path(2) / MODEL
    assert one.samefile(two)
    assert not (store.path(1) / MANIFEST).samefile(store.path(2) / MANIFEST)


def test_a_bundle_that_is_in_the_store_keeps_its_number(store: VersionStore, bundle: Path) -> None:
    assert store.add(bundle) == 1
    (store.path(1) / MODEL).write_bytes(b"damaged")
    assert store.add(bundle) == 2


def test_a_number_is_not_used_again(store: VersionStore, tmp_path: Path) -> None:
    number = store.add(write_bundle(tmp_path / "second", name="second"))
    store.remove(number)
    assert store.numbers == [1]
    with pytest.raises(UserError, match="has no version 2"):
        store.version(number)
    assert store.add(write_bundle(tmp_path / "third", name="third")) == 3


def test_a_file_with_the_name_of_a_number_is_passed_over(
    store: VersionStore, tmp_path: Path
) -> None:
    versions = store.folder / "versions"
    (versions / "2").write_text("a note")
    (versions / "3").symlink_to("nowhere")
    assert store.add(write_bundle(tmp_path / "second", name="second")) == 4
    assert store.numbers == [1, 4]
    assert (versions / "2").read_text() == "a note"
    assert store.promote(4).champion == 4


def list_a_file_outside(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    files = {**manifest.files, "../outside": file_record(bundle / MODEL)}
    write_manifest(bundle / MANIFEST, manifest.model_copy(update={"files": files}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_byte, "its hash differs"),
        (lose_a_file, "golden.npz is missing"),
        (name_another_schema, "is not valid at schema_version"),
        (change_golden_logits, "gives other logits here"),
        (list_a_file_outside, "which is outside the folder"),
    ],
)
def test_a_damaged_bundle_is_refused_and_leaves_nothing(
    store: VersionStore, tmp_path: Path, damage: object, words: str
) -> None:
    second = write_bundle(tmp_path / "second", name="second")
    assert callable(damage)
    damage(second)
    with pytest.raises(UserError, match=words):
        store.add(second)
    assert [path.name for path in (store.folder / "versions").iterdir()] == ["1"]
    assert not (tmp_path / "outside").exists()
    assert store.roles().champion == 1


def test_a_full_disk_leaves_nothing(small_disk: Path, bundle: Path) -> None:
    store = VersionStore.at(small_disk / "store")
    with pytest.raises(UserError, match="the disk is full"):
        store.add(bundle)
    assert list((store.folder / "versions").iterdir()) == []


def test_other_classes_are_refused_unless_it_is_meant(store: VersionStore, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", classes=renamed_classes("cyan", "teal"))
    with pytest.raises(RefusedError, match=r"teal new; cyan missing.*--classes-change"):
        store.add(other)
    number = store.add(other, classes_change=True)
    added = store.version(number).added
    assert (added.new_classes, added.lost_classes) == (("teal",), ("cyan",))
    assert store.promote(number).champion == number
    # The way back is always open.
    assert store.rollback().champion == 1


def test_other_classes_than_the_champions_at_the_promotion_are_refused(
    tmp_path: Path, bundle: Path
) -> None:
    store = VersionStore.at(tmp_path / "store")
    store.add(bundle)
    other = store.add(write_bundle(tmp_path / "o", classes=renamed_classes("cyan", "teal")))
    store.promote(1)
    with pytest.raises(RefusedError, match="other classes than the champion"):
        store.promote(other)
    assert store.promote(other, classes_change=True).champion == other


def test_a_store_goes_on_without_its_champions_folder(store: VersionStore, tmp_path: Path) -> None:
    two = store.add(write_bundle(tmp_path / "second", name="second"))
    store.promote(two)
    shutil.rmtree(store.path(two))
    three = store.add(write_bundle(tmp_path / "third", name="third"))
    roles = store.promote(three)
    assert (roles.champion, roles.previous) == (three, 1)
    assert store.rollback().champion == 1


def test_roles_move_and_every_change_has_one_line(store: VersionStore, tmp_path: Path) -> None:
    two = store.add(write_bundle(tmp_path / "second", name="second"))
    roles = store.challenge(Challenger(version=two, canary=Canary(share=0.1)), who="ann")
    assert roles.role_of(two) == "challenger"
    roles = store.promote(two, because="better")
    assert (roles.champion, roles.previous, roles.challenger) == (two, 1, None)
    roles = store.rollback()
    assert (roles.champion, roles.previous) == (1, two)
    with pytest.raises(RefusedError, match="version 2 is previous"):
        store.remove(two)
    with pytest.raises(RefusedError, match="is the champion already"):
        store.promote(1)
    with pytest.raises(RefusedError, match="has no challenger"):
        store.unchallenge()
    lines = [(line.action, line.version, line.etag) for line in store.log()]
    assert lines == [
        ("add", 1, None),
        ("promote", 1, 1),
        ("add", 2, None),
        ("challenge", 2, 2),
        ("promote", 2, 3),
        ("rollback", 1, 4),
    ]


def test_of_two_that_read_the_same_roles_one_wins(store: VersionStore, tmp_path: Path) -> None:
    two = store.add(write_bundle(tmp_path / "second", name="second"))
    three = store.add(write_bundle(tmp_path / "third", name="third"))
    etag = store.roles().etag
    store.promote(two, etag=etag)
    with pytest.raises(StaleError, match=f"etag is {etag + 1} and not {etag}"):
        store.promote(three, etag=etag)
    assert store.roles().champion == two


def test_a_folder_that_is_not_a_store_is_not_made_one(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="neither a store nor an empty folder"):
        VersionStore.at(tmp_path)
    with pytest.raises(UserError, match="is not a store"):
        VersionStore(tmp_path / "nothing")
    with pytest.raises(UserError, match=f"bundle and not a store: .* add STORE {bundle}"):
        VersionStore(bundle)


def test_a_folder_that_was_put_there_by_hand_is_a_version(
    store: VersionStore, bundle: Path
) -> None:
    shutil.copytree(bundle, store.folder / "versions" / "7")
    assert store.promote(7).champion == 7
    assert [line.action for line in store.log()] == ["add", "promote", "salvaged", "promote"]


def test_a_log_whose_last_line_was_cut_off_goes_on(store: VersionStore, tmp_path: Path) -> None:
    log = store.folder / "log.jsonl"
    log.write_bytes(b"\xff\n" + log.read_bytes()[:-20])
    store.add(write_bundle(tmp_path / "second", name="second"))
    # The promotion, whose line is cut off, is in the roles and is written again.
    assert [(line.action, line.version) for line in store.log()] == [
        ("add", 1),
        ("promote", 1),
        ("add", 2),
    ]


def test_a_line_that_cannot_be_written_is_written_by_the_next_change(
    small_disk: Path, tmp_path: Path, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = VersionStore.at(tmp_path / "store")
    one, two = store.add(bundle), store.add(write_bundle(tmp_path / "second", name="second"))
    log = small_disk / "log.jsonl"
    shutil.copyfile(store.folder / "log.jsonl", log)
    (store.folder / "log.jsonl").unlink()
    (store.folder / "log.jsonl").symlink_to(log)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(2**17))
    log.write_bytes(log.read_bytes() + b" " * (-len(log.read_bytes()) % 4096))
    assert store.promote(one).champion == one
    assert "the next change writes it" in caplog.text
    filler.unlink()
    store.promote(two)
    assert [line.version for line in store.log() if line.action == "promote"] == [one, two]


# Changes the store in a child process again and again, and kills it after the delays.
KILLED = """
import os, signal, sys, time
from pathlib import Path
from taillift.models.bundle.version_store import VersionStore
folder, bundles, delays = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(",")
for number, delay in enumerate(delays):
    child = os.fork()
    if child == 0:
        store = VersionStore(folder)
        added = store.add(Path(bundles[number % len(bundles)]))
        for _ in range(20):
            store.promote(1 if store.roles().champion == added else added)
        os._exit(0)
    time.sleep(float(delay))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_nothing_half_done_is_left_by_a_process_that_is_killed(
    store: VersionStore, tmp_path: Path
) -> None:
    kills = int(os.environ.get("KILLS", "12"))
    bundles = [write_bundle(tmp_path / f"b{index}", name=f"b{index}") for index in range(kills)]
    delays = [random.Random(index).uniform(0, 0.4) for index in range(kills)]
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(store.folder),
        ",".join(map(str, bundles)),
        ",".join(map(str, delays)),
    ]
    subprocess.run(command, check=True)
    for number in store.numbers:
        verify_files(store.path(number), store.version(number).manifest)
    before = store.roles()
    assert before.champion in store.numbers
    # The next change cleans up, and completes the log.
    last = store.add(write_bundle(tmp_path / "last", name="last"))
    assert {path.name for path in (store.folder / "versions").iterdir()} == set(
        map(str, store.numbers)
    )
    log = store.log()
    added = [line.version for line in log if line.action == "add"]
    assert added == store.numbers
    assert added[-1] == last
    etags = [line.etag for line in log if line.etag is not None]
    assert etags == list(range(1, before.etag + 1))


def test_what_others_put_next_to_the_versions_is_no_version(
    store: VersionStore, bundle: Path, tmp_path: Path
) -> None:
    versions = store.folder / "versions"
    for name in (".DS_Store", "12", ".removed-me", "notes.txt"):
        (versions / name).write_text("of somebody")
    for name in ("007", "1.bak", ".removed-x"):
        shutil.copytree(bundle, versions / name)
    assert store.numbers == [1]
    assert store.add(write_bundle(tmp_path / "second", name="second")) == 2
    assert [line.action for line in store.log()] == ["add", "promote", "add"]
    assert (versions / ".removed-x").is_dir()
