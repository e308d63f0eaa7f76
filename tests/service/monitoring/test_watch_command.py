"""`taillift watch`: the monitor, applied to past predictions."""

import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from taillift.models.errors import UserError
from taillift.service.serve_cli import app
from tests.support.palette import CLASSES, new_photo
from tests.support.serving import form, running

REST = [label for label in CLASSES if label != "black"]


def watch(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["watch", *map(str, arguments)])


@pytest.fixture
def past(tmp_path: Path) -> Path:
    """Predictions of all classes equally often, except one that never comes."""
    path = tmp_path / "past.csv"
    rows = [f"{second},{label},0.9" for second, label in enumerate(REST * 300)]
    path.write_text("\n".join(["time,label,confidence", *rows]))
    return path


def test_the_report_names_the_lost_class(known: Path, past: Path) -> None:
    result = watch(known, past, "--reference", "uniform")
    assert result.exit_code == 0
    (row,) = [line for line in result.stdout.splitlines() if "│ black" in line]
    assert [cell.strip() for cell in row.split("│")[1:6]] == [
        "black",
        "few",
        "silent",
        "0",
        "257.1",
    ]
    assert "silent few-shot classes: 1; drifting classes: 1." in result.stdout


def test_json_has_the_whole_report(known: Path, past: Path) -> None:
    report = json.loads(watch(known, past, "--reference", "uniform", "--json").stdout)
    state = report["state"]
    assert (state["reference"], state["predictions"]) == ("uniform", 1_800)
    assert state["classes"]["predicted"] == [300] * 6 + [0]
    assert state["classes"]["silent"] == [False] * 6 + [True]
    assert state["classes"]["last_seen"] == [1794, 1795, 1796, 1797, 1798, 1799, None]
    assert [state["label"] for state in report["classes"]] == ["black"]
    assert 0 < report["first_found"]["black"] <= 1_800
    assert [group["group"] for group in state["groups"]] == ["many", "medium", "few"]


def test_it_agrees_with_the_service_on_the_same_predictions(known: Path, past: Path) -> None:
    state = json.loads(watch(known, past, "--reference", "uniform", "--json").stdout)["state"]
    with running(known, reference="uniform") as client:
        served = served_classes(client)
    assert [live["predicted"] for live in served] == state["classes"]["predicted"]
    assert [live["expected"] for live in served] == pytest.approx(state["classes"]["expected"])
    assert [live["silent"] for live in served] == state["classes"]["silent"]
    assert [live["drifting"] for live in served] == state["classes"]["found"]


def served_classes(client: httpx.Client) -> list[dict[str, object]]:
    for _ in range(30):
        files = form(*[("x", new_photo(CLASSES[label][0])) for label in REST * 10])
        client.post("/classify?ensemble=off", files=files).raise_for_status()
    return [info["live"] for info in client.get("/classes").json()["classes"]]


def test_photos_are_classified_and_a_bad_file_is_one_line(bundle: Path, tmp_path: Path) -> None:
    for number, label in enumerate(("red", "red", "black")):
        (tmp_path / f"{number}.png").write_bytes(new_photo(CLASSES[label][0]))
    (tmp_path / "text.jpg").write_text("no photo")
    result = watch(bundle, tmp_path, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["state"]["classes"]["predicted"] == [2, 0, 0, 0, 0, 0, 1]
    assert result.stderr.count("\n") == 1
    assert "text.jpg" in result.stderr


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("past.txt", [], ["past.txt", "neither a folder of photos nor a file that ends in .csv"]),
        ("none.csv", [], ["none.csv", "No such file"]),
        ("past.csv", ["--reference", "measured"], ["no held-out photos"]),
        ("past.csv", ["--tail-level", "2"], ["tail_level", "less than 1"]),
    ],
)
def test_a_wrong_argument_is_one_line(
    bundle: Path, past: Path, name: str, flags: list[str], words: list[str]
) -> None:
    error = watch(bundle, past.with_name(name), *flags).exception
    assert isinstance(error, UserError)
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error)
