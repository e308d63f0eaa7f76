"""`taillift watch`: the same monitoring, offline."""

import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from taillift.models.errors import UserError
from taillift.service.serve_cli import app
from tests.support.palette import CLASSES, photo
from tests.support.serving import form, running

REST = [label for label in CLASSES if label != "black"]


def watch(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["watch", *map(str, arguments)])


@pytest.fixture
def past(tmp_path: Path) -> Path:
    """All classes equally often but one."""
    path = tmp_path / "past.csv"
    rows = [f"{second},{label},0.9" for second, label in enumerate(REST * 60)]
    path.write_text("\n".join(["time,label,confidence", *rows]))
    return path


def test_the_report_names_the_class_that_no_longer_comes(known: Path, past: Path) -> None:
    result = watch(known, past, "--reference", "uniform")
    assert result.exit_code == 0
    (row,) = [line for line in result.stdout.splitlines() if "│ black" in line]
    assert [cell.strip() for cell in row.split("│")[1:6]] == ["black", "few", "silent", "0", "51.4"]
    assert "silent few-shot classes: 1; drifting classes: 1." in result.stdout


def test_json_has_everything(known: Path, past: Path) -> None:
    report = json.loads(watch(known, past, "--reference", "uniform", "--json").stdout)
    state = report["state"]
    assert (state["reference"], state["predictions"]) == ("uniform", 360)
    assert state["classes"]["predicted"] == [60] * 6 + [0]
    assert state["classes"]["silent"] == [False] * 6 + [True]
    assert state["classes"]["last_seen"] == [354, 355, 356, 357, 358, 359, None]
    assert [one["label"] for one in report["classes"]] == ["black"]
    assert 0 < report["first_found"]["black"] <= 360
    assert [one["group"] for one in state["groups"]] == ["many", "medium", "few"]


def test_it_says_what_the_service_says_of_the_same_predictions(known: Path, past: Path) -> None:
    state = json.loads(watch(known, past, "--reference", "uniform", "--json").stdout)["state"]
    with running(known, reference="uniform") as client:
        served = served_classes(client)
    assert [one["predicted"] for one in served] == state["classes"]["predicted"]
    assert [one["expected"] for one in served] == pytest.approx(state["classes"]["expected"])
    assert [one["silent"] for one in served] == state["classes"]["silent"]
    assert [one["drifting"] for one in served] == state["classes"]["found"]


def served_classes(client: httpx.Client) -> list[dict[str, object]]:
    for _ in range(6):
        files = form(*[("x", photo(CLASSES[label][0])) for label in REST * 10])
        client.post("/classify?ensemble=off", files=files).raise_for_status()
    return [one["live"] for one in client.get("/classes").json()["classes"]]


def test_photos_are_classified_and_what_is_none_is_a_line(bundle: Path, tmp_path: Path) -> None:
    for place, label in enumerate(("red", "red", "black")):
        (tmp_path / f"{place}.png").write_bytes(photo(CLASSES[label][0]))
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
def test_what_is_wrong_is_one_line(
    bundle: Path, past: Path, name: str, flags: list[str], words: list[str]
) -> None:
    error = watch(bundle, past.with_name(name), *flags).exception
    assert isinstance(error, UserError)
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error)
