"""Rows, cells and files of a comparison's results."""

import csv
import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from taillift.training.comparison.outcome import (
    COLUMNS,
    WIDE_COLUMNS,
    Outcome,
    abbreviate,
    failures,
    margin,
    markdown,
    mean_and_deviation,
    read_outcome,
    rows_of,
    run_path,
    table,
    write_csv,
    write_outcome,
    write_tau_csv,
)
from tests.support.outcomes import FAILED, failed, outcome_of, tail_of, with_curve

COUNTS = tail_of(6)


def test_rows_are_in_the_order_in_which_recipes_were_requested() -> None:
    outcomes = [
        outcome_of(name, seed, [50.0] * 6, COUNTS) for seed in (1, 0) for name in ("lora", "head")
    ]
    rows = rows_of(outcomes)
    assert [row.recipe.name for row in rows] == ["lora", "head"]
    assert [[outcome.recipe.seed for outcome in row.outcomes] for row in rows] == [[1, 0], [1, 0]]


def renamed(outcome: Outcome, name: str) -> Outcome:
    """Return the same run of a recipe with another name and its old title."""
    recipe = outcome.recipe.model_copy(update={"name": name})
    return outcome.model_copy(update={"recipe": recipe})


def test_recipes_that_share_a_title_have_rows_with_labels_of_their_own() -> None:
    lift, head = (outcome_of(name, 0, [50.0] * 6, COUNTS) for name in ("lift", "head"))
    outcomes = [lift, renamed(lift, "mine"), head]
    labels = ["LIFT (lift)", "LIFT (mine)", "head only"]
    assert [row.label for row in rows_of(outcomes)] == labels
    lines = markdown(outcomes).splitlines()[4:]
    assert [line.split("|")[1].strip() for line in lines] == labels
    assert failures([lift, failed(outcomes[1])]) == [f"LIFT (mine), seed 0, failed: {FAILED}"]


def test_cells_are_means_and_spreads_over_seeds() -> None:
    # The counts are 500, 183, 67 and so on; the last two classes are few-shot.
    outcomes = [
        outcome_of("lift", seed, [80.0, 80, 60, 60, rate, rate], COUNTS)
        for seed, rate in enumerate((30.0, 40.0))
    ]
    (row,) = rows_of(outcomes)
    cells = row.cells(COLUMNS)
    assert cells[0] == "178 k"
    assert cells[1:3] == ["57.3 ±2.4", "34.0 ±7.1"], "one view has a point less"
    assert cells[-1] == "35.0 ±7.1"
    assert row.cells(WIDE_COLUMNS)[:8] == cells
    assert row.cells(WIDE_COLUMNS)[8:] == ["35.0 ±7.1", "50.0 ±0.0", "45.0 ±0.0", "55.0 ±0.0"]


@pytest.mark.parametrize(
    ("values", "text"), [([], "-"), ([41.25], "41.2"), ([40.0, 44.0], "42.0 ±2.8")]
)
def test_a_deviation_needs_two_values(values: list[float], text: str) -> None:
    assert mean_and_deviation(values) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0, "0"), (999, "999"), (1000, "1.00 k"), (76_800, "76.8 k"), (178_236, "178 k")),
        *((999_499, "999 k"), (999_999, "1.00 M"), (85_131_264, "85.1 M")),
        (1_200_000_000, "1.20 G"),
    ],
)
def test_large_numbers_are_abbreviated(number: int, text: str) -> None:
    assert abbreviate(number) == text


def test_a_failed_run_is_a_dash_with_its_reason_and_is_in_no_mean() -> None:
    good = outcome_of("lift", 0, [50.0] * 6, COUNTS)
    outcomes = [
        good,
        failed(outcome_of("lift", 1, [0.0] * 6, COUNTS)),
        failed(outcome_of("full", 0, [0.0] * 6, COUNTS)),
    ]
    lift, full = rows_of(outcomes)
    assert lift.cells(WIDE_COLUMNS)[1:] == rows_of([good])[0].cells(WIDE_COLUMNS)[1:]
    assert full.cells(COLUMNS) == ["-"] * 8
    assert failures(outcomes) == [
        f"LIFT, seed 1, failed: {FAILED}",
        f"full, SGD, seed 0, failed: {FAILED}",
    ]
    assert markdown(outcomes).endswith(f"\n- full, SGD, seed 0, failed: {FAILED}\n")


def test_the_markdown_is_a_table_with_a_row_a_recipe() -> None:
    outcomes = [outcome_of(name, 0, [50.0] * 6, COUNTS) for name in ("zero-shot", "lift")]
    title, empty, *lines = markdown(outcomes).splitlines()
    assert title == "Accuracy on made-up test, %"
    assert empty == ""
    assert lines[0].startswith("|  | weights trained | one view, mean-class | one view, few |")
    assert lines[0].endswith(
        "| five views, harmonic-mean | five views, G-mean | five views, macro-F1 |"
    )
    assert [line.count("|") for line in lines] == [14] * 4
    assert lines[3].startswith("| LIFT | 178 k | 49.0 | 49.0 | 50.0 |")


