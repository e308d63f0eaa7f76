"""The commands as a user runs them: real processes, one line where they fail."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_photos


def taillift(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "taillift", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "nowhere"], "error: nowhere has no folder train/"),
        (["train", "photos", "--method", "lif"], "error: method 'lif' is not one of zero-shot"),
        (["train", "photos", "--rank", "0"], "error: rank = 0: Input should be greater"),
        (["train", "photos", "--backbone", "ViT-B16:x"], "did you mean ViT-B-16"),
        (["train", "photos", "--seed", "-1"], "error: seed = -1: Input should be greater"),
        (["train", "photos", "--method", "zero-shot", "--epochs", "3"], "zero-shot trains nothing"),
        (["train", "photos", "--out", "photos"], "error: photos is a folder: name a file"),
        (["compare", "photos", "--seeds", "a"], "error: seed = a: Input should be a valid integer"),
        (["export", "absent.safetensors", "photos"], "error: absent.safetensors does not exist"),
        (["compare", "photos"], "error: photos has neither test/ nor val/"),
    ],
)
def test_a_mistake_ends_in_one_line(tmp_path: Path, arguments: list[str], line: str) -> None:
    write_photos(tmp_path / "photos", {"red": 3, "blue": 2})
    found = taillift(*arguments, cwd=tmp_path)
    assert found.returncode == 1
    assert line in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1, found.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.*"))


def test_an_interrupted_training_leaves_no_checkpoint_and_says_what_to_do(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", {"red": 20, "blue": 10})
    process = subprocess.Popen(
        [sys.executable, "-m", "taillift", "train", "photos", "--epochs", "100000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FORCE_COLOR": "1"},
    )
    assert process.stdout is not None
    read = ""
    while "Training lift" not in read:
        one = process.stdout.read(1)
        assert one, process.communicate()
        read += one
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("error: training was interrupted and runs/photos/lift-0.safetensors")
    assert "run the same command again" in errors
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file()] == []


def test_from_photos_to_a_classified_one_with_four_commands(tmp_path: Path) -> None:
    """The whole path on the embedded backbone, with colours that it cannot confuse."""
    write_photos(tmp_path / "photos", {"red": 12, "green": 8, "blue": 4}, ("train", "test"))
    trained = taillift("train", "photos", "--epochs", "4", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "runs/photos/lift-0.safetensors" in trained.stdout
    exported = taillift("export", "runs/photos/lift-0.safetensors", "photos", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "merged against unmerged: largest logit difference" in exported.stdout
    assert "unmerged it would have" in exported.stdout
    photo = "photos/test/blue/000.png"
    classified = taillift("classify", "bundles/photos", photo, cwd=tmp_path)
    assert classified.returncode == 0, classified.stderr
    assert "blue" in classified.stdout.replace(photo, "")


def test_a_comparison_shows_every_group_and_keeps_its_rows(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", {"red": 12, "green": 8, "blue": 4}, ("train", "test"))
    found = taillift(
        "compare", "photos", "--methods", "zero-shot,head", "--seeds", "0,1", cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    for word in ("zero-shot", "head only", "one view", "TTE", "overall", "mean-class", "few"):
        assert word in found.stdout
    rows = (tmp_path / "runs/photos/results.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 * 2, "methods, seeds, views"
    assert (tmp_path / "runs/photos/comparison.png").stat().st_size > 10_000
    assert (tmp_path / "runs/photos/head-1.safetensors").exists()
