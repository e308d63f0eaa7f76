"""Tests of class lists and of the names of classes in prompts."""

import json
from pathlib import Path

import open_clip
import pytest

from taillift.models.errors import UserError
from taillift.training.data.classes import class_name, prompt_names, read_class_list


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("airfield\npolar bear\n\n", ("airfield", "polar bear")),
        ("1 polar bear\n0 airfield\n", ("airfield", "polar bear")),
        ("/p/polar_bear 1\n/a/airfield 0\n", ("airfield", "polar_bear")),
        ("n01440764 tench\nn01443537 goldfish\n", ("tench", "goldfish")),
        ("class 0\nclass 1\n", ("class 0", "class 1")),
        ("3 wheeler\n4 wheeler\n", ("3 wheeler", "4 wheeler")),
        ("S4 2007\nS4 2012\nTT 2012\n", ("S4 2007", "S4 2012", "TT 2012")),
        ("1 n01443537 goldfish\n0 n01440764 tench\n", ("tench", "goldfish")),
        ("\ufeffairfield\r\nbar\r\n", ("airfield", "bar")),
    ],
    ids=[
        "order",
        "label first",
        "Places365",
        "ImageNet",
        "name and number",
        "number first",
        "year",
        "label and ImageNet",
        "BOM",
    ],
)
def test_class_lists_as_they_are_published(
    tmp_path: Path, text: str, classes: tuple[str, ...]
) -> None:
    path = tmp_path / "classnames.txt"
    path.write_text(text, "utf-8")
    assert read_class_list(path).classes == classes


def test_the_error_for_a_missing_class_list_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classnames\.txt is missing: .* one a line"):
        read_class_list(tmp_path / "classnames.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"crane\nbear\ncrane\n", "has the class 'crane' twice"),
        (b"", "has no class"),
        (b"\xff\xfe\n", "cannot be read as UTF-8"),
        (b"n03773504 missile\nn03773504 missile\n", "has the class 'n03773504 missile' twice"),
        (b"1 polar bear\n2 cat\n", "numbers of its 2 lines are not those from 0 to 1: correct"),
        (b"/c/cat 0\n/b/bear 2\n", "numbers of its 2 lines are not those from 0 to 1"),
        (b"1 cat\n2 crane\n3 crane\n", "numbers of its 3 lines are not those from 0 to 2"),
        (b"0 cat\n1 crane\n2 crane\n", "has the class 'crane' twice"),
        (b"0 cat\n1 bear\n1 crane\n", "numbers of its 3 lines are not those from 0 to 2"),
    ],
)
def test_a_class_list_that_does_not_give_every_class_once_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "classnames.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_class_list(tmp_path / "classnames.txt")


def test_imagenets_list_is_read_although_two_classes_have_the_same_name(tmp_path: Path) -> None:
    path = tmp_path / "classnames.txt"
    published = open_clip.IMAGENET_CLASSNAMES
    lines = [f"n{number:08} {name}" for number, name in enumerate(published)]
    path.write_text("\n".join(lines), "utf-8")
    vocabulary = read_class_list(path)
    assert len(set(vocabulary.classes)) == 1000
    kept = [label for label in vocabulary.classes if label in lines]
    assert kept == [lines[number] for number in (657, 744, 836, 837)]
    assert vocabulary.classes[0] == "tench"
    assert prompt_names(tmp_path, vocabulary) == tuple(published)


def test_one_of_two_classes_with_the_same_name_can_be_renamed(tmp_path: Path) -> None:
    path = tmp_path / "classnames.txt"
    path.write_text("n03773504 missile\nn04008634 missile\nn01440764 tench\n")
    given = tmp_path / "classnames.json"
    given.write_text(json.dumps({"n04008634 missile": "projectile"}))
    assert prompt_names(tmp_path, read_class_list(path)) == ("missile", "projectile", "tench")
    given.write_text(json.dumps({"tench": "missile"}))
    with pytest.raises(UserError, match=r"'n03773504 missile' and 'tench' are both called"):
        prompt_names(tmp_path, read_class_list(path))


def test_underscores_in_folder_names_become_spaces() -> None:
    assert class_name("polo_shirt") == "polo shirt"
