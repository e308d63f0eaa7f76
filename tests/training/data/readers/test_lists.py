"""Tests of the reader of list files."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from taillift.models.bundle.manifest import Thresholds
from taillift.models.errors import UserError
from taillift.training.data.classes import Vocabulary
from taillift.training.data.dataset import load_dataset
from taillift.training.data.readers.lists import read_list
from tests.support.tiny import COLOURS, write_photo


def write_lists(folder: Path, prefix: str = "") -> Path:
    """Write lists of three classes; green, label 1, has most photos but none in the test list."""
    for seed, name in enumerate(("a", "b", "c", "d", "e f")):
        write_photo(folder / f"images/{name}.png", COLOURS["red"], seed)
    (folder / "classnames.txt").write_text("red\ndark_green\nblue\n")
    train = "images/a.png 1\nimages/b.png\t1\nimages/c.png 0\nimages/e f.png 2\n"
    (folder / f"{prefix}train.txt").write_text(train)
    (folder / f"{prefix}test.txt").write_text("images/d.png 2\n")
    return folder


@pytest.mark.parametrize("prefix", ["", "Places_LT_", "iNaturalist18_"])
def test_lists_are_found_by_plain_and_by_published_names(tmp_path: Path, prefix: str) -> None:
    dataset = load_dataset(str(write_lists(tmp_path / "places", prefix)))
    assert dataset.name == "places"
    assert dataset.classes == ("dark_green", "blue", "red")
    assert dataset.names == ("dark green", "blue", "red")
    assert [photo.name for photo in dataset.train.photos][-1] == "images/e f.png"
    assert dataset.train.labels == (0, 0, 2, 1)
    assert dataset.val is None
    assert dataset.test is not None
    assert dataset.test.labels == (1,)


def test_a_description_says_where_lists_and_photos_are(tmp_path: Path) -> None:
    folder = write_lists(tmp_path / "photos", "my_")
    set_folder = tmp_path / "set"
    set_folder.mkdir()
    (folder / "images").rename(tmp_path / "images")
    (set_folder / "dataset.yaml").write_text(
        "train: ../photos/my_train.txt\nval: ../photos/my_test.txt\nroot: ..\n"
        "classes: ../photos/classnames.txt\n"
    )
    dataset = load_dataset(str(set_folder))
    assert (dataset.name, dataset.counts) == ("set", [2, 1, 1])
    assert dataset.val is not None
    assert dataset.test is None
    named = (set_folder / "dataset.yaml").rename(set_folder / "colours.yaml")
    assert load_dataset(str(named)).name == "colours"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val: val.txt", r"not valid at train \(Field required\)"),
        ("train: train.txt\nvall: val.txt", "not valid at vall"),
        ("- train.txt", "not valid at the file"),
        ("train: [", "cannot be read as YAML"),
        ("train: 2024-13-45", "cannot be read as YAML: month must be in"),
        ('train: x\nclasses: "a\\0b"', "cannot be read as text: embedded null byte"),
    ],
)
def test_the_error_for_an_invalid_description_is_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_dataset(str(tmp_path))
    assert "\n" not in str(error.value)


def test_the_error_for_a_path_that_cannot_exist_is_one_line(tmp_path: Path) -> None:
    (write_lists(tmp_path) / "dataset.yaml").write_text('train: "a\\0b"')
    with pytest.raises(UserError, match="cannot be read as text: embedded null byte"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/a.png", r"train\.txt:5: 'images/a\.png' is not a path, a space and a label"),
        ("images/a.png one", r"train\.txt:5: the label 'one' is not a number: .* 0 to 2"),
        ("images/d.png 3", r"train\.txt:5: there is no class 3: .* has classes 0 to 2"),
        ("images/d.png -1", r"train\.txt:5: there is no class -1"),
        ("images/\0.png 0", r"train\.txt:5 names 'images/\\x00\.png', which is not a file in"),
        ("images/./a.png 2", r"images/a\.png is listed as 'dark_green' and as 'blue'"),
        (
            "images/x.png 0\nimages/y.png 1\nimages/z.png 0",
            r"train\.txt:5 names 'images/x\.png', which is not a file in .* \(2 more are missing",
        ),
    ],
)
def test_an_error_names_the_wrong_line(tmp_path: Path, line: str, message: str) -> None:
    folder = write_lists(tmp_path)
    with (folder / "train.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=message) as error:
        load_dataset(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", r"train\.txt is not in UTF-8: save it so; it is in UTF-16"),
        ("utf-16-le", r"train\.txt is not text in UTF-8 but binary, or in UTF-16"),
        ("utf-16-be", r"train\.txt is not text in UTF-8 but binary, or in UTF-16"),
    ],
)
def test_a_list_in_utf_16_is_refused_in_one_line(
    tmp_path: Path, encoding: str, message: str
) -> None:
    path = write_lists(tmp_path) / "train.txt"
    path.write_text(path.read_text(), encoding)
    with pytest.raises(UserError, match=message) as error:
        load_dataset(str(path.parent))
    assert "\n" not in str(error.value)


def test_labels_without_class_names_are_refused(tmp_path: Path) -> None:
    folder = write_lists(tmp_path)
    (folder / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"classnames\.txt is missing"):
        load_dataset(str(folder))


def test_a_class_without_a_training_photo_is_named(tmp_path: Path) -> None:
    folder = write_lists(tmp_path)
    (folder / "classnames.txt").write_text("red\ngreen\nblue\nyellow\npink\n")
    with pytest.raises(
        UserError,
        match=r"class 'yellow' has no readable training photo \(nor have 1 others\)",
    ):
        load_dataset(str(folder))


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    folder = write_lists(tmp_path)
    (folder / "val.txt").write_text("\n")
    with pytest.raises(UserError, match=r"val\.txt has no photo"):
        load_dataset(str(folder))


def test_two_lists_for_one_split_are_refused(tmp_path: Path) -> None:
    folder = write_lists(tmp_path)
    (folder / "more_train.txt").write_text("images/d.png 1\n")
    with pytest.raises(
        UserError, match=r"has more_train\.txt and train\.txt: say in .*dataset\.yaml"
    ):
        load_dataset(str(folder))


def test_two_imagenet_classes_of_one_name_have_the_same_prompt(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, "ImageNet_LT_")
    names = ["n03773504 missile", "n04008634 missile", "n01440764 tench"]
    (folder / "classnames.txt").write_text("\n".join(names))
    dataset = load_dataset(str(folder))
    assert dataset.classes == ("n04008634 missile", "n03773504 missile", "tench")
    assert dataset.names == ("missile", "missile", "tench")


def write_stand_ins(root: Path, splits: dict[str, list[str]]) -> None:
    """Write each list of lines `PATH LABEL`, and a photo for each path."""
    for seed, (name, lines) in enumerate(splits.items()):
        (root / name).write_text("".join(f"{line}\n" for line in lines))
        for index, line in enumerate(lines):
            write_photo(root / line.split()[0], COLOURS["red"], 100 * seed + index)


def test_places_lt_is_read_as_it_is_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = ("airfield", "apartment_building-outdoor", "zen_garden")
    (tmp_path / "classnames.txt").write_text("".join(f"{name} {name}\n" for name in folders))
    lines = [f"data_256/a/airfield/{index:08}.jpg 0" for index in range(3)]
    lines += ["data_256/a/apartment_building/outdoor/00000001.jpg 1"]
    lines += ["data_256/z/zen_garden/00000002.jpg 2", "data_256/z/zen_garden/00000009.jpg 2"]
    val = ["val_256/Places365_val_00000001.jpg 2"]
    write_stand_ins(tmp_path, {"Places_LT_train.txt": lines, "Places_LT_val.txt": val})
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(str(tmp_path))
    assert caplog.messages == []
    assert dataset.classes == ("airfield", "zen_garden", "apartment_building-outdoor")
    assert dataset.names == ("airfield", "zen garden", "apartment building-outdoor")
    assert dataset.counts == [3, 2, 1]
    assert dataset.val is not None
    assert dataset.val.labels == (1,)


def test_imagenet_lt_is_read_as_it_is_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its lists are next to the class folders of ImageNet, and name a part of their photos."""
    names = ["n01440764 tench", "n03773504 missile", "n04008634 missile"]
    (tmp_path / "classnames.txt").write_text("\n".join(names))
    lines = [f"train/n01440764/n01440764_{index}.jpg 0" for index in range(3)]
    lines += [f"train/n03773504/n03773504_{index}.jpg 1" for index in range(2)]
    lines += ["train/n04008634/n04008634_7.jpg 2"]
    test = ["val/ILSVRC2012_val_00000293.jpg 0", "val/ILSVRC2012_val_00000017.jpg 2"]
    lists = {"ImageNet_LT_train.txt": lines, "ImageNet_LT_test.txt": test}
    write_stand_ins(tmp_path, {**lists, "ImageNet_LT_val.txt": ["train/n01440764/x.jpg 0"]})
    write_photo(tmp_path / "train/n01440764/not_listed.jpg", COLOURS["red"], 999)
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(str(tmp_path))
    (message,) = caplog.messages
    assert "1 photos are in no list and are left out" in message
    assert "not_listed.jpg" in message
    assert dataset.classes == ("tench", "n03773504 missile", "n04008634 missile")
    assert dataset.names == ("tench", "missile", "missile")
    assert dataset.counts == [3, 2, 1]
    assert dataset.val is not None
    assert dataset.test is not None
    assert (dataset.val.labels, dataset.test.labels) == ((0,), (0, 2))


