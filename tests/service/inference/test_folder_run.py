"""`taillift classify --out` and `taillift embed`: many photos to a file, through kills as well."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.manifest import Variant
from taillift.models.bundle.review import GroupReview, Review
from taillift.models.bundle.schema import Precision
from taillift.models.errors import UserError
from taillift.service.serve_cli import app
from tests.support.palette import CLASSES, POISON, photo, write_bundle
from tests.support.serving import form, running

COMMAND = [sys.executable, "-c", "from taillift.service.serve_cli import app; app()"]
LABELS = list(CLASSES)


def taillift(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], input=stdin)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_photos(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(photo(CLASSES[LABELS[number % len(LABELS)]][0], "JPEG", (20 + number, 16)))
    return paths


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return write_photos(tmp_path / "photos", 30)


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl", "out.parquet"])
def test_every_photo_has_one_row_in_order_after_kills(
    bundle: Path, tmp_path: Path, out: str
) -> None:
    paths, target = write_photos(tmp_path / "photos", 400), tmp_path / out
    command = [*COMMAND, "classify", str(bundle), str(tmp_path / "photos"), "--out", str(target)]
    grown = target.with_name(out + ".part") if out.endswith("parquet") else target
    for kill in range(3):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                if grown.exists() and grown.read_bytes().count(b"\n") > 90 * (kill + 1):
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.001)
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    assert grown == target or not target.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "photos were done before" in done.stderr
    match target.suffix:
        case ".csv":
            rows = read(target)
        case ".jsonl":
            rows = [json.loads(line) for line in target.read_text().splitlines()]
        case _:
            from pyarrow import parquet

            rows = parquet.read_table(target).to_pylist()
    assert [row["photo"] for row in rows] == [str(path) for path in paths]
    assert [row["label"] for row in rows] == [LABELS[n % len(LABELS)] for n in range(400)]
    times = [row["time"] for row in rows]
    assert times == sorted(times)


def test_watch_counts_in_the_file_what_the_service_counted(known: Path, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 40)
    paths[7].write_bytes(b"no photo")
    for copy in (11, 12):
        paths[copy].write_bytes(paths[10].read_bytes())
    out = tmp_path / "out.csv"
    assert taillift("classify", known, tmp_path / "photos", "--out", out).exit_code == 0
    watched = taillift("watch", known, out, "--json", "--reference", "uniform")
    assert watched.stderr.splitlines() == [f"{paths[7]}: not a JPEG, PNG or WebP image"]
    state = json.loads(watched.stdout)["state"]
    with running(known, reference="uniform") as client:
        files = form(*[("x", path.read_bytes()) for path in paths])
        client.post("/classify", files=files).raise_for_status()
        live = [info["live"] for info in client.get("/classes").json()["classes"]]
    classes = state["classes"]
    assert sum(classes["predicted"]) == 37
    assert [one["predicted"] for one in live] == classes["predicted"]
    assert [one["expected"] for one in live] == pytest.approx(classes["expected"])
    assert [one["silent"] for one in live] == classes["silent"]
    assert [one["drifting"] for one in live] == classes["found"]


def test_watch_counts_the_uniform_prior_whatever_prior_was_asked_for(
    known: Path, photos: list[Path], tmp_path: Path
) -> None:
    states = []
    for prior in ("uniform", "train"):
        out = tmp_path / f"{prior}.csv"
        taillift("classify", known, photos[0].parent, "--out", out, "--prior", prior)
        state = json.loads(taillift("watch", known, out, "--json").stdout)["state"]
        states.append([group["confidence"] for group in state["groups"]])
    assert states[0] == states[1]
    assert read(out)[5]["confidence"] != read(out)[5]["uniform_confidence"]


def test_rows_name_their_tail_and_a_run_with_another_does_not_go_on(
    known: Path, photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "leant.csv"
    taillift("classify", known, photos[0].parent, "--out", out, "--tail", 0.5)
    row = read(out)[5]
    assert (row["tail"], row["decision"]) == ("0.5", "")
    assert row["confidence"] != row["uniform_confidence"]
    other = taillift("classify", known, photos[0].parent, "--out", out, "--tail", 0.25)
    assert "has other contents" in str(other.exception)
    refused = taillift("classify", known, photos[0].parent, "--tail", 2)
    assert "tail 2.0 is not from 0 to 1" in str(refused.exception)


def test_photos_that_cannot_be_used_are_rows_with_the_reason(
    bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    photos[3].write_bytes(b"no photo")
    photos[4].write_bytes(photo(POISON, "PNG"))
    photos[5].write_bytes(photos[5].read_bytes()[:-300])
    out = tmp_path / "out.csv"
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join([*map(str, photos), "gone.jpg", str(tmp_path), "zero\0.jpg"]))
    assert taillift("classify", bundle, listing, "--out", out).exit_code == 0
    errors = {number: row["error"] for number, row in enumerate(read(out)) if row["error"]}
    assert sorted(errors) == [3, 4, 5, 30, 31, 32]
    assert errors[3] == "not a JPEG, PNG or WebP image"
    assert errors[4].startswith("the model fails on the image: ")
    assert errors[30] == "No such file or directory"
    assert errors[31] == "Is a directory"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_list_is_read_in_the_encoding_that_its_mark_says(
    bundle: Path, photos: list[Path], tmp_path: Path, encoding: str
) -> None:
    """Windows writes UTF-16 with a mark; without one nothing says what the bytes are."""
    named = photos[1].rename(photos[1].with_name("Grün.jpg"))
    listing, out = tmp_path / "list.txt", tmp_path / "out.csv"
    listing.write_text(f"{photos[0]}\r\n{named}\r\n", encoding)
    result = taillift("classify", bundle, listing, "--out", out)
    if encoding == "utf-16-le":
        assert isinstance(result.exception, UserError)
        assert "list.txt is not text in UTF-8 but binary, or in UTF-16" in str(result.exception)
    else:
        assert [row["photo"] for row in read(out)] == [str(photos[0]), str(named)]


def test_sources_are_files_folders_globs_lists_and_standard_input(
    bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "a list").write_text(f"{photos[2]}\r\n\n{photos[1]}")
    pattern = tmp_path / "photos" / "0002?.jpg"
    inner = write_photos(tmp_path / "photos" / "inner", 1)
    out = tmp_path / "out.csv"
    sources = [photos[9], f"@{tmp_path / 'a list'}", pattern, "-", tmp_path / "photos"]
    result = taillift(
        "classify", bundle, *sources, "--recursive", "--out", out, stdin=f"{photos[0]}\n"
    )
    assert result.exit_code == 0
    expected = [photos[9], photos[2], photos[1], *photos[20:], photos[0], *photos, *inner]
    assert [row["photo"] for row in read(out)] == [str(path) for path in expected]


def test_a_name_may_have_quotes_line_ends_and_bytes_that_are_not_utf_8(
    bundle: Path, tmp_path: Path
) -> None:
    names = [b'a"\n,b.png', b"c\rd.png", b"\xff.png", "ü.png".encode()]
    for name in names:
        with open(bytes(tmp_path) + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(photo(CLASSES["red"][0]))
    out = tmp_path / "out.csv"
    for _ in range(2):  # The second run finds every row in its place.
        assert taillift("classify", bundle, tmp_path, "--out", out).exit_code == 0
    listed = {row["photo"].removeprefix(f"{tmp_path}/") for row in read(out)}
    assert listed == {'a"\n,b.png', "c\rd.png", "\\udcff.png", "ü.png"}


@pytest.mark.parametrize("cut", [1, 40, 700])
def test_a_row_that_is_not_whole_is_written_again(
    bundle: Path, photos: list[Path], tmp_path: Path, cut: int
) -> None:
    out, folder = tmp_path / "out.csv", photos[0].parent
    taillift("classify", bundle, folder, "--out", out)
    out.write_bytes(out.read_bytes()[:-cut])
    if cut == 40:
        watched = taillift("watch", bundle, out)
        assert "line 31 is incomplete" in str(watched.exception)
    assert taillift("classify", bundle, folder, "--out", out).exit_code == 0
    rows = read(out)
    assert [row["photo"] for row in rows] == [str(path) for path in photos]
    assert {row["prior"] for row in rows} == {"uniform"}


def test_a_file_of_other_rows_is_left_as_it_is(
    bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    out, folder = tmp_path / "out.csv", photos[0].parent
    taillift("classify", bundle, folder, "--out", out)
    before = out.read_bytes()
    for other in ([folder, "--ensemble", "off"], [folder, "--top-k", 1], [photos[1], folder]):
        error = taillift("classify", bundle, "--out", out, *other)
        assert isinstance(error.exception, UserError), other
        assert "choose another name for --out" in str(error.exception)
        assert out.read_bytes() == before
    for own in ("notes", "a,b\n1,2\n"):
        out.write_text(own)
        assert isinstance(taillift("classify", bundle, folder, "--out", out).exception, UserError)
        assert out.read_text() == own


def test_a_full_disk_leaves_whole_rows_and_the_run_goes_on_later(
    bundle: Path, tmp_path: Path, small_disk: Path
) -> None:
    write_photos(tmp_path / "photos", 400)
    out = small_disk / "out.csv"
    error = taillift("classify", bundle, tmp_path / "photos", "--out", out).exception
    assert isinstance(error, UserError)
    assert "No space left on device" in str(error)
    assert out.read_bytes().endswith(b"uniform\n")
    moved = tmp_path / "out.csv"
    moved.write_bytes(out.read_bytes())
    assert taillift("classify", bundle, tmp_path / "photos", "--out", moved).exit_code == 0
    assert len(read(moved)) == 400


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "out.xls"], "does not end in .csv, .jsonl, .parquet"),
        (["--out", "out.csv", "--json"], "leave one of them out"),
        (["--out", "out.csv", "empty"], "empty has no photos"),
        (["--out", "out.csv", "nothing*.jpg"], "matches no photo"),
        (["--out", "out.csv", "@none"], "the list none cannot be read"),
        (["--out", "out.csv", "--coverage", "0.9"], "no calibration to make sets from"),
    ],
)
def test_a_wrong_argument_is_one_line_and_writes_nothing(
    bundle: Path,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    error = taillift("classify", bundle, photos[0], *arguments).exception
    assert isinstance(error, UserError)
    assert words in str(error)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv", ".jsonl"])
def test_features_are_means_over_views_at_unit_length(
    bundle: Path, photos: list[Path], tmp_path: Path, suffix: str
) -> None:
    photos[3].write_bytes(b"no photo")
    out = tmp_path / f"features{suffix}"
    assert taillift("embed", bundle, photos[0].parent, "--out", out).exit_code == 0
    match suffix:
        case ".npz":
            with np.load(out) as arrays:
                assert list(arrays["photos"]) == [str(path) for path in photos]
                found, broken = arrays["features"], arrays["errors"] != ""
        case ".parquet":
            from pyarrow import parquet

            table = parquet.read_table(out).to_pylist()
            broken = np.array([row["error"] is not None for row in table])
            found = np.array([row["features"] or [np.nan] * 3 for row in table], np.float32)
        case ".jsonl":
            table = [json.loads(line) for line in out.read_text().splitlines()]
            broken = np.array([row["error"] is not None for row in table])
            found = np.array([row["features"] or [np.nan] * 3 for row in table], np.float32)
        case _:
            cells = read(out)
            broken = np.array([row["error"] != "" for row in cells])
            found = np.array(
                [[row[f"f{n}"] or "nan" for n in range(3)] for row in cells], np.float32
            )
    assert np.flatnonzero(broken).tolist() == [3]
    assert np.isnan(found[3]).all()
    classifier = Classifier.open(bundle)
    good = [path for path in photos if path != photos[3]]
    expected = np.stack([one.features for one in classifier.outputs(map(classifier.canvas, good))])
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(found[~broken], expected, atol=1e-6)


def test_parquet_without_its_package_is_one_line(
    bundle: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    error = taillift("classify", bundle, photos[0], "--out", tmp_path / "out.parquet").exception
    assert isinstance(error, UserError)
    assert "install taillift[parquet]" in str(error)


def test_a_row_says_why_its_answer_is_accepted_or_goes_to_review(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 6)
    threshold = GroupReview(photos=9, threshold=0.0, certified=False, accepted=50, error=1)
    review = Review(risk=5, level=95, data="others", groups={"many": threshold})
    variants = {Precision.FP32: Variant(review=review)}
    reviewing, out = write_bundle(tmp_path / "b", variants=variants), tmp_path / "out.csv"
    assert taillift("classify", reviewing, tmp_path / "photos", "--out", out).exit_code == 0
    reasons = {(row["decision"], row["group"]): row["reason"] for row in read(out)}
    assert reasons.keys() == {("accept", "many"), ("review", "medium"), ("review", "few")}
    assert (
        reasons["accept", "many"] == "its confidence reaches the threshold of the group many, 0 %"
    )
    assert reasons["review", "few"].startswith("no threshold for the group few, because 0 held-out")


def dark_photos(folder: Path) -> list[Path]:
    """Write three photos that are black by themselves, the second one closest to red."""
    folder.mkdir()
    paths = [folder / name for name in ("a.png", "b.png", "c.png")]
    for path, colour in zip(paths, [(100, 5, 5), (120, 10, 5), (0, 0, 0)], strict=True):
        path.write_bytes(photo(colour))
    return paths


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl", "out.parquet"])
def test_counts_assign_a_folder(bundle: Path, tmp_path: Path, out: str) -> None:
    dark_photos(tmp_path / "photos")
    counts, target = tmp_path / "counts.csv", tmp_path / out
    counts.write_text("label,count\nred,1\nblack,2\n")
    command = ("classify", bundle, tmp_path / "photos", "--counts", counts, "--out", target)
    assert taillift(*command).exit_code == 0
    match target.suffix:
        case ".csv":
            rows = read(target)
        case ".jsonl":
            rows = [json.loads(line) for line in target.read_text().splitlines()]
        case _:
            from pyarrow import parquet

            rows = parquet.read_table(target).to_pylist()
    assert [row["label"] for row in rows] == ["black"] * 3
    assert [row["assigned"] for row in rows] == ["black", "red", "black"]
    assert [row["instead"] for row in rows] == ["red", "black", "red"]
    # Other counts are another question: their rows must not be taken for these.
    counts.write_text("label,count\nred,2\nblack,1\n")
    again = taillift(*command)
    assert isinstance(again.exception, UserError)


def test_a_broken_off_run_with_counts_goes_on_with_the_same_classes(
    bundle: Path, tmp_path: Path
) -> None:
    dark_photos(tmp_path / "photos")
    counts, target = tmp_path / "counts.csv", tmp_path / "out.csv"
    counts.write_text("label,count\nred,1\nblack,2\n")
    command = ("classify", bundle, tmp_path / "photos", "--counts", counts, "--out", target)
    assert taillift(*command).exit_code == 0
    whole = read(target)
    target.write_text("".join(target.read_text().splitlines(keepends=True)[:2]))
    assert taillift(*command).exit_code == 0
    for column in ("photo", "assigned", "assigned_confidence", "instead"):
        assert [row[column] for row in read(target)] == [row[column] for row in whole]


def test_the_least_certain_assignment_is_printed_first(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dark_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    Path("counts.csv").write_text("label,count\nred,1\nblack,2\n")
    found = taillift("classify", bundle, "photos", "--counts", "counts.csv")
    assert found.exit_code == 0, found.output
    cells = [line.split() for line in found.stdout.splitlines() if ".png" in line]
    names = [next(cell for cell in line if ".png" in cell) for line in cells]
    assert set(names[:2]) == {"photos/a.png", "photos/b.png"}
    assert names[2] == "photos/c.png"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("label,count\nred,2\n", "the counts are of 2 images, and there are 3"),
        ("label,count\nrde,3\n", 'did you mean "red"?'),
        ("label\nred\n", "needs the columns label,count"),
        ("", "needs the columns label,count"),
        ("label,count\nred\n", "'None' of 'red' is not a number"),
        ("label,count\nred,1\nred,2\n", "'red' appears twice"),
        ("label,count\nred,many\n", "'many' of 'red' is not a number"),
        ("label,count\nred,1,5\nblack,2\n", "the row of 'red' has more cells than the first line"),
        ("label,count,count\nred,1,3\n", "has the column 'count' twice: remove one"),
        ('label,count,note\nred,1,"the\nblack,2,\n', "cannot be read: unexpected end of data"),
    ],
)
def test_counts_that_cannot_be_used_are_refused_before_the_first_photo(
    bundle: Path, tmp_path: Path, content: str, words: str
) -> None:
    dark_photos(tmp_path / "photos")
    counts = tmp_path / "counts.csv"
    counts.write_text(content)
    found = taillift("classify", bundle, tmp_path / "photos", "--counts", counts)
    assert isinstance(found.exception, UserError)
    assert words in str(found.exception)


def test_classes_are_kept_in_the_rows(bundle: Path, tmp_path: Path) -> None:
    dark_photos(tmp_path / "photos")
    target = tmp_path / "out.csv"
    command = ("classify", bundle, tmp_path / "photos", "--classes", "red,blue", "--out", target)
    assert taillift(*command).exit_code == 0
    for row in read(target):
        assert (row["label"], row["uniform_label"]) == ("red", "black")
        assert row["classes"] == "red,blue"
        assert "label_3" not in row


def test_links_to_folders_are_named_and_not_followed(
    bundle: Path, photos: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = photos[0].parent, tmp_path / "out.csv"
    (folder / "again").symlink_to(folder)
    (folder / "._00000.jpg").write_bytes(b"\0\x05\x16\x07")  # A companion on macOS.
    thumbnail = folder / "@eaDir" / "00000.jpg" / "SYNOPHOTO_THUMB_M.jpg"
    thumbnail.parent.mkdir(parents=True)
    thumbnail.write_bytes(photos[0].read_bytes())
    assert taillift("classify", bundle, folder, "--recursive", "--out", out).exit_code == 0
    assert [row["photo"] for row in read(out)] == [str(path) for path in photos]
    (message,) = caplog.messages
    assert f"1 links to folders are not followed, such as {folder / 'again'}" in message
