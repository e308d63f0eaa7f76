from pathlib import Path

import pytest

from models import UserError
from training.data.names import class_name, read_class_list


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("airfield\npolar bear\n\n", ("airfield", "polar bear")),
        ("1 polar bear\n0 airfield\n", ("airfield", "polar bear")),
        ("/p/polar_bear 1\n/a/airfield 0\n", ("airfield", "polar_bear")),
        ("n01440764 tench\nn01443537 goldfish\n", ("tench", "goldfish")),
        ("class 0\nclass 1\n", ("class 0", "class 1")),
        ("3 wheeler\n4 wheeler\n", ("3 wheeler", "4 wheeler")),
        ("\ufeffairfield\r\nbar\r\n", ("airfield", "bar")),
    ],
    ids=["order", "label first", "Places365", "ImageNet", "name and number", "number first", "BOM"],
)
def test_class_lists_as_they_are_published(
    tmp_path: Path, text: str, classes: tuple[str, ...]
) -> None:
    path = tmp_path / "classnames.txt"
    path.write_text(text, "utf-8")
    assert read_class_list(path).classes == classes


def test_a_class_list_that_is_not_there_says_what_it_would_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classnames\.txt is missing: .* one a line"):
        read_class_list(tmp_path / "classnames.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"crane\nbear\ncrane\n", "has the class 'crane' twice"),
        (b"", "has no class"),
        (b"\xff\xfe\n", "cannot be read as UTF-8"),
    ],
)
def test_a_class_list_that_numbers_no_classes_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "classnames.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_class_list(tmp_path / "classnames.txt")


def test_underscores_in_folder_names_are_spaces_to_a_reader() -> None:
    assert class_name("polo_shirt") == "polo shirt"
