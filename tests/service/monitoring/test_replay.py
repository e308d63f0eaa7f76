"""Past predictions, replayed through the drift monitor."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.streams import few_shot_bundle
from taillift.models.bundle.folder import read_manifest
from taillift.models.errors import UserError
from taillift.service.monitoring.recorder import model_profile
from taillift.service.monitoring.replay import (
    PastPrediction,
    classify_folder,
    print_report,
    read_predictions,
    replay_predictions,
)
from taillift.service.tail.monitor import ModelProfile, Rules
from taillift.service.tail.reference import Source
from tests.support.palette import CLASSES, photo

LABELS = ["a", "b"]
UNIFORM = Rules(Source.UNIFORM)


def profile() -> ModelProfile:
    bundle = few_shot_bundle(20)
    labels = tuple(f"[/class] {index}" for index in range(20))
    return ModelProfile(
        "v", labels, tuple(bundle.groups), tuple(bundle.counts), tuple(bundle.pairs)
    )


def predictions(count: int, lost: int | None = None) -> list[PastPrediction]:
    mix = np.ones(20)
    if lost is not None:
        mix[lost] = 0
    drawn = np.random.default_rng(0).choice(
        20, count, p=mix / mix.sum() @ few_shot_bundle(20).matrix
    )
    return [PastPrediction(label, 0.8, None) for label in drawn.tolist()]


def printed(items: list[PastPrediction], width: int = 160) -> str:
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        print_report(replay_predictions(profile(), items, UNIFORM), console)
    return captured.get()


def test_a_lost_class_is_named_with_the_time_when_it_was_found() -> None:
    report = replay_predictions(profile(), predictions(2_000) + predictions(3_000, lost=3), UNIFORM)
    assert [state.label for state in report.classes] == ["[/class] 3"]
    assert report.classes[0].verdict == "silent"
    assert 2_000 < report.first_found["[/class] 3"] < 3_500


def test_the_report_lists_the_lost_class() -> None:
    text = printed(predictions(2_000) + predictions(3_000, lost=3))
    assert "│ [/class] 3 │ few   │ silent" in text
    assert "silent few-shot classes: 1; drifting classes: 1" in text
    assert "81%" in text
    assert "The loss of any of 20 few-shot classes (of 20)" in text


def test_expected_predictions_and_no_predictions_make_a_report() -> None:
    assert "silent few-shot classes: 0; drifting classes: 0." in printed(predictions(1_000))
    assert "0 predictions against the reference uniform" in printed([])


def test_the_groups_fit_80_columns_and_few_predictions_are_not_called_dependent() -> None:
    text = printed(predictions(1), width=80)
    assert "…" not in text
    words = " ".join(text.split())
    assert "1 prediction against the reference uniform" in words
    assert "shows only after 1,500 of them" in words
    assert "The predictions depend on each other" not in words


def test_empty_cells_at_the_end_and_columns_that_are_not_read_do_no_harm(tmp_path: Path) -> None:
    table = tmp_path / "past.csv"
    table.write_text("label,confidence,note,note\na,0.5,x,y,\nb,0.25,x,y,,\n")
    past = list(read_predictions(table, ["a", "b"]))
    assert [(one.label, one.confidence) for one in past] == [(0, 0.5), (1, 0.25)]


def test_times_move_the_window() -> None:
    week = Rules(Source.UNIFORM).window_seconds
    old = [PastPrediction(0, 0.5, 0.0)] * 50
    new = [PastPrediction(1, 0.5, 3 * week)] * 30
    assert replay_predictions(profile(), old + new, UNIFORM).state.window_predictions == 30


def test_a_table_of_predictions_is_read(tmp_path: Path) -> None:
    path = tmp_path / "past.csv"
    path.write_text(
        "time,label,confidence,more\n12.5,a,0.25,x\n2026-01-01T00:00:00,b,1,y\n", "utf-8"
    )
    assert list(read_predictions(path, LABELS)) == [
        PastPrediction(0, 0.25, 12.5),
        PastPrediction(1, 1.0, 1_767_225_600.0),
    ]


def test_a_past_prediction_names_a_class_in_any_unicode_form(tmp_path: Path) -> None:
    path = tmp_path / "past.csv"
    path.write_text("label,confidence\ncafe\u0301,1\ncaf\u00e9,0.5\n", "utf-8")
    assert [one.label for one in read_predictions(path, ["tea", "caf\u00e9"])] == [1, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label,confidence\na,0.5\nc,0.5\n", r"line 3: the bundle has no class 'c'"),
        ("label,confidence\na,much\n", r"line 2: could not convert"),
        ("label,confidence\na,1.5\n", r"line 2: the confidence is 1\.5, not from 0 to 1"),
        ("label,confidence\na,nan\n", r"line 2: the confidence is nan"),
        ("label,confidence\na\n", r"line 2 has no confidence"),
        ("class,confidence\na,1\n", r"line 2 has no label"),
        ("label,confidence,time\na,1,noon\n", r"line 2: Invalid isoformat"),
        ("label,confidence,time\na,1,nan\n", r"line 2: the time is nan, neither seconds"),
        ("label,confidence,time\na,1,-inf\n", r"line 2: the time is -inf"),
        ("label,confidence,time\na,1,1790000000000\n", r"beyond the year 2200: are these millise"),
        ("label,confidence,time\na,1,1790000000000000\n", r"year 2200: are these microseconds\?"),
        ("label,confidence,time\na,1,2345-01-01\n", r"line 2: the time 2345-01-01 is beyond"),
        ("label,confidence\n" + "a" * 140_000, r"cannot be read as CSV: field larger"),
        ("label,confidence,time\na,1,9\nb,1,8\n", r"line 3 is older.*sort the rows"),
        ("label,confidence\na,0,95\n", r"line 2 has more cells than the first line"),
        ("label,confidence,label\na,1,b\n", r"has the column 'label' twice: remove one"),
        ('label,confidence,note\na,1,"x\nb,1,y\nb,1,z\n', "cannot be read as CSV: unexpected end"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "past.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=words):
        list(read_predictions(path, LABELS))


def test_a_table_that_a_spreadsheet_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "past.csv"
    path.write_text("label,confidence\r\nb,1\r\n", "utf-8-sig")
    assert list(read_predictions(path, LABELS)) == [PastPrediction(1, 1.0, None)]


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo((0, 0, 0)))
    with pytest.raises(UserError, match="not text in UTF-8"):
        list(read_predictions(path, LABELS))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        list(read_predictions(tmp_path / "none.csv", LABELS))


def test_a_folder_of_photos_is_classified_and_bad_files_are_named(
    tmp_path: Path, bundle: Path
) -> None:
    (tmp_path / "sub").mkdir()
    for number, label in enumerate(("red", "black", "red")):
        (tmp_path / "sub" / f"{number}.png").write_bytes(
            photo(CLASSES[label][0], size=(20 + number, 16))
        )
    (tmp_path / "a.jpg").write_bytes(b"text")
    (tmp_path / "notes.txt").write_text("none")
    refused: list[Path] = []
    classified = list(classify_folder(bundle, tmp_path, lambda path, _: refused.append(path)))
    labels = read_manifest(bundle).labels
    assert [labels[prediction.label] for prediction in classified] == ["red", "black", "red"]
    assert all(0 < prediction.confidence <= 1 for prediction in classified)
    assert refused == [tmp_path / "a.jpg"]
    report = replay_predictions(model_profile(bundle, read_manifest(bundle)), classified, UNIFORM)
    assert report.state.classes.predicted[labels.index("red")] == 2


def test_a_folder_without_photos_is_refused(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(UserError, match="has no photos"):
        list(classify_folder(bundle, tmp_path, lambda *_: None))


def test_rows_of_one_thing_count_once_and_its_group_is_none(tmp_path: Path) -> None:
    path = tmp_path / "past.csv"
    rows = ["a,1,shoe,few", "b,1,shoe,few", "b,1,hat,few", "a,1,,few", "a,1,,few"]
    path.write_text("\n".join(["label,confidence,thing,group", *rows]))
    report = replay_predictions(profile(), read_predictions(path, LABELS), UNIFORM)
    assert report.state.classes.predicted[:2].tolist() == [3, 1]


def test_identical_files_in_a_folder_count_once(tmp_path: Path, bundle: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(photo((0, 0, 0)))
    classified = classify_folder(bundle, tmp_path, lambda *_: None)
    report = replay_predictions(model_profile(bundle, read_manifest(bundle)), classified, UNIFORM)
    assert report.state.window_predictions == 1