def test_inaturalist_is_read_as_it_is_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"kingdom": "Animalia", "name": name, "supercategory": "Aves", "id": label}
        for label, name in enumerate(("Hermodice carunculata", "Argiope aurantia", "Rosa canina"))
    ]
    (tmp_path / "categories.json").write_text(json.dumps(rows))
    lines = [f"train_val2018/Plantae/7477/{index}.jpg 2" for index in range(3)]
    lines += ["train_val2018/Arachnida/15/a.jpg 1", "train_val2018/Animalia/0/b.jpg 0"]
    val = ["train_val2018/Arachnida/15/c.jpg 1"]
    lists = {"iNaturalist18_train.txt": lines, "iNaturalist18_val.txt": val}
    write_stand_ins(tmp_path, lists)
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(str(tmp_path))
    assert caplog.messages == []
    assert dataset.classes == ("Rosa canina", "Argiope aurantia", "Hermodice carunculata")
    assert dataset.names == dataset.classes
    assert dataset.counts == [3, 1, 1]
    assert dataset.val is not None
    assert dataset.val.labels == (1,)


@pytest.mark.parametrize(
    "name", ["ImageNet_LT_open.txt", "extra/x.jpg", "more.csv", "train2018.txt"]
)
def test_a_list_or_folder_next_to_the_lists_that_is_not_used_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = write_lists(tmp_path)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with caplog.at_level(logging.WARNING):
        load_dataset(str(folder))
    expected = f"{folder}: 1 entries are not used, such as {name.partition('/')[0]}"
    assert expected in caplog.messages


