"""`taillift classify --out FOLDER`: tables, shards and addresses in parts, through kills."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.errors import UserError
from taillift.service.inference.folder_run import Asked, PredictionRows
from taillift.service.inference.part_folder import PartFolder
from taillift.service.inference.photo_parts import parts_of
from taillift.service.serve_cli import app
from tests.support.palette import CLASSES, photo

LABELS = list(CLASSES)
# Runs each line as a command in a process of its own, with everything imported already.
FORKS = """
import os, sys
import onnxruntime, pyarrow.parquet, PIL.Image
from taillift.models.bundle import conveyor
from taillift.service.inference import part_folder
from taillift.service.serve_cli import app
for line in sys.stdin:
    process = os.fork()
    if not process:
        app(line.split())
    print(process, flush=True)
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""

# Prints by how many bytes the memory grows while the photos of a table are read.
GROWTH = """
import sys
from taillift.service.inference.memory import status_bytes
from taillift.service.inference.photo_parts import parts_of
[part] = parts_of([sys.argv[1]], recursive=False)
with part.open() as photos:
    before = status_bytes("VmHWM")
    read = sum(map(len, photos.images(0)))
    print(read, status_bytes("VmHWM") - before)
"""


def classify(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["classify", *map(str, arguments)])


def images(count: int, first: int = 0) -> list[bytes]:
    """Return photos of all classes in turn, each of a size of its own."""
    return [
        photo(CLASSES[LABELS[number % len(LABELS)]][0], "JPEG", (20 + number, 16))
        for number in range(first, first + count)
    ]


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as shard:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))


