"""Tests of photos that are trained on next to those of a set: `taillift train --add`."""

import csv
import logging
import re
import shutil
from pathlib import Path

import pytest

from taillift.models.errors import UserError
from taillift.training.data.dataset import load_dataset
from taillift.training.data.survey import survey
from taillift.training.data.survey_text import survey_text
from tests.support.tiny import COLOURS, write_photo, write_photos


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """A set of 3 red and 2 blue training photos, and 2 of each in val and test."""
    return str(write_photos(tmp_path / "photos", {"red": 3, "blue": 2}, ("train", "val", "test")))


def write_more(root: Path, counts: dict[str, int], colour: str = "red") -> str:
    """Write ROOT/train/CLASS/*.png: new photos of one colour for each class."""
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            seed = 100_000 + 1_000 * number + index
            write_photo(root / "train" / name / f"{index:03}.png", COLOURS[colour], seed)
    return str(root)


def table(path: Path, *rows: tuple[object, str]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return str(path)


def test_added_photos_count_in_the_classes_they_are_of(photos: str, tmp_path: Path) -> None:
    first = write_more(tmp_path / "monday", {"blue": 4})
    second = write_more(tmp_path / "tuesday", {"red": 1, "scarf_01": 2}, "blue")
    dataset = load_dataset(photos, add=[first, second])
    assert dict(zip(dataset.classes, dataset.counts, strict=True)) == {
        "blue": 6,
        "red": 4,
        "scarf_01": 2,
    }
    assert dataset.classes == ("blue", "red", "scarf_01")
    assert dataset.names == ("blue", "red", "scarf 01")
    assert dataset.val is not None
    assert dataset.test is not None
    assert (len(dataset.val), len(dataset.test)) == (4, 4)
    assert (dataset.name, dataset.folder) == ("photos", "photos+monday+tuesday")
    assert all(photo.read() for photo in dataset.train.photos)


def test_a_source_may_have_photos_of_one_class_alone(photos: str, tmp_path: Path) -> None:
    dataset = load_dataset(photos, add=[write_more(tmp_path / "more", {"blue": 1})])
    assert dataset.counts == [3, 3]
    one = write_more(tmp_path / "one", {"red": 2})
    with pytest.raises(UserError, match="one/train has one class: at least two"):
        load_dataset(one)
    other = write_more(tmp_path / "other", {"blue": 2}, "blue")
    assert load_dataset(one, add=[other]).classes == ("blue", "red")


def test_the_run_depends_on_the_added_photos(photos: str, tmp_path: Path) -> None:
    more = write_more(tmp_path / "more", {"blue": 2})
    plain, with_more = load_dataset(photos), load_dataset(photos, add=[more])
    assert plain.fingerprint != with_more.fingerprint
    assert with_more.fingerprint == load_dataset(photos, add=[more]).fingerprint
    write_photo(Path(more, "train/blue/other.png"), COLOURS["blue"], 7)
    assert load_dataset(photos, add=[more]).fingerprint != with_more.fingerprint


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_held_out_photo_is_refused_under_any_name(
    photos: str, tmp_path: Path, split: str
) -> None:
    more = Path(write_more(tmp_path / "more", {"blue": 2}))
    for name in ("a.png", "b.png"):
        shutil.copy(Path(photos, split, "red", "001.png"), more / "train/blue" / name)
    line = (
        rf"more/train/blue/a\.png is also in {split} \(.*photos/{split}/red/001\.png\) \(1 more "
        rf"are held out, too\).*remove them from .*more, or from {split}"
    )
    with pytest.raises(UserError, match=line):
        load_dataset(photos, add=[str(more)])
    made = survey(photos, add=[str(more)])
    (refusal,) = made.refusals
    assert f"a.png is also in {split}" in refusal
    assert "Training would take this set." not in survey_text(made)


def test_a_new_class_is_named_with_its_photos_and_the_nearest_name(
    photos: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = write_more(tmp_path / "more", {"scarf": 3, "bleu": 1, "red": 1})
    with caplog.at_level(logging.WARNING):
        load_dataset(photos, add=[more])
    assert caplog.messages == [
        f"{more}: new class 'bleu' (did you mean \"blue\"?), photos: 1",
        f"{more}: new class 'scarf', photos: 3",
    ]


def test_copies_of_training_photos_are_left_out_and_other_labels_are_told(
    photos: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = Path(write_more(tmp_path / "more", {"red": 1}))
    shutil.copy(Path(photos, "train/red/001.png"), more / "train/red/again.png")
    (more / "train/blue").mkdir()
    shutil.copy(Path(photos, "train/red/002.png"), more / "train/blue/corrected.png")
    with caplog.at_level(logging.WARNING):
        # The same source twice is as if it were given once.
        dataset = load_dataset(photos, add=[str(more), str(more)])
    assert dict(zip(dataset.classes, dataset.counts, strict=True)) == {"red": 4, "blue": 3}
    first, second, third = caplog.messages
    assert first == f"{more}: 1 photos are in training already, and are left out"
    assert "1 photos have another class elsewhere, such as" in second
    assert "corrected.png" in second
    assert "002.png" in second
    assert third == f"{more}: 3 photos are in training already, and are left out"


def test_equal_names_in_two_sources_are_two_photos(photos: str, tmp_path: Path) -> None:
    """Two tables, or two folders of classes, may name other photos by the same path."""
    sources = []
    for seed, (folder, label) in enumerate((("one", "red"), ("two", "blue"))):
        write_photo(tmp_path / folder / "1.png", COLOURS["red"], 500 + seed)
        sources.append(table(tmp_path / folder / "labels.csv", ("1.png", label)))
    dataset = load_dataset(photos, add=sources)
    assert dict(zip(dataset.classes, dataset.counts, strict=True)) == {"red": 4, "blue": 3}
    assert dataset.added == ("labels", "labels")


def test_rows_without_a_label_are_left_out_of_an_added_table_alone(
    photos: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(4):
        write_photo(tmp_path / f"{index}.png", COLOURS["red"], 600 + index)
    rows = [("0.png", "red"), ("1.png", ""), ("2.png", " "), ("3.png", "none of the classes")]
    labels = table(tmp_path / "labels.csv", *rows)
    with caplog.at_level(logging.WARNING):
        assert load_dataset(photos, add=[labels]).counts == [4, 2]
    assert caplog.messages == [
        f"{labels}: 3 rows have no class and are left out, such as {labels}:3"
    ]
    with pytest.raises(UserError, match=r"labels\.csv:3: the label is empty"):
        load_dataset(labels)
    none = table(tmp_path / "none.csv", *rows[1:])
    with pytest.raises(UserError, match=r"none\.csv has no training row with a label"):
        load_dataset(photos, add=[none])


def test_held_out_photos_of_an_added_source_are_not_used(
    photos: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = Path(write_more(tmp_path / "more", {"red": 1}))
    write_photo(more / "test/red/1.png", COLOURS["red"], 700)
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(photos, add=[str(more)])
    assert dataset.test is not None
    assert len(dataset.test) == 4
    assert caplog.messages == [
        f"{more}: its test (1 photos) is not used: only training photos are added"
    ]


def test_damaged_photos_of_an_added_source_are_left_out_and_named(
    photos: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = Path(write_more(tmp_path / "more", {"blue": 1}))
    (more / "train/blue/bad.jpg").write_text("not a photo")
    with caplog.at_level(logging.WARNING):
        assert load_dataset(photos, add=[str(more)]).counts == [3, 3]
    assert "bad.jpg is left out" in caplog.text
    (more / "train/hat").mkdir()
    (more / "train/blue/bad.jpg").rename(more / "train/hat/bad.jpg")
    reason = f"photos and {more}: the class 'hat' has no readable training photo"
    with pytest.raises(UserError, match=re.escape(reason)):
        load_dataset(photos, add=[str(more)])


def test_an_added_source_may_fill_a_class_that_has_no_photo_yet(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", {"red": 2, "blue": 2})
    (root / "train/green").mkdir()
    with pytest.raises(UserError, match="class 'green' has no readable"):
        load_dataset(str(root))
    more = write_more(tmp_path / "more", {"green": 1})
    dataset = load_dataset(str(root), add=[more])
    assert dataset.counts == [2, 2, 1]
    assert load_dataset(str(root), imbalance=2, add=[more]).counts == [2, 1, 1]


def test_added_photos_stay_whole_if_the_set_is_cut_to_a_tail(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", {"red": 4, "blue": 4})
    more = write_more(tmp_path / "more", {"blue": 3, "hat": 2})
    dataset = load_dataset(str(root), imbalance=2, add=[more])
    assert dict(zip(dataset.classes, dataset.counts, strict=True)) == {
        "red": 2,
        "blue": 7,
        "hat": 2,
    }
    assert dataset.folder == "photos-ir2+more"


def test_the_survey_shows_what_each_source_adds(photos: str, tmp_path: Path) -> None:
    more = Path(write_more(tmp_path / "more", {"blue": 2, "scarf": 1}))
    shutil.copy(Path(photos, "train/red/001.png"), more / "train/scarf/copy.png")
    (more / "train/scarf/bad.png").touch()
    made = survey(photos, add=[str(more)])
    assert made.refusals == []
    (added,) = made.added
    assert (added.photos, added.readable, added.added) == (5, 4, 4)
    assert {one.label: one.train for one in made.classes} == {"red": 3, "blue": 4, "scarf": 2}
    assert f"{more}: new class 'scarf', photos: 2" in made.warnings
    text = "".join(survey_text(made).split())
    assert f"added544new:{more}" in text


def test_a_source_that_is_no_set_is_named(photos: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is not a set of photos"):
        load_dataset(photos, add=[str(tmp_path / "empty")])
    (tmp_path / "empty/train/red").mkdir(parents=True)
    with pytest.raises(UserError, match="empty has no labelled photo to add"):
        load_dataset(photos, add=[str(tmp_path / "empty")])