@pytest.mark.parametrize("name", ["valid.txt", "Places_LT_validation.txt", "x-val.txt", "VAL.txt"])
def test_the_list_of_val_has_several_names(tmp_path: Path, name: str) -> None:
    folder = write_lists(tmp_path)
    (folder / "test.txt").rename(folder / name)
    dataset = load_dataset(str(folder))
    assert dataset.test is None
    assert dataset.val is not None
    assert dataset.val.labels == (1,)


def write_published(path: Path, counts: list[int]) -> Vocabulary:
    """Write a list with `counts` lines of each class; its photos need not exist."""
    with path.open("w") as file:
        for label, count in enumerate(counts):
            file.writelines(f"{label}/{index:08}.jpg {label}\n" for index in range(count))
    return Vocabulary(tuple(f"class {label}" for label in range(len(counts))), "classnames.txt")


def counted(path: Path, vocabulary: Vocabulary) -> tuple[list[int], dict[str, int]]:
    """Return the number of photos of each class, and of classes of each group."""
    labels = Counter(row.label for row in read_list(path, vocabulary))
    counts = [labels[label] for label in range(len(vocabulary.classes))]
    return counts, Counter(Thresholds().group(count) for count in counts)


def test_a_list_of_the_size_of_places_lt_has_its_counts_and_groups(tmp_path: Path) -> None:
    """Places-LT has 62,500 photos, from 4,980 to 5 a class; 131 many, 163 medium, 71 few."""
    many = [4980] + [450] * 114 + [101] * 16
    medium, few = [20] * 162, [19] * 2 + [5] * 69
    medium.append(0)
    counts = many + medium + few
    rest = 62_500 - sum(counts)
    counts[1] += rest - 100
    counts[131 + 162] = 100
    assert 100 < counts[1] <= 4980
    path = tmp_path / "Places_LT_train.txt"
    actual, groups = counted(path, write_published(path, counts))
    assert actual == counts
    assert (sum(actual), max(actual), min(actual)) == (62_500, 4_980, 5)
    assert (groups["many"], groups["medium"], groups["few"]) == (131, 163, 71)


def test_a_list_of_the_size_of_inaturalist_has_every_class(tmp_path: Path) -> None:
    """iNaturalist 2018 has 8,142 classes; here each has three photos."""
    path = tmp_path / "iNaturalist18_train.txt"
    actual, groups = counted(path, write_published(path, [3] * 8142))
    assert actual == [3] * 8142
    assert groups == {"few": 8142}


def test_companions_of_files_on_macos_are_no_lists(tmp_path: Path) -> None:
    folder = write_lists(tmp_path)
    (folder / "._train.txt").write_bytes(b"\0\x05\x16\x07")
    assert load_dataset(str(folder)).counts == [2, 1, 1]