def write_table(path: Path, columns: dict[str, list[Any]], rows: int = 1_000) -> None:
    parquet.write_table(pa.table(columns), path, row_group_size=rows)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all parts in their order."""
    return [
        row
        for path in sorted(folder.glob("part-*.parquet"))
        for row in parquet.read_table(path).to_pylist()
    ]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Write two shards, a table with bytes and two photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    made = images(200)
    for number in range(2):
        files = {f"{n:03}.jpg": made[n] for n in range(60 * number, 60 * number + 60)}
        write_shard(folder / f"train-{number}.tar", {"readme.txt": b"text", **files})
    numbers = range(120, 198)
    columns: dict[str, list[Any]] = {"path": [f"{n}.jpg" for n in numbers], "n": [*numbers]}
    columns["bytes"] = made[120:198]
    write_table(folder / "table.parquet", columns)
    for number in (198, 199):
        (folder / f"{number}.jpg").write_bytes(made[number])
    return folder


def expected(folder: Path) -> list[tuple[str, str]]:
    """Return the name and the label of each photo of `sources`, in their order."""
    names = [f"{folder}/{number}.jpg" for number in (198, 199)]
    names += [f"{number}.jpg" for number in range(120, 198)]
    names += [f"{folder}/train-{n // 60}.tar/{n:03}.jpg" for n in range(120)]
    return [(name, LABELS[int(Path(name).stem) % len(LABELS)]) for name in names]


def test_every_photo_has_one_row_after_ten_kills(
    bundle: Path, sources: Path, tmp_path: Path
) -> None:
    out, moments = tmp_path / "out", random.Random(0)
    command = f"classify {bundle} {sources} --out {out}\n"
    with subprocess.Popen(
        [sys.executable, "-c", FORKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as forks:
        assert forks.stdin is not None
        assert forks.stdout is not None

        def start() -> int:
            assert forks.stdin is not None
            assert forks.stdout is not None
            forks.stdin.write(command)
            forks.stdin.flush()
            return int(forks.stdout.readline())

        killed = 0
        for _ in range(10):
            process = start()
            time.sleep(moments.uniform(0, 0.4))
            with suppress(ProcessLookupError):  # It has ended, because all is done.
                os.kill(process, signal.SIGKILL)
            killed += int(forks.stdout.readline()) == -signal.SIGKILL
        start()
        assert int(forks.stdout.readline()) == 0
    assert killed
    assert [(row["photo"], row["label"]) for row in rows(out)] == expected(sources)
    assert {path.suffix for path in out.iterdir() if path.name[0] != "."} == {".parquet", ".json"}
    progress = json.loads((out / "_progress.json").read_text())
    assert (progress["done"], progress["of"], progress["photos"]) == (4, 4, 200)


def test_a_photo_has_the_same_row_wherever_it_comes_from(bundle: Path, tmp_path: Path) -> None:
    made = images(20)
    made[3] = b"no photo"
    plain = tmp_path / "plain"
    plain.mkdir()
    paths = [str(plain / f"{number:02}.jpg") for number in range(20)]
    memory = fsspec.filesystem("memory")
    for path, data in zip(paths, made, strict=True):
        Path(path).write_bytes(data)
        memory.pipe(f"/set/{Path(path).name}", data)
    both = [{"bytes": data, "path": path} for data, path in zip(made, paths, strict=True)]
    write_table(tmp_path / "paths.parquet", {"path": paths}, rows=7)
    write_table(tmp_path / "bytes.parquet", {"bytes": made}, rows=7)
    write_table(tmp_path / "image.parquet", {"image": both, "label": [*range(20)]}, rows=7)
    addresses = [f"memory://set/{Path(path).name}" for path in paths]
    write_table(tmp_path / "addresses.parquet", {"path": addresses})
    write_shard(
        tmp_path / "s.tar", dict(zip((Path(path).name for path in paths), made, strict=True))
    )
    memory.put(str(tmp_path / "s.tar"), "/shards/s.tar")
    memory.put(str(tmp_path / "bytes.parquet"), "/tables/bytes.parquet")
    given = {
        "plain": plain,
        "paths": tmp_path / "paths.parquet",
        "bytes": tmp_path / "bytes.parquet",
        "image": tmp_path / "image.parquet",
        "addresses": tmp_path / "addresses.parquet",
        "shard": tmp_path / "s.tar",
        "glob": tmp_path / "*.tar",
        "set": "memory://set",
        "shards": "memory://shards/*.tar",
        "tables": "memory://tables/bytes.parquet",
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for name, source in given.items():
        result = classify(bundle, source, "--out", tmp_path / "out" / name)
        assert result.exit_code == 0, result.exception
        found[name] = rows(tmp_path / "out" / name)
    names = {name: [row.pop("photo") for row in some] for name, some in found.items()}
    for some in found.values():
        for row in some:
            assert row.pop("time")
        assert some == found["plain"]
    assert [row["error"] for row in found["plain"]].count(None) == 19
    assert names["plain"] == names["paths"] == names["image"] == paths
    assert names["addresses"] == addresses
    assert names["set"] == [f"memory:///set/{number:02}.jpg" for number in range(20)]
    assert names["bytes"][:2] == [f"{tmp_path}/bytes.parquet#0", f"{tmp_path}/bytes.parquet#1"]
    assert names["shard"][0] == f"{tmp_path}/s.tar/00.jpg"


def test_a_table_is_cut_into_parts_and_shares(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taillift.service.inference.photo_parts.PART_PHOTOS", 7)
    made = images(30)
    names = [f"{number:02}.jpg" for number in range(30)]
    write_table(tmp_path / "t.parquet", {"path": names, "bytes": made}, rows=4)
    out = tmp_path / "out"
    for share in ("2/3", "1/3", "1/3"):
        result = classify(bundle, tmp_path / "t.parquet", "--out", out, "--share", share)
        assert result.exit_code == 0
    assert [path.name[5:10] for path in sorted(out.glob("part-*"))] == [
        "00000",
        "00001",
        "00003",
        "00004",
    ]
    assert "4 of 5 parts: 23 photos, 0 cannot be used" in result.stderr
    (out / "_progress.json").unlink()
    assert classify(bundle, tmp_path / "t.parquet", "--out", out).exit_code == 0
    assert [row["photo"] for row in rows(out)] == names
    assert [row["label"] for row in rows(out)] == [LABELS[n % 7] for n in range(30)]


def test_rows_that_cannot_be_had_are_rows_with_the_reason(bundle: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", {"bytes": [*images(1), None, b"text"]})
    gone = [str(tmp_path / "gone.jpg"), None, "memory://gone/a.jpg"]
    write_table(tmp_path / "u.parquet", {"path": gone})
    out = tmp_path / "out"
    tables = [tmp_path / "t.parquet", tmp_path / "u.parquet"]
    assert classify(bundle, *tables, "--out", out).exit_code == 0
    errors = [row["error"] for row in rows(out)]
    assert errors[:4] == [
        None,
        "the row has no bytes",
        "not a JPEG, PNG or WebP image",
        "No such file or directory",
    ]
    assert errors[4] == "the row has no path"
    assert "memory://gone/a.jpg cannot be read: " in errors[5]
    assert json.loads((out / "_progress.json").read_text())["errors"] == 5


def test_a_photo_with_two_names_in_a_shard_has_two_rows(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(images(1)[0])
    (tmp_path / "b.jpg").hardlink_to(tmp_path / "a.jpg")
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        for name in ("a.jpg", "b.jpg"):
            shard.add(tmp_path / name, name)
    assert classify(bundle, tmp_path / "s.tar", "--out", tmp_path / "out").exit_code == 0
    assert [row["photo"][-5:] for row in rows(tmp_path / "out")] == ["a.jpg", "b.jpg"]
    assert [row["label"] for row in rows(tmp_path / "out")] == [LABELS[0]] * 2


def test_the_parts_of_a_run_are_not_its_sources(bundle: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", {"a.jpg": images(1)[0], "._a.jpg": b"\0\x05\x16\x07"})
    for _ in range(2):
        result = classify(bundle, tmp_path, "--recursive", "--out", tmp_path / "x/../out")
        assert result.exit_code == 0, result.exception
    assert [row["photo"] for row in rows(tmp_path / "out")] == [f"{tmp_path}/s.tar/a.jpg"]


def test_an_image_column_may_hold_the_files_themselves(bundle: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", {"image": [*images(2), None]})
    write_table(tmp_path / "u.parquet", {"image": ["a.jpg"], "bytes": images(1)})
    out, tables = tmp_path / "out", [tmp_path / "t.parquet", tmp_path / "u.parquet"]
    assert classify(bundle, *tables, "--out", out).exit_code == 0
    assert [row["label"] for row in rows(out)] == [LABELS[0], LABELS[1], None, LABELS[0]]
    assert rows(out)[2]["error"] == "the row has no bytes"


def test_the_memory_holds_a_few_photos_of_a_large_row_group(tmp_path: Path) -> None:
    size, count, path = 100_000, 1_200, tmp_path / "t.parquet"
    data = random.Random(0).randbytes(size + count)
    table = pa.table({"bytes": [data[number : number + size] for number in range(count)]})
    parquet.write_table(table, path, write_batch_size=16, use_dictionary=False)
    assert parquet.ParquetFile(path).num_row_groups == 1
    command = [sys.executable, "-c", GROWTH, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    read, growth = map(int, run.stdout.split())
    assert read == count * size
    assert growth < 0.7 * read


def test_shares_at_the_same_time_lose_no_record(bundle: Path, tmp_path: Path) -> None:
    shards = [tmp_path / f"{number:02}.tar" for number in range(16)]
    for number, shard in enumerate(shards):
        write_shard(shard, {"a.jpg": images(1, number)[0]})
    classifier = Classifier.open(bundle)
    table = PredictionRows(classifier, Asked(Ensemble.OFF, 1))
    parts = parts_of(list(map(str, shards)), recursive=False)
    folders = [PartFolder(tmp_path / "out", parts, table) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: folders[number].classify((number, 8)), range(8)))
    progress = json.loads((tmp_path / "out/_progress.json").read_text())
    assert (progress["done"], progress["photos"]) == (len(progress["parts"]), 16) == (16, 16)


@pytest.mark.parametrize("option", [["--top-k", "1"], ["--ensemble", "off"]])
def test_a_part_without_a_record_is_not_taken_over_with_other_options(
    bundle: Path, tmp_path: Path, option: list[str]
) -> None:
    """It is whole, and the run was killed before the first record."""
    write_shard(tmp_path / "s.tar", {"a.jpg": images(1)[0]})
    assert classify(bundle, tmp_path / "s.tar", "--out", tmp_path / "out").exit_code == 0
    (tmp_path / "out/_progress.json").unlink()
    error = classify(bundle, tmp_path / "s.tar", "--out", tmp_path / "out", *option).exception
    assert isinstance(error, UserError)
    assert "part-00000.parquet was made by another bundle or with other options" in str(error)
    assert classify(bundle, tmp_path / "s.tar", "--out", tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("damage", ["header", "end", "name of the next"])
def test_a_damaged_shard_is_not_taken_for_a_shorter_one(
    bundle: Path, tmp_path: Path, damage: str
) -> None:
    write_shard(tmp_path / "s.tar", {f"{number}.jpg": images(1)[0] for number in range(3)})
    data = bytearray((tmp_path / "s.tar").read_bytes())
    with tarfile.open(tmp_path / "s.tar") as shard:
        start = shard.getmembers()[1].offset
    match damage:
        case "header":
            data[start + 150] ^= 1  # Its checksum.
        case "end":
            del data[start:]
        case _:
            del data[start + 100 :]
    (tmp_path / "s.tar").write_bytes(data)
    error = classify(bundle, tmp_path / "s.tar", "--out", tmp_path / "out").exception
    assert isinstance(error, UserError)
    assert "s.tar cannot be read: it is damaged, or its end is missing" in str(error)


def test_a_password_in_an_address_is_written_nowhere(bundle: Path, tmp_path: Path) -> None:
    address = "ftp://ann:secret@127.0.0.1:1/a.jpg"
    write_table(tmp_path / "t.parquet", {"path": [address]})
    out = tmp_path / "out"
    assert classify(bundle, tmp_path / "t.parquet", "--out", out).exit_code == 0
    (row,) = rows(out)
    assert row["photo"] == "ftp://***@127.0.0.1:1/a.jpg"
    assert "ftp://***@127.0.0.1:1/a.jpg cannot be read: " in row["error"]
    for arguments in ((address,), (f"{address}.tar", "--out", tmp_path / "new")):
        error = classify(bundle, *arguments).exception
        assert isinstance(error, UserError)
        assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["s.tar", "--out", "out.csv"], "s.tar is read in parts: give --out a folder"),
        (["cut.tar", "--out", "new"], "cut.tar cannot be read: unexpected end of data"),
        (["bad.parquet", "--out", "new"], "bad.parquet cannot be read: "),
        (["none.parquet", "--out", "new"], "none.parquet cannot be read: No such file"),
        (["text.parquet", "--out", "new"], "has no column path or bytes (but text)"),
        (["memory://nothing", "--out", "new"], "memory://nothing has no photos, tables"),
        (["nosuch://x/y.tar", "--out", "new"], "nosuch://x/y.tar cannot be read"),
        (["s.tar", "--out", "other"], "other has notes.txt, which is not of this run"),
        (["s.tar", "--out", "out", "--top-k", "1"], "by another bundle or with other options"),
        (["t.tar", "--out", "out"], "part-00000.parquet is of s.tar, not its place now"),
        (["s.tar", "--out", "out", "--share", "3/2"], "--share 3/2 is not a share such as 2/8"),
        (["s.tar", "--out", "new", "--counts", "c.csv"], "give --out a file, not a folder"),
    ],
)
def test_a_wrong_source_or_folder_is_one_line(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(Path("s.tar"), {"a.jpg": images(1)[0]})
    write_shard(Path("t.tar"), {"b.jpg": images(1)[0]})
    Path("cut.tar").write_bytes(Path("s.tar").read_bytes()[:700])
    Path("bad.parquet").write_text("text")
    write_table(Path("text.parquet"), {"text": ["a"]})
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    if "out" in arguments:
        assert classify(bundle, "s.tar", "--out", "out").exit_code == 0
    error = classify(bundle, *arguments).exception
    assert isinstance(error, UserError), error
    assert words in str(error)
    assert "\n" not in str(error)


@pytest.mark.filterwarnings("ignore")  # Ray Data warns of its own options.
def test_a_ray_cluster_writes_the_parts_that_are_missing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        files = {f"{name}.jpg": data for name, data in enumerate(images(99, 99 * number))}
        write_shard(Path(f"{number}.tar"), {**files, "broken.jpg": b"no photo"})
    shards = ["0.tar", "1.tar", "2.tar"]
    assert classify(bundle, *shards, "--out", "plain").exit_code == 0
    assert classify(bundle, *shards, "--out", "ray", "--share", "1/3").exit_code == 0
    before = Path("ray/part-00000.parquet").stat().st_mtime_ns
    result = classify(bundle, *shards, "--out", "ray", "--ray", "local")
    assert result.exit_code == 0, result.output
    plain, on_ray = (
        [{**row, "time": None} for row in rows(Path(folder))] for folder in ("plain", "ray")
    )
    assert on_ray == plain
    assert len({row["photo"] for row in on_ray}) == len(on_ray) == 300
    assert Path("ray/part-00000.parquet").stat().st_mtime_ns == before
    assert json.loads(Path("ray/_progress.json").read_text())["errors"] == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "rows.csv", "--ray", "local"], "--ray needs a folder for --out"),
        (["--out", "rows", "--ray", "local", "--share", "1/2"], "shares the parts out by itself"),
    ],
)
def test_ray_needs_a_folder_and_shares_by_itself(
    bundle: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    write_shard(tmp_path / "a.tar", {})
    options[1] = str(tmp_path / options[1])
    result = classify(bundle, tmp_path / "a.tar", *options)
    assert result.exit_code != 0
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)