def test_a_group_without_classes_has_no_figure() -> None:
    (row,) = rows_of([outcome_of("lift", 0, [50.0] * 3, [500, 400, 300])])
    assert row.cells(COLUMNS)[-3:] == ["50.0", "-", "-"]


def test_an_outcome_from_before_the_g_mean_has_a_dash_for_it(tmp_path: Path) -> None:
    outcome = outcome_of("lift", 0, [50.0] * 6, COUNTS)
    path = run_path(tmp_path, outcome.recipe, ".json")
    write_outcome(path, outcome)
    document = json.loads(path.read_text("utf-8"))
    for views in ("single", "full"):
        del document["evaluation"][views]["geometric_mean"]
        del document["evaluation"][views]["macro_f1"]
    path.write_text(json.dumps(document), "utf-8")
    old = read_outcome(path)
    assert old is not None
    (row,) = rows_of([old])
    assert row.cells(WIDE_COLUMNS)[-3:] == ["50.0", "-", "-"]
    write_csv(tmp_path / "results.csv", [old])
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [each["macro_f1"] for each in csv.DictReader(file)] == ["", ""]


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    outcomes = [
        outcome_of(name, seed, [50.0 + seed] * 6, COUNTS)
        for name in ("zero-shot", "lift", "full-adamw")
        for seed in (0, 1, 2)
    ]
    console = Console(width=80, file=StringIO())
    with console.capture() as captured:
        console.print(table(outcomes))
    assert "…" not in captured.get()
    assert "full, AdamW" in captured.get()


def test_the_csv_has_a_row_a_run_and_number_of_views(tmp_path: Path) -> None:
    outcomes = [
        outcome_of("lift", 0, [50.0, None, 60.0, 60.0, 30.0, 30.0], COUNTS),
        failed(outcome_of("full", 0, [0.0] * 6, COUNTS)),
    ]
    write_csv(tmp_path / "results.csv", outcomes)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["recipe"], row["views"]) for row in rows] == [
        *(("lift", "1"), ("lift", "5"), ("full", "")),
    ]
    assert (rows[0]["few"], rows[1]["few"]) == ("29.00", "30.00")
    assert (rows[2]["few"], rows[2]["failure"]) == ("", FAILED)
    assert (rows[0]["geometric_mean"], rows[1]["macro_f1"]) == ("45.00", "55.00")
    assert rows[0]["title"] == "LIFT"
    assert '"name":"adaptformer"' in rows[0]["fields"]


RISING = [10.0 * step for step in range(9)]
# The mean is 80 minus the few-shot accuracy over 4: a lever, and nothing more.
LEVER = [80 - few / 4 for few in RISING]


def curved(name: str, few: list[float], mean_class: list[float], seed: int = 0) -> Outcome:
    return with_curve(outcome_of(name, seed, [50.0] * 6, COUNTS), few, mean_class)


def test_who_only_moves_along_the_curve_of_another_gains_nothing() -> None:
    moved = [few + 5 for few in RISING]
    along = [80 - few / 4 for few in moved]
    curves = [curved("lift", RISING, LEVER).tau_curve, curved("head", moved, along).tau_curve]
    assert margin(curves[1], curves[:1]) == pytest.approx(0, abs=0.05)
    above = curved("full", moved, [mean + 2 for mean in along]).tau_curve
    assert margin(above, curves) == pytest.approx(2, abs=0.05)
    assert margin(curves[0], [*curves[1:], above]) == pytest.approx(-2, abs=0.05)


def test_nothing_is_above_or_below_if_no_other_reaches_as_much() -> None:
    curve, low = curved("lift", RISING, LEVER).tau_curve, curved("head", [5.0] * 9, LEVER).tau_curve
    assert margin(curve, [low]) is None
    assert margin(curve, []) is None


def test_a_rows_curve_is_the_mean_over_its_seeds_that_have_one() -> None:
    lower = [few - 4 for few in RISING[1:]]
    outcomes = [
        curved("lift", RISING, LEVER),
        curved("lift", [0, *lower], [mean - 2 for mean in LEVER], 1),
        outcome_of("lift", 2, [50.0] * 6, COUNTS),
    ]
    (row,) = rows_of(outcomes)
    assert [point.few for point in row.tau_curve()] == [0, *(few - 2 for few in RISING[1:])]
    assert [point.mean_class for point in row.tau_curve()] == [mean - 1 for mean in LEVER]


def test_every_tau_of_every_run_is_a_row(tmp_path: Path) -> None:
    outcomes = [curved("lift", RISING, LEVER), outcome_of("head", 0, [50.0] * 6, COUNTS)]
    write_tau_csv(tmp_path / "tau.csv", outcomes)
    rows = list(csv.DictReader(StringIO((tmp_path / "tau.csv").read_text())))
    assert [row["tau"] for row in rows] == [
        "0",
        "0.25",
        "0.5",
        "0.75",
        "1",
        "1.25",
        "1.5",
        "1.75",
        "2",
    ]
    assert {(row["recipe"], row["title"], row["seed"]) for row in rows} == {("lift", "LIFT", "0")}
    assert [float(row["few"]) for row in rows] == RISING
    assert rows[0]["many"] == ""
