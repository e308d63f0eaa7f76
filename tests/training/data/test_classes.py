"""Tests of class lists and of the names of classes in prompts."""

import json
import logging
from pathlib import Path

import open_clip
import pytest

from taillift.models.errors import UserError
from taillift.training.data.classes import Vocabulary, class_name, prompt_names, read_class_list


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
        ("airfield airfield\nbus_stop bus_stop\n", ("airfield", "bus_stop")),
        ("bus_stop bus stop\narena-hockey arena hockey\n", ("bus stop", "arena hockey")),
        ("1 bus_stop Bus stop\n0 bar bar\n", ("bar", "Bus stop")),
        ("bora bora\nbaden baden\nred panda\npolar bear\n", None),
        ("red red\nred blue\n", None),
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
        "Places-LT",
        "Places-LT with spaces",
        "label, folder and name",
        "double names among others",
        "a folder twice",
    ],
)
def test_class_lists_as_they_are_published(
    tmp_path: Path, text: str, classes: tuple[str, ...] | None
) -> None:
    path = tmp_path / "classnames.txt"
    path.write_text(text, "utf-8")
    assert read_class_list(path).classes == (classes or tuple(text.splitlines()))


def test_the_error_for_a_missing_class_list_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classnames\.txt is missing: .* one a line"):
        read_class_list(tmp_path / "classnames.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"crane\nbear\ncrane\n", "has the class 'crane' twice"),
        (b"", "has no class"),
        (b"\xff\n", "is not in UTF-8: save it so; spreadsheets"),
        ("crane\nbear\n".encode("utf-16"), "is not in UTF-8: save it so; it is in UTF-16"),
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


def test_clips_names_of_imagenet_are_read_without_folders_too(tmp_path: Path) -> None:
    path = tmp_path / "classnames.txt"
    path.write_text("\n".join(open_clip.IMAGENET_CLASSNAMES), "utf-8")
    vocabulary = read_class_list(path)
    assert [vocabulary.classes[label] for label in (0, 657, 744, 836, 837)] == [
        "tench",
        "657 missile",
        "744 missile",
        "836 sunglasses",
        "837 sunglasses",
    ]
    assert prompt_names(tmp_path, vocabulary) == tuple(open_clip.IMAGENET_CLASSNAMES)


def test_inaturalists_categories_are_a_class_list(tmp_path: Path) -> None:
    path = tmp_path / "categories.json"
    rows = [
        {"kingdom": "Plantae", "name": "Rosa canina", "id": 1, "genus": "Rosa"},
        {"kingdom": "Animalia", "name": "Hermodice carunculata", "id": 0, "genus": "Hermodice"},
        {"kingdom": "Fungi", "name": "Rosa canina", "id": 2, "genus": "Rosa"},
    ]
    path.write_text(json.dumps(rows))
    vocabulary = read_class_list(path)
    assert vocabulary.classes == ("Hermodice carunculata", "1 Rosa canina", "2 Rosa canina")
    assert prompt_names(tmp_path, vocabulary)[1:] == ("Rosa canina", "Rosa canina")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a list of classes like"),
        ('{"red": "blue"}', "is not a list of classes like"),
        ('[{"id": 0}, {"id": 1}]', "is not a list of classes like"),
        ('[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]', "its 2 classes need the ids from 0"),
        ('[{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]', "its 2 classes need the ids from 0"),
        ('[{"id": 0, "name": "a"}, {"id": 1, "name": " "}]', "its 2 classes need the ids from 0"),
        ("null", "is not a list of classes like"),
        ('[{"id": 1e999, "name": "a"}]', "is not a list of classes like"),
        ("[" * 100_000, "is not a list of classes like"),
    ],
)
def test_categories_of_another_form_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "categories.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_class_list(tmp_path / "categories.json")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Polo_Shirt", "polo_shirt"),
        ("polo__shirt", "polo_shirt"),
        ("polo shirt ", "polo_shirt"),
        ("polo\u00a0shirt", "polo shirt"),
        ("\uff30\uff4f\uff4c\uff4f shirt", "polo shirt"),
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("t - shirt", "t-shirt"),
        ("route 66", "route66"),
        ("\ufb01sh", "fish"),
        ("St. Bernard\u2019s", "st. bernard's"),
        ("tab\there", "tab here"),
        (f"{'very ' * 80}old", f"{'very ' * 80}new"),
    ],
)
def test_classes_whose_prompts_are_equal_to_the_tokenizer_are_refused(
    tmp_path: Path, one: str, other: str
) -> None:
    tokens = open_clip.get_tokenizer("ViT-B-32")(
        [f"a photo of a {class_name(one)}.", f"a photo of a {class_name(other)}."]
    )
    assert bool((tokens[0] == tokens[1]).all())
    with pytest.raises(UserError, match="so their prompts would be the same: give one of them"):
        prompt_names(tmp_path, Vocabulary((one, "tea", other), "the set"))


