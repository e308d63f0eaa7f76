"""`taillift feedback`: labels from a file, to a file, and from several files into one."""

import csv
from pathlib import Path

import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from taillift.models.errors import UserError
from taillift.models.names import NONE_OF_THE_CLASSES
from taillift.service.feedback.label_store import ClassList, GivenLabel, LabelStore
from taillift.service.feedback.prediction_id import PredictionId, Signer, id_bytes
from taillift.service.feedback_cli import app

KEY = "the key that signs the ids"
SIGNER = Signer([KEY.encode()])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of labels of one version, without a label."""
    path = tmp_path / "labels.sqlite"
    with LabelStore(path) as store:
        store.know(3, ClassList("2e5e00", ("red", 'a, "b"\n'), ("many", "few")))
    return path


def feedback(*arguments: object) -> Result:
    environment = {"TAILLIFT_FEEDBACK_KEY": KEY}
    return CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments])


def new_id(answer: int = 0, probability: float = 0.0) -> str:
    prediction = PredictionId(3, answer, 0.75, "few", "review", probability)
    return SIGNER.sign(prediction)


def write_csv(path: Path, *rows: tuple[str, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "label", "note"), *rows])
    return path


def labels_in(path: Path) -> list[tuple[str, str]]:
    with LabelStore(path) as store:
        return sorted((str(label.label), label.note) for label in store)


def test_a_file_of_labels_is_imported_and_again_without_effect(file: Path, tmp_path: Path) -> None:
    rows = [(new_id(), "red", "sure"), (new_id(), 'a, "b"\n', ""), (new_id(), "", "not yet")]
    table = write_csv(tmp_path / "t.csv", *rows)
    result = feedback("import", table, "--feedback-file", file)
    assert (result.exit_code, result.stdout) == (0, "2 accepted\n")
    assert labels_in(file) == [('a, "b"\n', ""), ("red", "sure")]
    assert feedback("import", table, "--feedback-file", file).stdout == "2 same\n"


def test_labels_that_are_not_kept_are_named_by_their_lines(file: Path, tmp_path: Path) -> None:
    table = write_csv(
        tmp_path / "t.csv", (new_id(), "red"), ("A" * 35, "red"), (new_id(), "pink\x1b[31m")
    )
    result = feedback("import", table, "--feedback-file", file)
    assert result.exit_code == 1
    assert "line 3: forged" in result.stderr
    assert "line 4: unknown_label (pink\\x1b[31m)" in result.stderr
    assert result.stdout == "1 accepted, 1 forged, 1 unknown_label\n"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_is_exported_can_be_imported(file: Path, tmp_path: Path, suffix: str) -> None:
    sampled, other = new_id(1, 0.25), new_id()
    with LabelStore(file) as store:
        store.put(
            [
                GivenLabel(id_bytes(sampled), None, "a scarf"),
                GivenLabel(id_bytes(other), 'a, "b"\n'),
            ],
            1_800_000_000_000,
        )
    to = tmp_path / f"out.{suffix}"
    assert feedback("export", "--to", to, "--feedback-file", file).exit_code == 0
    if suffix == "csv":
        with to.open(newline="", encoding="utf-8") as opened:
            rows = {row["id"]: row for row in csv.DictReader(opened)}
        again = tmp_path / "again.sqlite"
        with LabelStore(file) as store, LabelStore(again) as empty:
            for code, classes in store.versions().items():
                empty.know(code, classes)
        assert feedback("import", to, "--feedback-file", again).stdout == "2 accepted\n"
        with LabelStore(again) as imported:
            assert {one.label for one in imported} == {None, 'a, "b"\n'}
    else:
        rows = {row["id"]: row for row in parquet.read_table(to).to_pylist()}
    row = rows[sampled]
    assert (row["label"], row["predicted"], row["note"]) == (
        NONE_OF_THE_CLASSES,
        'a, "b"\n',
        "a scarf",
    )
    assert row["kind"] == "sampled"
    assert float(row["weight"]) == pytest.approx(4, rel=1e-3)
    assert (int(row["version"]), row["bundle"], row["decision"]) == (3, "2e5e00", "review")
    assert row["labelled"].startswith("2027-01-15T08:00:00")
    assert (rows[other]["kind"], float(rows[other]["weight"])) == ("volunteered", 0)


def test_files_are_merged(tmp_path: Path) -> None:
    ids = [id_bytes(new_id()) for _ in range(3)]
    for name, part in (("a", ids[:2]), ("b", ids[1:])):
        with LabelStore(tmp_path / name) as store:
            store.put([GivenLabel(one, name) for one in part], ord(name))
    result = feedback("merge", tmp_path / "all", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 0
    assert f"{tmp_path / 'b'}: 1 new, 1 replace an earlier label" in result.stdout
    assert [label for label, _ in labels_in(tmp_path / "all")] == ["a", "b", "b"]


def test_what_is_missing_is_one_line(file: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.sqlite"
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("photo,label\n")
    half = tmp_path / "half.csv"
    half.write_text('id,label,note\nx,red,"a\ny,red,b\n')
    for arguments, says in (
        (("import", half, "--feedback-file", file), "it is not a CSV file in UTF-8"),
        (("import", tmp_path / "no.csv", "--feedback-file", file), "no.csv cannot be read"),
        (("import", wrong, "--feedback-file", file), "no column id"),
        (("import", wrong, "--feedback-file", missing), "no file of labels"),
        (("import", wrong), "--feedback-file"),
        (("export", "--to", tmp_path / "out.csv"), "--feedback-file"),
        (("export", "--to", tmp_path / "out.txt", "--feedback-file", file), ".csv, .parquet"),
        (("merge", tmp_path / "all", missing), "no file of labels"),
    ):
        error = feedback(*arguments).exception
        assert isinstance(error, UserError), arguments
        assert says in str(error)
    keyless = CliRunner().invoke(app, ["import", str(wrong), "--feedback-file", str(file)])
    assert "forged" in str(keyless.exception)
    assert not missing.exists()
