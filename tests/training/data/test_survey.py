"""Tests of `taillift check`: the survey of a set of photos, as data and as text."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from rich.cells import cell_len

from taillift.models.errors import UserError
from taillift.training.data.dataset import load_dataset
from taillift.training.data.survey import Survey, survey
from taillift.training.data.survey_text import survey_text
from tests.support.cifar_files import write_python
from tests.support.tiny import COLOURS, write_photo, write_photos


def checked(source: Path) -> tuple[int, str]:
    """Run `taillift check`, and return its exit status and output."""
    command = [sys.executable, "-m", "taillift", "check", str(source)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    return ran.returncode, ran.stdout


def is_refused(source: Path) -> bool:
    """Return whether training refuses a set."""
    try:
        load_dataset(str(source))
    except UserError:
        return True
    return False


def found(source: Path) -> Survey:
    """Return a survey that came through JSON, and whose text fits a terminal."""
    made = survey(str(source))
    assert max(cell_len(line) for line in survey_text(made).splitlines()) <= 80
    assert bool(made.refusals) is is_refused(source)
    return Survey.model_validate_json(made.model_dump_json())


def test_the_command_tells_all_of_a_set_and_imports_no_torch(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", {"red": 25, "blue": 3}, ("train", "test"))
    shutil.copy(root / "train/red/001.png", root / "train/red/copy.png")
    shutil.copy(root / "train/red/001.png", root / "test/red/leak.png")
    (root / "train/blue/empty.jpg").touch()
    (root / "extra").mkdir()
    status, text = checked(root)
    assert status == 0
    for part in (
        f"{root}: class folders in train/, test/",
        "1 entries are not used, such as",
        "train              30        29",
        "red                            medium      26",
        "blue                           few          3",
        "1 photos are there again in their class and split",
        "1 photos are in two splits",
        "1 not a JPEG, PNG or WebP image, such as",
        "Training would take this set.",
    ):
        assert "".join(part.split()) in "".join(text.split()), part
    code = (
        "import sys; from taillift.training.data.survey import survey; "
        f"survey({str(root)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("option", ["", "--json"])
def test_the_exit_status_is_1_if_training_would_refuse(tmp_path: Path, option: str) -> None:
    root = write_photos(tmp_path, {"red": 2, "blue": 3})
    (root / "train/blue").rename(root / "train/RED")
    command = [sys.executable, "-m", "taillift", "check", str(root), *([option] if option else [])]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, "")
    if option:
        made = Survey.model_validate_json(ran.stdout)
        assert [pair.classes for pair in made.same_prompts] == [("RED", "red")]
        assert [one.train for one in made.classes] == [3, 2]
    else:
        assert "Training would refuse this set:" in ran.stdout
        assert "'RED' and 'red'" in ran.stdout


def test_groups_count_a_photo_of_a_class_once(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 19, "blue": 20})
    for name in "abc":
        shutil.copy(root / "train/red/001.png", root / f"train/red/{name}.png")
    made = found(root)
    assert [(one.label, one.group, one.train, one.distinct) for one in made.classes] == [
        ("red", "few", 22, 19),
        ("blue", "medium", 20, 20),
    ]
    assert (made.groups["few"].classes, made.groups["few"].photos) == (1, 22)
    assert [(one.words, one.count) for one in made.duplicates] == [
        ("photos are there again in their class and split", 3)
    ]


def test_photos_that_cannot_be_used_are_counted_by_kind(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    good = (root / "train/red/000.png").read_bytes()
    (root / "train/red/cut.png").write_bytes(good[:200])
    (root / "train/red/cut2.png").write_bytes(good[:300])
    (root / "train/red/page.jpg").write_text("<html>")
    Image.new("L", (8000, 10)).save(root / "train/red/long.png")
    Image.new("1", (9000, 9000)).save(root / "train/red/large.png")
    made = found(root)
    assert [(one.words, one.count) for one in made.unreadable] == [
        ("not a JPEG, PNG or WebP image", 1),
        ("damaged", 2),
        ("too many pixels", 1),
        ("one side is too long", 1),
    ]
    assert "page.jpg" in made.unreadable[0].example
    assert "9000 x 9000" in made.unreadable[2].example
    assert (made.splits["train"].photos, made.splits["train"].readable) == (10, 5)


def test_profiles_formats_and_sizes_are_those_of_the_photos(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 3, "blue": 2})
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    sizes = ((100, 50), (400, 300), (40, 1000), (300, 300))
    for (width, height), profile in zip(sizes, (srgb, srgb, lab, b"nonsense" * 40), strict=True):
        pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"train/red/{width}-{height}.jpg", icc_profile=profile)
    made = found(root)
    assert made.formats == {"PNG": 5, "JPEG": 4}
    assert made.profiles == {
        "none": 5,
        "sRGB built-in": 2,
        "Lab identity built-in": 1,
        "broken": 1,
    }
    assert made.short_sides == [40, 48, 48, 300, 300]
    assert made.long_sides == [64, 64, 64, 400, 1000]


def test_a_table_tells_its_separator_and_columns(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        write_photo(tmp_path / f"{name}.png", COLOURS["red"], seed)
    table = tmp_path / "x.csv"
    table.write_text("path;label;who\na.png;red;me\nb.png;blue;me\nc.png;red;me\n")
    made = found(table)
    assert made.table is not None
    assert made.table.separator == ";"
    assert made.table.columns == ["path", "label", "who"]
    assert made.table.unused_columns == ["who"]
    assert "separated by semicolons; not used: 'who'" in " ".join(survey_text(made).split())


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 2, "blue": 3, "green": 2})
    (root / "train/red").rename(root / "train/t-shirt")
    (root / "train/blue").rename(root / "train/T_-_Shirt")
    (root / "train/empty").mkdir()
    (root / "val").mkdir()
    (root / "classnames.json").write_text(
        json.dumps({"green": " ".join(["old"] * 90), "pink": "rose"})
    )
    made = found(root)
    prompts, empty_split, empty_class = made.refusals
    assert "'T_-_Shirt' and 't-shirt' are called" in prompts
    assert "the split val has no readable photo" in empty_split
    assert "the class 'empty' has no readable training photo" in empty_class
    assert len(made.cut_prompts) == 1
    assert len(made.warnings) == 2
    assert "names 1 classes that are not in the set, such as pink" in made.warnings[0]
    assert {one.label: one.group for one in made.classes}["empty"] is None


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_set_of_photos_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    made = found(tmp_path / name)
    assert (made.layout, made.classes, len(made.refusals)) == (None, [], 1)
    assert checked(tmp_path / name)[0] == 1


def test_text_shows_wide_and_unprintable_names_in_80_columns(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"red": 2, "blue": 3, "green": 2})
    (root / "train/red").rename(root / "train" / ("\u4e2d\u6587" * 30))
    (root / "train/blue").rename(root / "train/\x1b[31mred")
    (root / "\x1b]0;title\x07").touch()
    made = found(root)
    text = survey_text(made)
    assert "\x1b" not in text
    assert "\\x1b[31mred" in text
    assert "\u4e2d..." in text


def test_of_many_classes_the_most_and_the_least_frequent_are_shown(tmp_path: Path) -> None:
    for index in range(60):
        write_photo(tmp_path / f"train/class_{index:02}/a.png", COLOURS["red"], index)
    made = found(tmp_path)
    text = survey_text(made)
    assert len(made.classes) == 60
    assert "... 20 more classes (all with --json) ..." in text
    assert "class_19" in text
    assert "class_20" not in text
    assert "class_40" in text


def test_cifar_100_is_surveyed_without_files(tmp_path: Path) -> None:
    labels = list(range(100)) * 2
    rows = np.random.default_rng(0).integers(0, 256, (200, 3072), np.uint8)
    made = found(write_python(tmp_path / "cifar-100-python", labels, labels[:100], rows))
    assert made.formats == {"pixels": 300}
    assert made.short_sides == [32] * 5
    assert made.splits["train"].photos == 200


@pytest.mark.parametrize("option", ["", "--json"])
def test_names_of_files_may_have_any_bytes(tmp_path: Path, option: str) -> None:
    root = write_photos(tmp_path / "se\udcf1or", {"red": 2, "blue": 3})
    (root / "train/red/caf\udce9.jpg").write_bytes(b"no photo")
    (root / "more\udcff").mkdir()
    command = [sys.executable, "-m", "taillift", "check", str(root), *([option] if option else [])]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    for name in ("\udcf1or", "\udcff", "\udce9.jpg"):
        shown = name.encode("unicode_escape", "surrogatepass").decode()
        assert shown in "".join(ran.stdout.split())
    if option:
        assert json.loads(ran.stdout)["source"] == str(root)


def test_a_table_is_one_whatever_the_case_of_its_suffix(tmp_path: Path) -> None:
    write_photos(tmp_path, {"red": 1, "blue": 1})
    table = tmp_path / "PHOTOS.CSV"
    table.write_text("path;label;who\ntrain/red/000.png;red;me\ntrain/blue/000.png;blue;me\n")
    made = found(table)
    assert made.table is not None
    assert (made.table.separator, made.table.unused_columns) == (";", ["who"])