@pytest.mark.parametrize(
    ("one", "other"),
    [("tshirt", "t-shirt"), ("naive", "na\u00efve"), ("a, b", "a b"), ("x1", "xl")],
)
def test_classes_that_the_tokenizer_tells_apart_are_taken(
    tmp_path: Path, one: str, other: str
) -> None:
    assert prompt_names(tmp_path, Vocabulary((one, other), "the set")) == (one, other)


def test_all_pairs_of_equal_prompts_are_counted(tmp_path: Path) -> None:
    vocabulary = Vocabulary(("Tea", "tea", "TEA", "cup", "Cup"), "the set")
    with pytest.raises(UserError, match=r"'Tea' and 'tea' are called .* \(and 2 more pairs\)"):
        prompt_names(tmp_path, vocabulary)


@pytest.mark.parametrize("name", ["_", "__", " ", "\u00a0", "\u3000_"])
def test_a_class_without_a_name_for_its_prompt_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="has no name for a prompt"):
        prompt_names(tmp_path, Vocabulary((name, "tea"), "the set"))


@pytest.mark.parametrize(("words", "cut"), [(70, False), (71, True), (200, True)])
def test_a_prompt_that_is_longer_than_77_tokens_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, words: int, cut: bool
) -> None:
    name = " ".join(["old"] * words)
    tokens = open_clip.get_tokenizer("ViT-B-32").encode(f"a photo of a {name}.")
    assert (len(tokens) + 2 > 77) is cut
    with caplog.at_level(logging.WARNING):
        prompt_names(tmp_path, Vocabulary((name, "tea"), "the set"))
    assert [
        "prompts of 1 classes are longer than CLIP reads" in one for one in caplog.messages
    ] == ([True] * cut)


def test_a_name_in_classnames_json_is_found_in_both_unicode_forms(tmp_path: Path) -> None:
    vocabulary = Vocabulary(("cafe\u0301", "tea"), "the set")
    given = tmp_path / "classnames.json"
    given.write_text(json.dumps({"caf\u00e9": "coffee house"}))
    assert prompt_names(tmp_path, vocabulary) == ("coffee house", "tea")
    given.write_text(json.dumps({"caf\u00e9": "coffee house", "cafe\u0301": "bar"}))
    with pytest.raises(UserError, match=r"classnames\.json has the name .* in two Unicode forms"):
        prompt_names(tmp_path, vocabulary)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cup": "mug", "tea": "tea", "cup": "bowl"}', r"names the class 'cup' twice: remove one"),
        ('{"a": ' * 100_000, r"classnames\.json cannot be read as JSON"),
        ('{"cup": {"tea": "x"}}', "is not an object of names"),
        ('["cup"]', "is not an object of names"),
    ],
)
def test_names_in_prompts_of_another_form_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "classnames.json").write_text(text)
    with pytest.raises(UserError, match=message):
        prompt_names(tmp_path, Vocabulary(("cup", "tea"), "the set"))
