"""Tests of `taillift suggest`: which photos are chosen to be labelled, and the folder with them."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.manifest import Thresholds
from taillift.models.bundle.session import Outputs
from taillift.service.inference.suggestion import PoolPhoto, diverse, suggest
from taillift.service.serve_cli import app
from tests.support.palette import CLASSES, Colour, new_photo, palette_manifest, write_bundle

RED, WHITE = CLASSES["red"][0], CLASSES["white"][0]
# Between all colours, near white and near black: the few-shot classes, and others, are likely.
GREY: Colour = (128, 128, 128)
DARK_GREEN: Colour = (0, 40, 0)
MAUVE: Colour = (128, 60, 128)
LIGHT: Colour = (142, 142, 138)
DARK: Colour = (112, 116, 112)


def write_pool(folder: Path, colours: dict[str, Colour]) -> Path:
    folder.mkdir(parents=True)
    for name, colour in colours.items():
        (folder / name).write_bytes(new_photo(colour))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["suggest", *map(str, arguments)])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "suggestions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def candidate(mass: float, *features: float) -> PoolPhoto:
    direction = np.array(features, np.float32)
    unit = direction / np.linalg.norm(direction)
    return PoolPhoto(Path(), np.array([mass, 1 - mass]), unit, mass)


def test_photos_that_differ_come_before_shots_of_one_thing() -> None:
    candidates = [
        candidate(0.9, 1, 0, 0),
        candidate(0.8, 1, 0.001, 0),
        candidate(0.1, 0, 1, 0),
        candidate(0.2, 0, 0, 1),
    ]
    assert diverse(candidates, 3) == [0, 3, 2]
    assert diverse(candidates, 9) == [0, 3, 2, 1]
    irrelevant = candidate(1e-9, 0, 1, 1)
    assert diverse([*candidates, irrelevant], 9) == [0, 3, 2, 1, 4]


def test_a_photo_that_is_likelier_may_be_nearer() -> None:
    candidates = [candidate(0.9, 1, 0), candidate(0.6, 1, 1), candidate(0.1, 0, 1)]
    assert diverse(candidates, 2) == [0, 1]


def test_photos_that_may_be_rare_are_suggested(bundle: Path, tmp_path: Path) -> None:
    colours = {f"red{index}.png": RED for index in range(6)}
    rare = {"white.png": WHITE, "black.png": DARK_GREEN, "mauve.png": MAUVE}
    pool = write_pool(tmp_path / "pool", colours | rare)
    out = tmp_path / "suggested"
    result = run(bundle, pool, "--photos", 3, "--out", out)
    assert result.exit_code == 0, result.output
    chosen = rows(out)
    assert {Path(row["source"]).name for row in chosen} == set(rare)
    assert Path(chosen[2]["source"]).name == "mauve.png"
    assert [row["rank"] for row in chosen] == ["1", "2", "3"]
    for row in chosen:
        copy = out / row["path"]
        assert copy.read_bytes() == Path(row["source"]).read_bytes()
        confidences = [float(row[f"confidence_{rank}"]) for rank in range(1, 6)]
        assert confidences == sorted(confidences, reverse=True)
        assert {row[f"label_{rank}"] for rank in range(1, 6)} <= set(CLASSES)
        assert "rare" in row["why"]
    assert [float(row["mass"]) > 0.9 for row in chosen] == [True, True, False]
    assert [float(row["doubt"]) > 0.5 for row in chosen] == [False, False, True]
    assert "3 of 9 photos are suggested" in result.output
    assert str(out / "label.html") in result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "label.html",
        "photos",
        "suggestions.csv",
    ]


def test_copies_are_suggested_once_and_broken_photos_have_their_reason(
    bundle: Path, tmp_path: Path
) -> None:
    pool = write_pool(tmp_path / "pool", {"a.png": LIGHT, "d.png": DARK})
    shutil.copy(pool / "a.png", pool / "b.PNG")
    (pool / "broken.jpg").write_text("not a photo")
    (pool / "empty.webp").touch()
    out = tmp_path / "suggested"
    result = run(bundle, pool, "--out", out)
    assert result.exit_code == 0, result.output
    *chosen, first, second = rows(out)
    assert sorted(Path(row["source"]).name for row in chosen) == ["a.png", "d.png"]
    for row, name in ((first, "broken.jpg"), (second, "empty.webp")):
        assert (row["rank"], row["path"]) == ("", "")
        assert row["source"].endswith(name)
        assert "image" in row["error"]
    assert "1 photos are copies of others" in result.output
    assert "2 photos cannot be used: suggestions.csv has the reasons" in result.output


def test_a_photo_that_is_gone_when_copies_are_made_does_not_end_the_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = write_pool(tmp_path / "pool", {"light.png": LIGHT, "dark.png": DARK, "grey.png": GREY})
    paths, classifier = sorted(pool.iterdir()), Classifier.open(bundle)
    run_graph = classifier.run

    def run_and_remove(pixels: Pixels) -> Outputs:
        paths[0].unlink(missing_ok=True)  # All have been decoded.
        return run_graph(pixels)

    monkeypatch.setattr(classifier, "run", run_and_remove)
    found = suggest(classifier, paths, 3, Ensemble.OFF)
    assert {one.photo for one in found.chosen} == set(paths[1:])
    assert [photo for photo, _ in found.broken] == paths[:1]


def test_photos_that_have_a_label_are_not_suggested_again(bundle: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", {"light.png": LIGHT, "dark.png": DARK})
    (tmp_path / "labelled/train/white").mkdir(parents=True)
    shutil.copy(pool / "light.png", tmp_path / "labelled/train/white/other name.png")
    out = tmp_path / "suggested"
    result = run(bundle, pool, "--out", out, "--without", tmp_path / "labelled")
    assert [Path(row["source"]).name for row in rows(out)] == ["dark.png"]
    assert "1 photos have a label already" in result.output
    everything = run(bundle, pool, "--out", tmp_path / "o", "--without", pool)
    assert "none of the 2 photos can be suggested: 2 have a label" in str(everything.exception)
    assert not (tmp_path / "o").exists()


def test_a_table_may_say_which_photos_have_a_label(bundle: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", {"light.png": LIGHT, "dark.png": DARK, "grey.png": GREY})
    first = tmp_path / "first"
    assert run(bundle, pool, "--photos", 1, "--out", first).exit_code == 0
    (row,) = rows(first)
    (first / "labels.csv").write_text(f"label,path\n,{row['path']}\nwhite,gone.png\nshort\n")
    second = tmp_path / "second"
    assert run(bundle, pool, "--out", second, "--without", first / "labels.csv").exit_code == 0
    assert len(rows(second)) == 2
    assert row["source"] not in {one["source"] for one in rows(second)}
    (first / "labels.csv").write_text("file\nlight.png\n")
    refused = run(bundle, pool, "--out", tmp_path / "o", "--without", first / "labels.csv")
    assert "labels.csv has no column path" in str(refused.exception)


def test_names_of_any_kind_are_only_names(bundle: Path, tmp_path: Path) -> None:
    names = ["a,b\n.png", "#1 100%?.png", os.fsdecode(b"caf\xe9.png"), "<script>.png"]
    pool = write_pool(tmp_path / "pool", dict.fromkeys(names, LIGHT))
    out = tmp_path / "suggested"
    assert run(bundle, pool, "--out", out).exit_code == 0
    assert {row["path"] for row in rows(out)} == {f"photos/000{rank}.png" for rank in range(1, 5)}
    assert {Path(row["source"]).name for row in rows(out)} == {
        "a,b\n.png",
        "#1 100%?.png",
        "caf\\udce9.png",
        "<script>.png",
    }
    assert "<script>.png" not in (out / "label.html").read_text("utf-8")


def test_a_folder_that_exists_is_never_written_to(bundle: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", {"light.png": LIGHT})
    out = tmp_path / "suggested"
    out.mkdir()
    (out / "labels.csv").write_text("path,label\n")
    result = run(bundle, pool, "--out", out)
    assert "suggested exists already: choose another name for --out" in str(result.exception)
    assert [path.name for path in out.iterdir()] == ["labels.csv"]


def test_a_bundle_without_rare_classes_is_refused(tmp_path: Path) -> None:
    manifest = palette_manifest("", {})
    frequent = tuple(
        info.model_copy(update={"group": "many", "count": 500}) for info in manifest.classes
    )
    bundle = write_bundle(tmp_path / "frequent", classes=frequent, thresholds=Thresholds())
    pool = write_pool(tmp_path / "pool", {"light.png": LIGHT})
    result = run(bundle, pool, "--out", tmp_path / "o")
    assert "no class of this bundle has fewer than 20 training photos" in str(result.exception)


def test_only_the_best_candidates_are_kept_of_many(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice is among the photos of the greatest mass, wherever in the pool they are."""
    monkeypatch.setattr("taillift.service.inference.suggestion.CANDIDATES", 1)
    colours: dict[str, Colour] = {f"{index:02}.png": RED for index in range(20)}
    pool = write_pool(tmp_path / "pool", colours | {"07.png": LIGHT, "15.png": DARK})
    photos = sorted(pool.iterdir())
    found = suggest(Classifier.open(bundle), photos, 2, Ensemble.OFF)
    assert {one.photo.name for one in found.chosen} == {"07.png", "15.png"}
