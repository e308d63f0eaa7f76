"""Packed bundles: the same bundle arrives, or nothing, whatever the file holds."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from typer.testing import CliRunner

from taillift.cli import app
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.folder import MODEL, new_bundle, read_manifest, write_golden
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from taillift.models.release.archive import INDEX, pack, read_index, unpack
from tests.support.palette import CLASSES, canvases, graph, palette_manifest, write_bundle

Members = list[tuple[tarfile.TarInfo, bytes]]


def with_noise(target: Path, seed: int) -> Path:
    """Write a palette bundle whose graph has half a million numbers that do not compress."""
    noisy = graph()
    numbers = np.random.default_rng(0).random(500_000, np.float32)
    numbers[: 1_000 * seed] += 1
    noisy.graph.initializer.append(numpy_helper.from_array(numbers, "unused"))
    with new_bundle(target) as bundle:
        onnx.save(noisy, bundle.path / MODEL)
        pixels = canvases([colour for colour, _ in CLASSES.values()])
        write_golden(bundle.path, pixels, Session(bundle.path / MODEL).run(pixels).logits)
        bundle.finish(lambda files: palette_manifest("", files))
    return target


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_noise(tmp_path_factory.mktemp("old") / "bundle", 0)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_noise(tmp_path_factory.mktemp("new") / "bundle", 1)


@pytest.fixture(scope="module")
def packed(old: Path, new: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The new bundle as changes to the old one."""
    file = tmp_path_factory.mktemp("packed") / "new.taillift"
    pack(new, file, old)
    return file


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_changes_are_small_and_give_the_same_bundle(
    old: Path, new: Path, packed: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.taillift"
    pack(new, whole)
    assert packed.stat().st_size < whole.stat().st_size / 20
    unpack(packed, tmp_path / "changed", old)
    unpack(whole, tmp_path / "whole")
    assert content(tmp_path / "changed") == content(tmp_path / "whole") == content(new)
    Classifier.open(tmp_path / "changed")


def test_the_file_is_the_same_whoever_packs_it(
    old: Path, new: Path, packed: Path, tmp_path: Path
) -> None:
    pack(new, tmp_path / "again.taillift", old)
    assert (tmp_path / "again.taillift").read_bytes() == packed.read_bytes()


def test_only_a_packed_bundle_is_replaced(new: Path, tmp_path: Path) -> None:
    file, photos = tmp_path / "new.taillift", tmp_path / "photos.csv"
    photos.write_text("path,label\n")
    file.touch()
    for _ in range(2):
        pack(new, file)
    for other, line in ((photos, "not a packed bundle"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=line):
            pack(new, other)
    assert photos.read_text() == "path,label\n"


def test_files_that_did_not_change_are_not_sent(new: Path, tmp_path: Path) -> None:
    index = pack(new, tmp_path / "same.taillift", new)
    assert [file.name for file in index.files if file.member] == ["manifest.json"]
    unpack(tmp_path / "same.taillift", tmp_path / "same", new)
    assert content(tmp_path / "same") == content(new)


def test_the_index_says_which_bundle_it_starts_from(old: Path, new: Path, packed: Path) -> None:
    index = read_index(packed)
    assert index.since == read_manifest(old).version
    assert index.version == read_manifest(new).version


def test_the_commands_pack_and_unpack(old: Path, new: Path, tmp_path: Path) -> None:
    file, out = str(tmp_path / "new.taillift"), str(tmp_path / "out")
    run = CliRunner().invoke
    assert (
        f"as changes to {read_manifest(old).version}"
        in run(app, ["pack", str(new), "--since", str(old), "-o", file]).output
    )
    assert run(app, ["unpack", file, "-o", out, "--since", str(old)]).exit_code == 0
    assert content(Path(out)) == content(new)
    again = run(app, ["unpack", file, "-o", out, "--since", str(old)])
    assert isinstance(again.exception, UserError)
    replaced = run(app, ["unpack", file, "-o", out, "--since", str(old), "--replace"])
    assert replaced.exit_code == 0


def test_the_bundle_on_site_is_asked_for_and_checked(
    old: Path, new: Path, packed: Path, tmp_path: Path
) -> None:
    version = read_manifest(old).version
    with pytest.raises(UserError, match=f"changes to the bundle {version}: pass its folder"):
        unpack(packed, tmp_path / "out")
    with pytest.raises(UserError, match=f"changes to the bundle {version}, and .* is"):
        unpack(packed, tmp_path / "out", new)
    damaged = tmp_path / "damaged"
    shutil.copytree(old, damaged)
    data = bytearray((damaged / MODEL).read_bytes())
    data[1000] ^= 1
    (damaged / MODEL).write_bytes(data)
    with pytest.raises(UserError, match="is not the file that the manifest lists"):
        unpack(packed, tmp_path / "out", damaged)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_a_damaged_bundle_is_not_packed(new: Path, tmp_path: Path) -> None:
    shutil.copytree(new, tmp_path / "damaged")
    (tmp_path / "damaged" / MODEL).write_bytes(b"short")
    with pytest.raises(UserError, match="is not the file that the manifest lists"):
        pack(tmp_path / "damaged", tmp_path / "new.taillift")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


# Hostile files


def changed(packed: Path, target: Path, change: Callable[[Members], Members]) -> Path:
    """Write a packed file with other members."""
    with tarfile.open(packed) as archive:
        members: Members = []
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            members.append((member, file.read()))
    with tarfile.open(target, "w") as archive:
        for member, data in change(members):
            if member.isreg():
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return target


def index_with(change: Callable[[dict[str, Any]], None]) -> Callable[[Members], Members]:
    """Return a change of the index alone."""

    def apply(members: Members) -> Members:
        document = json.loads(members[0][1])
        change(document)
        return [(members[0][0], json.dumps(document).encode()), *members[1:]]

    return apply


def renamed(name: str) -> Callable[[Members], Members]:
    """Return a change that gives the last file another name, in the index and as a member."""

    def apply(members: Members) -> Members:
        document = json.loads(members[0][1])
        old_name = document["files"][-1]["name"]
        document["files"][-1]["name"] = name
        for member, _ in members:
            if member.name == f"{old_name}.zst":
                member.name = f"{name}.zst"
        return [(members[0][0], json.dumps(document).encode()), *members[1:]]

    return apply


def linked(kind: bytes) -> Callable[[Members], Members]:
    def apply(members: Members) -> Members:
        member = tarfile.TarInfo(members[1][0].name)
        member.type, member.linkname = kind, "/etc/passwd"
        return [members[0], (member, b""), *members[2:]]

    return apply


def bomb(members: Members) -> Members:
    """Let the manifest unpack to a gigabyte; its listed size stays."""
    zeros = zstandard.ZstdCompressor(level=1).compress(bytes(2**28))
    return [members[0], (members[1][0], zeros), *members[2:]]


def stray(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def listed_larger(document: dict[str, Any]) -> None:
    document["files"][0]["size"] = 2**47


def listed_twice(document: dict[str, Any]) -> None:
    document["files"].append(document["files"][0])


def without_member(document: dict[str, Any]) -> None:
    document["files"][0]["member"] = False


def other_base(document: dict[str, Any]) -> None:
    document["files"][0]["base"] = "../../../etc/passwd"


def no_since(document: dict[str, Any]) -> None:
    document["since"] = None


def later_format(document: dict[str, Any]) -> None:
    document["format"] = 2


def other_version(document: dict[str, Any]) -> None:
    document["version"] = "0" * 12


def other_hash(document: dict[str, Any]) -> None:
    document["files"][0]["sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed("../outside"), "leads out of the bundle"),
        (renamed("/tmp/outside"), "leads out of the bundle"),
        (renamed("report/../../outside"), "leads out of the bundle"),
        (renamed("..\\outside"), "leads out of the bundle"),
        (renamed("a//b"), "leads out of the bundle"),
        (renamed(""), "leads out of the bundle"),
        (renamed("MANIFEST.json"), "twice"),
        (renamed("extra.txt"), "not part of the bundle"),
        (index_with(listed_twice), "twice"),
        (index_with(listed_larger), "would unpack to"),
        (index_with(without_member), "has no bytes for"),
        (index_with(other_base), "which .* lacks"),
        (index_with(no_since), "starts from a bundle that it does not name"),
        (index_with(later_format), "update it"),
        (index_with(other_version), "says that it holds"),
        (index_with(other_hash), "has another hash"),
        (linked(tarfile.SYMTYPE), "not a plain file but a link"),
        (linked(tarfile.LNKTYPE), "not a plain file but a link"),
        (linked(tarfile.DIRTYPE), "not a plain file but a link"),
        (linked(tarfile.CHRTYPE), "not a plain file but a link"),
        (bomb, "is longer than"),
        (lambda members: [*members, (stray("more"), b"x")], "after its last file"),
        (lambda members: [*members, members[1]], "after its last file"),
        (lambda members: [members[0], (stray("../x"), b"x"), *members[1:]], "in the place of"),
        (lambda members: [members[0], members[1], *members[1:]], "in the place of"),
        (lambda members: members[:-1], "ends before"),
        (lambda members: members[1:], "in the place of"),
        (lambda members: [(members[0][0], b"[]"), *members[1:]], "is not valid"),
        (lambda members: [(members[0][0], b"{" * 9999), *members[1:]], "damaged"),
        (lambda members: [members[0], (members[1][0], b"x"), *members[2:]], "damaged"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line_and_leaves_nothing(
    change: Callable[[Members], Members], words: str, old: Path, packed: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    file = changed(packed, tmp_path / "hostile.taillift", change)
    with pytest.raises(UserError, match=words) as error:
        unpack(file, place / "out", old)
    assert "\n" not in str(error.value)
    assert not list(place.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"place", "hostile.taillift"}


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_archive_is_refused(mode: Any, packed: Path, tmp_path: Path) -> None:
    file = tmp_path / "compressed.taillift"
    with tarfile.open(file, mode) as archive:
        archive.add(packed, INDEX)
    with pytest.raises(UserError, match="is damaged or was not written by"):
        unpack(file, tmp_path / "out")


@settings(max_examples=60)
@given(data=st.data())
def test_a_file_with_a_flipped_byte_or_a_lost_end_gives_the_same_bundle_or_none(
    old: Path,
    new: Path,
    packed: Path,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    torn = bytearray(packed.read_bytes())
    place = data.draw(st.integers(0, len(torn) - 1))
    if data.draw(st.booleans()):
        torn[place] ^= data.draw(st.integers(1, 255))
    else:
        del torn[place:]
    (folder / "torn.taillift").write_bytes(torn)
    refusal = ""
    try:
        unpack(folder / "torn.taillift", folder / "out", old)
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert [path.name for path in folder.iterdir()] == ["torn.taillift"]
    else:
        # The archive's padding does not count.
        assert content(folder / "out") == content(new)


def test_what_does_not_fit_on_the_disk_is_refused_before_anything_is_written(
    packed: Path, old: Path, small_disk: Path
) -> None:
    with pytest.raises(UserError, match="has room for"):
        unpack(packed, small_disk / "out", old)
    assert not list(small_disk.iterdir())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.taillift does not exist"):
        unpack(tmp_path / "missing.taillift", tmp_path / "out")


def test_a_bundle_without_changes_to_start_from_needs_none(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "palette")
    pack(bundle, tmp_path / "p.taillift")
    unpack(tmp_path / "p.taillift", tmp_path / "deep" / "er" / "out", bundle)
    assert content(tmp_path / "deep" / "er" / "out") == content(bundle)
