"""Tests of the reader of CSV files."""

import logging
import os
from pathlib import Path

import pytest

from taillift.models.errors import UserError
from taillift.training.data.dataset import load_dataset
from tests.support.tiny import COLOURS, write_photo

ROWS = "path,label,split\na.png,red,train\nb.png,red,train\nc.png,sky blue,train\nd.png,red,test\n"


def write_table(folder: Path, text: str) -> str:
    for seed, name in enumerate("abcd"):
        write_photo(folder / f"{name}.png", COLOURS["red"], seed)
    path = folder / "colours.csv"
    path.write_text(text, "utf-8")
    return str(path)


def test_rows_go_to_their_splits(tmp_path: Path) -> None:
    dataset = load_dataset(write_table(tmp_path, ROWS))
    assert (dataset.name, dataset.classes) == ("colours", ("red", "sky blue"))
    assert dataset.train.labels == (0, 0, 1)
    assert dataset.val is None
    assert dataset.test is not None
    assert [photo.name for photo in dataset.test.photos] == ["d.png"]


def test_without_a_split_every_row_is_for_training(tmp_path: Path) -> None:
    text = '\ufeffnote,label,path\nx,red,a.png\n"y, z",blue,b.png\n'
    dataset = load_dataset(write_table(tmp_path, text))
    assert dataset.counts == [1, 1]
    assert dataset.held_out is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ROWS.replace("d.png,red", "d.png,rad"),
            r"csv:5: .* no class 'rad' \(did you mean \"red\"\?\)",
        ),
        (ROWS.replace("d.png,red", "d.png,zzz"), r"csv:5: .* no class 'zzz': add it there"),
        (ROWS.replace("red,test", "red,tset"), r"csv:5: the split is 'tset'"),
        (ROWS.replace("b.png,red,train", "b.png"), r"csv:3: the label is empty"),
        (ROWS.replace("b.png,red", "b.png,red,x"), r"csv:3 has more cells than the first line"),
        (ROWS.replace("b.png", "x.png"), r"csv:3 names 'x\.png', which is not a file in"),
        (ROWS.replace("b.png,red", "b.png,sky blue").replace("d.png", "b.png"), "is listed as"),
        (ROWS.replace("path,", "file,"), "has no column path"),
        (ROWS.replace(",train", ",val"), "has no training row"),
        (ROWS.replace("sky blue", "red"), "has one class"),
        ("", "has no column path"),
        ('path,label\n"a', "cannot be read as CSV"),
    ],
)
def test_an_error_names_the_wrong_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_dataset(write_table(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("encoding", "label"),
    [
        ("utf-16", "cup"),
        ("latin-1", "caf\u00e9"),
        ("cp1252", "\u20ac"),
        ("shift-jis", "\u65e5\u672c"),
    ],
)
def test_a_table_in_another_encoding_is_refused_with_what_to_do(
    tmp_path: Path, encoding: str, label: str
) -> None:
    path = tmp_path / "photos.csv"
    path.write_text(f"path,label\na.png,{label}\n", encoding)
    with pytest.raises(UserError, match=r"photos\.csv is not in UTF-8: save it so"):
        load_dataset(str(path))


def test_the_error_for_a_folder_names_the_table_in_it(tmp_path: Path) -> None:
    path = write_table(tmp_path, ROWS)
    with pytest.raises(UserError, match=f"is a folder: name the CSV file itself, like {path}"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("separator", "word"), [(",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "bars")]
)
def test_a_line_says_which_columns_and_separator_were_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, separator: str, word: str
) -> None:
    rows = ["Path, Label ,who,SPLIT", "a.png,red,me,Train", "b.png,blue,me,training"]
    rows += ["c.png,blue,me,valid", '"d.png",red,me,testing']
    table = write_table(tmp_path, "\n".join(rows).replace(",", separator))
    with caplog.at_level(logging.INFO, logger="taillift.training.data"):
        dataset = load_dataset(table)
    assert caplog.messages == [
        f"{table}: a table with the columns path, label, split, separated by {word}; not used: "
        "'who'"
    ]
    assert dataset.counts == [1, 1]
    assert dataset.val is not None
    assert dataset.test is not None
    assert [dataset.classes[one.labels[0]] for one in (dataset.val, dataset.test)] == [
        "blue",
        "red",
    ]


def test_a_tsv_file_is_a_table_and_another_table_next_to_it_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_table(tmp_path, ROWS)
    (tmp_path / "train.tsv").write_text("path\tlabel\na.png\tred, dark\nb.png\tblue\n")
    with caplog.at_level(logging.WARNING):
        assert load_dataset(str(tmp_path / "train.tsv")).classes == ("blue", "red, dark")
    (message,) = caplog.messages
    assert "1 other tables are not used, such as colours.csv" in message


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("path,label,label", r"has a column twice \(path, label, label\)"),
        ("path;label;Path", r"has a column twice \(path, label, path\)"),
        ("path label", "has no column path"),
        ("path;class", "has no column label"),
    ],
)
def test_a_first_line_that_is_not_clear_is_refused(tmp_path: Path, head: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_dataset(write_table(tmp_path, f"{head}\na.png,red,x\n"))


def test_labels_and_paths_are_found_in_both_unicode_forms(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    write_photo(tmp_path / f"{decomposed}.png", COLOURS["blue"])
    text = f"path,label,split\n{composed}.png,{composed},train\na.png,tea,train\n"
    dataset = load_dataset(write_table(tmp_path, f"{text}b.png,{decomposed},test\n"))
    assert dataset.classes == (composed, "tea")
    assert dataset.train.photos[0].name == f"{decomposed}.png"
    assert dataset.test is not None
    assert dataset.test.labels == (0,)
    with pytest.raises(UserError, match=r"in two Unicode forms, .*U\+00E9 and .*U\+0065 U\+0301"):
        load_dataset(write_table(tmp_path, f"{text}b.png,{decomposed},train\n"))


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_not_a_plain_file_is_not_a_photo(tmp_path: Path, kind: str) -> None:
    table = write_table(tmp_path, ROWS + "odd.png,red,train\n")
    if kind == "folder":
        (tmp_path / "odd.png").mkdir()
    else:
        os.mkfifo(tmp_path / "odd.png")
    with pytest.raises(UserError, match=r"names 'odd\.png', which is not a file in"):
        load_dataset(table)


def test_a_path_of_windows_is_refused_with_what_to_write(tmp_path: Path) -> None:
    table = write_table(tmp_path, ROWS + "train\\red\\1.png,red,train\n")
    with pytest.raises(UserError, match=r"check where the photos are, and write / for \\$"):
        load_dataset(table)
