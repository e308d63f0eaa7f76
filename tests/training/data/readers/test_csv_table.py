"""Tests of the reader of CSV files."""

from pathlib import Path

import pytest

from taillift.models.errors import UserError
from taillift.training.data.dataset import load_dataset
from tests.support.tiny import COLOURS, write_photo

ROWS = "path,label,split\na.png,red,train\nb.png,red,train\nc.png,sky blue,train\nd.png,red,test\n"


def write_table(folder: Path, text: str) -> str:
    for name in "abcd":
        write_photo(folder / f"{name}.png", COLOURS["red"])
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
        (ROWS.replace("b.png", "x.png"), r"csv:3 names 'x\.png', which is not in"),
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


def test_the_error_for_a_folder_names_the_table_in_it(tmp_path: Path) -> None:
    path = write_table(tmp_path, ROWS)
    with pytest.raises(UserError, match=f"is a folder: name the CSV file itself, like {path}"):
        load_dataset(str(tmp_path))
