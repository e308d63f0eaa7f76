"""The training commands as a user runs them, with one line of error if they fail."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from taillift import cli as front_door
from taillift.training.fit.checkpoint import read_metadata
from taillift.training.fit.resume import Resume
from taillift.training.recipe.recipe import FOLDER, NAMES, load_recipe
from taillift.training.train_cli import AUTO_RECIPES
from tests.support.tiny import COLOURS, write_photo, write_photos

SPLITS = ("train", "val", "test")

Ran = tuple[int, str, str]
Run = Callable[..., Ran]


def taillift(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "taillift", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, which is faster; gives exit status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def ran(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["taillift", *arguments])
        with pytest.raises(SystemExit) as raised:
            front_door.main()
        printed = capfd.readouterr()
        return int(raised.value.code or 0), printed.out, printed.err

    return ran


def test_threads_that_wait_for_each_other_sleep_unless_the_user_wants_them_to_spin() -> None:
    """OpenMP says what it has understood when torch loads it."""
    own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for program, variable, expected in (
        ("import taillift.training, torch", {"OMP_DISPLAY_ENV": "verbose"}, "SPINCOUNT = '0'"),
        (
            "import taillift.training, os, sys; print(os.environ, file=sys.stderr)",
            {"OMP_WAIT_POLICY": "ACTIVE"},
            "'OMP_WAIT_POLICY': 'ACTIVE'",
        ),
    ):
        command = [sys.executable, "-c", program]
        ran = subprocess.run(
            command, env=own | variable, capture_output=True, text=True, check=True
        )
        assert expected in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "nowhere"], "error: nowhere"),
        (["train", "photos", "--recipe", "lif"], "error: there is no recipe 'lif' (did you mean"),
        (["train", "photos", "--recipe", "mine.yaml"], "error: recipe mine.yaml cannot be read"),
        (["train", "photos", "--set", "tuners.0.rank=0"], "tuners.0.rank = 0: Input should be gre"),
        (["train", "photos", "--set", "optimiser.tuner_rte=1"], '(did you mean "tuner_rate"?)'),
        (["train", "photos", "--set", "epochs"], "error: 'epochs': write KEY=VALUE"),
        (
            ["train", "photos", "--epochs", "2", "--steps", "9"],
            "epochs and steps each say how long",
        ),
        (["train", "photos", "--effort", "full", "--steps", "9"], "full chooses the number of ste"),
        (["train", "photos", "--batch", "2", "--set", "batch=4"], "--batch and --set batch change"),
        (["train", "photos", "--lr", "0"], "head_rate = 0.0: Input should be greater than 0"),
        (["train", "photos", "--backbone", "ViT-B16:x"], 'did you mean "ViT-B-16'),
        (["train", "photos", "--seed", "-1"], "seed = -1: Input should be greater"),
        (["train", "photos", "--imbalance", "0.5"], "an imbalance ratio of 0.5 is below 1"),
        (["train", "photos", "--out", "photos"], "error: --out photos: end the name in .safeten"),
        (["train", "photos", "--out", "o/lr0.01"], "such as o/lr0.01.safetensors"),
        (["train", "photos", "--out", "there.safetensors"], "there.safetensors exists already: ch"),
        (
            ["train", "photos", "--out", "folder.safetensors", "--replace"],
            "error: folder.safetensors is a folder: name a file",
        ),
        (
            ["train", "photos", "--recipe", "auto", "--seeds", "0,1"],
            "error: --recipe auto trains each recipe once: leave --seeds out",
        ),
        (
            ["train", "photos", "--seeds", "0,1"],
            "error: --seeds and --aim choose on val/ what goes",
        ),
        (
            ["train", "photos", "--recipe", "soup", "--log", "wandb"],
            "makes a soup, which has no cu",
        ),
        (
            ["train", "photos", "--recipe", "soup", "--set", "soup.share=2"],
            "error: soup: soup.share = 2.0: give auto, a number from 0 to 1, or one for each of",
        ),
        (
            ["train", "photos", "--recipe", "auto", "--unlabelled", "photos"],
            "error: --recipe auto takes neither --log nor --unlabelled",
        ),
        (["recipes", "lif"], "error: there is no recipe 'lif' (did you mean \"lift\"?)"),
        (["recipes", "mine.yaml"], "error: recipe mine.yaml cannot be read"),
        (
            ["recipes", "typo.yaml"],
            'error: typo.yaml: there is no field epoch (did you mean "epoch',
        ),
        (["compare", "photos", "--seeds", "a"], "error: --seeds a: give whole numbers such as"),
        (["compare", "photos", "--set", "seed=7"], "error: --set seed: name the seeds with --se"),
        (["compare", "photos", "--recipes", "lift,lit"], "there is no recipe 'lit' (did you mean"),
        (["compare", "photos", "--recipes", "lift,lift"], "lift with seed 0 is asked for twice"),
        (["compare", "photos"], "error: photos has neither test/ nor val/"),
        (
            ["calibrate", "photos", "photos", "--out", "new"],
            "error: photos is not a bundle (it has no",
        ),
        (["export", "absent.safetensors", "photos"], "error: absent.safetensors does not exist"),
        (
            ["train", "photos", "--set", "unlabelled.name=loft"],
            "put them into photos/unlabelled, or pass --unlabelled",
        ),
        (["train", "photos", "--unlabelled", "photos"], "no recipe here uses unlabelled photos"),
        (
            ["train", "photos", "--set", "unlabelled.name=loft", "--unlabelled", "photos/train"],
            "photos/train has no unlabelled photo to use, of 5 that were found",
        ),
        (["train", "photos", "--set", "unlabelled.ratio=3"], "unlabelled needs a name"),
        (
            ["train", "photos", "--set", "unlabelled.name=lofd"],
            'unlabelled.name = lofd (did you mean "loft"?)',
        ),
        (
            [*("train", "photos", "--set", "unlabelled.name=loft", "--set"), "unlabelled.weigth=1"],
            'there is no field unlabelled.weigth (did you mean "weight"?)',
        ),
        (
            [
                *("train", "photos", "--set", "unlabelled.name=ulfine"),
                *("--set", "head.initial.name=class-mean"),
            ],
            "needs class texts: set head.initial.name to text or prototypes",
        ),
    ],
)
def test_a_mistake_ends_in_one_line(
    run: Run, tmp_path: Path, arguments: list[str], line: str
) -> None:
    splits = ("train", "test") if "lift,lift" in arguments else ("train",)
    write_photos(tmp_path / "photos", {"red": 3, "blue": 2}, splits)
    (tmp_path / "there.safetensors").write_text("a checkpoint")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "typo.yaml").write_text("epoch: 3\n")
    status, _, errors = run(*arguments)
    assert status == 1
    assert line in errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.*"))
    assert (tmp_path / "there.safetensors").read_text() == "a checkpoint"
    assert not (tmp_path / "o").exists()


def test_a_line_tells_the_separator_and_columns_of_a_table(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", {"red": 1, "blue": 1})
    rows = ["path;label;who", *(f"photos/train/{name}/000.png;{name};me" for name in COLOURS)]
    (tmp_path / "x.csv").write_text("\n".join(rows[:2] + rows[3:]))
    ran = taillift("compare", "x.csv", cwd=tmp_path)
    line, error = ran.stderr.splitlines()
    assert line == (
        "INFO: x.csv: a table with the columns path, label, separated by semicolons; not used: "
        "'who'"
    )
    assert "neither" in error


@pytest.mark.parametrize("option", ["--method", "--rank", "--head-rate"])
def test_most_fields_of_a_recipe_have_no_options_of_their_own(run: Run, option: str) -> None:
    status, _, errors = run("train", "photos", option, "1")
    assert status == 2
    assert "No such option" in errors


def test_the_recipes_are_listed_with_their_titles(run: Run) -> None:
    status, listed, _ = run("recipes")
    assert status == 0
    assert [line.split(maxsplit=1) for line in listed.splitlines()] == [
        [name, load_recipe(name).title] for name in NAMES
    ]


def test_a_recipe_is_printed_as_a_start_for_ones_own(run: Run, tmp_path: Path) -> None:
    status, printed, _ = run("recipes", "lift")
    assert status == 0
    assert printed == (FOLDER / "lift.yaml").read_text("utf-8")
    (tmp_path / "lift.yaml").write_text(printed)
    assert load_recipe(str(tmp_path / "lift.yaml")) == load_recipe("lift")


def test_a_recipe_with_unlabelled_photos_is_printed_as_a_start(run: Run, tmp_path: Path) -> None:
    status, output, _ = run("recipes", "lift+loft")
    assert status == 0
    (tmp_path / "mine.yaml").write_text(output)
    printed, named = load_recipe(str(tmp_path / "mine.yaml")), load_recipe("lift+loft")
    assert printed.unlabelled == named.unlabelled
    assert printed.tuners == named.tuners


def test_a_recipe_of_ones_own_is_printed_as_it_stands(run: Run, tmp_path: Path) -> None:
    text = "epochs: 3  # few\n"
    (tmp_path / "mine.yaml").write_text(text)
    assert run("recipes", "mine.yaml") == (0, text, "")


def test_a_recipe_of_ones_own_is_trained_with_changes_and_only_once(
    run: Run, tmp_path: Path, tiny_backbone: str
) -> None:
    write_photos(tmp_path / "photos", {"red": 16, "blue": 8})
    fields = {"title": "My own", "tuners": [{"name": "bias"}], "epochs": 9, "batch": 16}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    command = ["train", "photos", "--recipe", "mine.yaml", "--backbone", tiny_backbone]
    command += ["--epochs", "1", "--lr", "0.002", "--imbalance", "4"]
    status, output, errors = run(*command, "--seed", "3")
    assert status == 0, errors
    path = tmp_path / "runs/photos-ir4/mine-ViT-Tiny-Test-tiny-0-3.safetensors"
    assert f"{path.relative_to(tmp_path)}: " in output
    assert re.search(r"[\d,]+ parameters trained on 20 photos of 2 classes, loss \d", output)
    metadata = read_metadata(path)
    assert (metadata.recipe.name, metadata.recipe.title, metadata.recipe.seed) == (
        "mine",
        "My own",
        3,
    )
    assert errors.splitlines()[0].startswith("Training My own on photos-ir4: a")
    rates = metadata.recipe.optimiser.head_rate, metadata.recipe.optimiser.tuner_rate
    assert (metadata.recipe.epochs, rates) == (1, (0.002, 0.002))
    assert metadata.counts == (16, 4)
    assert list((tmp_path / "runs/photos-ir4/tensorboard/mine-ViT-Tiny-Test-tiny-0-3").iterdir())
    status, _, errors = run(*command, "--seed", "3")
    assert (status, "exists already" in errors) == (1, True)
    status, _, errors = run(*command, "--seed", "3", "--replace", "--set", "batch=8")
    assert status == 0, errors
    assert read_metadata(path).recipe.batch == 8


def test_cues_and_the_choice_of_tau_are_told_and_recorded(
    run: Run, tmp_path: Path, tiny_backbone: str
) -> None:
    write_photos(tmp_path / "photos", {"red": 16, "green": 12, "blue": 8}, ("train", "val"))
    command = ["train", "photos", "--backbone", tiny_backbone, "--epochs", "1", "--lr", "0.002"]
    command += ["--set", "loss.tau=auto", "--set", "loss.cues={gate: 0}", "--out", "a.safetensors"]
    status, output, errors = run(*command)
    assert status == 0, errors
    metadata = read_metadata(tmp_path / "a.safetensors")
    tau = metadata.recipe.chosen_tau
    assert f"; answers with tau = {tau:g}, trained with 1" in output
    assert f"tau = {tau:g} by val/: mean-class " in errors
    assert "cues are on: a gate of 0 is always open\n" in errors
    written = yaml.safe_load((tmp_path / "a.safetensors.yaml").read_text("utf-8"))
    assert written["recipe"]["loss"]["chosen"] == tau
    assert written["record"]["cues"]["on"]


def test_checkpoints_with_dots_keep_apart_from_each_other_and_from_their_recipe(
    run: Run, tmp_path: Path, tiny_backbone: str
) -> None:
    write_photos(tmp_path / "photos", {"red": 3, "blue": 2})
    (tmp_path / "lr0.01.yaml").write_text("epochs: 0\n")
    for name in ("lr0.01", "lr0.02"):
        command = ["train", "photos", "--recipe", "lr0.01.yaml", "--backbone", tiny_backbone]
        status, _, errors = run(*command, "--out", f"{name}.safetensors")
        assert status == 0, errors
    assert (tmp_path / "lr0.01.yaml").read_text() == "epochs: 0\n"
    assert {path.name for path in tmp_path.iterdir()} == {
        *("photos", "tensorboard", "lr0.01.yaml"),
        *("lr0.01.safetensors", "lr0.01.safetensors.yaml"),
        *("lr0.02.safetensors", "lr0.02.safetensors.yaml"),
    }
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {"lr0.01", "lr0.02"}


def test_an_interrupted_training_leaves_no_checkpoint_and_says_what_to_do(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", {"red": 20, "blue": 10})
    process = subprocess.Popen(
        [sys.executable, "-m", "taillift", "train", "photos", "--set", "epochs=100000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FORCE_COLOR": "1"},
    )
    assert process.stdout is not None
    read = ""
    while "Training LIFT" not in read:
        character = process.stdout.read(1)
        assert character, process.communicate()
        read += character
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "\nerror: training was interrupted and runs/photos/lift-0.safetensors" in errors
    assert "run the same command again to continue" in errors
    assert list((tmp_path / "runs").rglob("lift-0.safetensors")) == []
    assert {path.name for path in (tmp_path / "runs/photos").iterdir()} <= {
        "lift-0.safetensors.resume",
        "tensorboard",
    }


def test_from_photos_to_a_classified_one_with_a_few_commands(tmp_path: Path) -> None:
    """Go the whole way on the default backbone, with colours that it cannot confuse."""
    write_photos(tmp_path / "photos", {"red": 12, "green": 8, "blue": 4}, SPLITS)
    few = ["--set", "epochs=4", "--set", "blocks=1", "--set", "augmentation.copies=2"]
    trained = taillift("train", "photos", *few, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "runs/photos/lift-0.safetensors" in trained.stdout
    exported = taillift("export", "runs/photos/lift-0.safetensors", "photos", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "merged against unmerged: largest logit difference" in exported.stdout
    assert "fp32: photos test, 6 photos: mean-class accuracy" in exported.stdout
    command = ["calibrate", "bundles/photos", "photos", "--out", "bundles/again"]
    calibrated = taillift(*command, cwd=tmp_path)
    assert calibrated.returncode == 0, calibrated.stderr
    assert exported.stdout.endswith(calibrated.stdout.replace("bundles/again", "bundles/photos"))
    photo = "photos/test/blue/000.png"
    classified = taillift("classify", "bundles/photos", photo, cwd=tmp_path)
    assert classified.returncode == 0, classified.stderr
    assert "blue" in classified.stdout.replace(photo, "")


def test_photos_of_several_sources_are_trained_on_and_belong_to_the_run(
    run: Run, tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run continues with the same sources alone, and `export` needs them, too."""
    write_photos(tmp_path / "photos", {"red": 8, "green": 6}, ("train", "test"))
    for index in range(4):
        write_photo(tmp_path / f"more/train/blue/{index}.png", COLOURS["blue"], 600 + index)
    command = ["train", "photos", "--recipe", "head", "--backbone", tiny_backbone, "--epochs", "2"]
    added = [*command, "--add", "more"]
    write = Resume.write

    def killed(resume: Resume, *state: Any) -> None:
        write(resume, *state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Resume, "write", killed)
        assert "training was interrupted" in run(*added)[2]
    path = tmp_path / "runs/photos+more/head-ViT-Tiny-Test-tiny-0-0.safetensors"
    status, _, errors = run(*command, "--out", str(path))
    assert (status, "run with another recipe, other photos" in errors) == (1, True)
    status, output, errors = run(*added)
    assert status == 0, errors
    assert "trained on 18 photos of 3 classes" in output
    metadata = read_metadata(path)
    assert (metadata.data, metadata.classes) == ("photos", ("red", "green", "blue"))
    assert (metadata.added, metadata.counts) == (("more",), (8, 6, 4))
    assert len(metadata.record.losses) == 2

    status, _, errors = run("export", str(path), "photos", "--no-calibration")
    assert status == 1
    assert "other photos (photos+more, 3 classes, 18 photos) than those of photos: " in errors
    shutil.copy(tmp_path / "photos/test/red/000.png", tmp_path / "more/train/blue/leak.png")
    status, _, errors = run(*added, "--replace")
    assert (status, "leak.png is also in test" in errors) == (1, True)


def test_unlabelled_photos_next_to_train_are_used_and_exported_with(
    run: Run, tmp_path: Path, tiny_backbone: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without val/, the export trains again, for which it needs them, too."""
    photos = write_photos(tmp_path / "photos", {"red": 8, "green": 6, "blue": 4}, ("train", "test"))
    for index in range(20):
        colour = ("red", "green")[index % 2]
        write_photo(photos / f"unlabelled/shoot/{index}.png", COLOURS[colour], 500 + index)
    shutil.copy(photos / "test/red/000.png", photos / "unlabelled/leak.png")
    command = ["train", "photos", "--backbone", tiny_backbone, "--epochs", "2", "--batch", "6"]
    command += ["--set", "unlabelled.name=ulfine", "--set", "unlabelled.ratio=2"]
    command += ["--set", "unlabelled.threshold=0.3", "--out", "run.safetensors"]
    status, _, errors = run(*command)
    assert status == 0, errors
    assert "1 unlabelled photos are also in val or test and are left out" in caplog.text
    metadata = read_metadata(tmp_path / "run.safetensors")
    assert len(metadata.record.pseudo_labels) == 2
    assert metadata.pool_sha256
    told = yaml.safe_load((tmp_path / "run.safetensors.yaml").read_text())
    assert told["record"]["pseudo_labels"][1]["seen"] == 3 * 12

    shutil.move(photos / "unlabelled", tmp_path / "pool")
    export = ["export", "run.safetensors", "photos", "--out", "bundle"]
    status, _, errors = run(*export)
    assert status == 1
    assert "error: the recipe uses unlabelled photos" in errors
    assert not (tmp_path / "bundle").exists()
    status, output, errors = run(*export, "--unlabelled", "pool")
    assert status == 0, errors
    assert "bundle photos" in output


def test_a_comparison_shows_what_unlabelled_photos_and_what_right_labels_bring(
    run: Run, tmp_path: Path, tiny_backbone: str
) -> None:
    write_photos(tmp_path / "photos", {"red": 8, "green": 6, "blue": 4}, ("train", "test"))
    rows = ["path,label"]
    for index in range(20):
        colour = ("red", "green", "blue")[index % 3]
        write_photo(tmp_path / f"pool/{index}.png", COLOURS[colour], 500 + index)
        rows.append(f"pool/{index}.png,{colour}")
    (tmp_path / "pool.csv").write_text("\n".join(rows))
    (tmp_path / "nine.yaml").write_text("unlabelled: {name: right-labels, photos: 9}\nbatch: 6\n")
    command = ["compare", "photos", "--backbone", tiny_backbone, "--unlabelled", "pool.csv"]
    command += ["--recipes", "zero-shot,head,head+loft,nine.yaml", "--epochs", "2", "--batch", "6"]
    status, _, errors = run(*command, "--set", "unlabelled.weigth=2")
    assert status == 1
    assert 'there is no field unlabelled.weigth (did you mean "weight"?)' in errors
    status, output, _ = run(*command)
    assert status == 1
    assert "takes 42 unlabelled photos and there are 20" in output
    fields = ["--set", "unlabelled.threshold=0.2", "--set", "unlabelled.ratio=2"]
    status, output, errors = run(*command, *fields)
    assert status == 0, errors
    for part in (
        "head only, loft",
        "nine",
        "3 of 4 runs were finished before",
        "pseudo-labels for",
    ):
        assert part in output
    folder = tmp_path / "runs/photos"
    taught = read_metadata(folder / "head+loft-0.safetensors")
    assert taught.record.pseudo_labels[-1].groups["few"].judged > 0
    right = read_metadata(folder / "nine-0.safetensors")
    assert sum(right.counts) == sum(taught.counts) + 9
    assert right.record.pseudo_labels == ()


def test_a_comparison_shows_every_group_and_keeps_its_rows(
    run: Run, tmp_path: Path, tiny_backbone: str
) -> None:
    write_photos(tmp_path / "photos", {"red": 22, "green": 8, "blue": 4}, ("train", "test"))
    command = ["compare", "photos", "--backbone", tiny_backbone, "--recipes", "zero-shot,lora,full"]
    command += ["--set", "epochs=1", "--set", "augmentation.copies=2"]
    status, output, errors = run(*command, "--seeds", "0")
    assert status == 0, errors
    for word in ("zero-shot", "LoRA", "full, SGD", "one", "five", "overall", "mean", "few"):
        assert word in output
    assert "[3/3]" in output
    status, output, errors = run(*command, "--seeds", "0,1")
    assert status == 0, errors
    assert "3 of 6 runs were finished before" in output
    folder = tmp_path / "runs/photos"
    rows = (folder / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 2 * 2, "recipes, seeds, views"
    assert (folder / "lora-1.safetensors").exists()
    assert read_metadata(folder / "zero-shot-0.safetensors").recipe.epochs == 0, (
        "whatever --set says"
    )
    page = (folder / "report.html").read_text()
    assert "Does heavy fine-tuning hurt the tail here?" in page
    assert "taillift compare photos" in page
    assert "--seeds 0,1" in page
    for name in ("groups.png", "parameters.png", "tail.png", "tau.png", "results.md"):
        assert (folder / name).exists()


def test_a_comparison_with_a_failed_run_says_so_and_shows_the_others(
    run: Run, tmp_path: Path, tiny_backbone: str
) -> None:
    write_photos(tmp_path / "photos", {"red": 8, "blue": 4}, ("train", "test"))
    command = ["compare", "photos", "--backbone", tiny_backbone, "--out", "found"]
    wild = ["--set", "epochs=2", "--set", "head.kind=linear", "--set", "augmentation.copies=2"]
    wild += ["--set", "optimiser.head_rate=1e38", "--set", "optimiser.tuner_rate=1e38"]
    status, output, errors = run(*command, *wild, "--recipes", "zero-shot,full")
    assert status == 1
    assert errors.splitlines()[-1].startswith("error: 1 of 2 runs failed, for the reasons above")
    everything = (
        "results.csv, tau.csv, results.md, groups.png, parameters.png, tail.png, report.html"
    )
    assert " ".join(output.split()).endswith(f" found holds {everything}")
    assert all((tmp_path / "found" / name).exists() for name in everything.split(", "))
    status, output, errors = run(*command, *wild, "--recipes", "full")
    assert status == 1
    assert errors.splitlines()[-1].startswith("error: 1 of 1 runs failed")
    assert output.endswith("\nfound holds results.csv, tau.csv, results.md\n")
    assert {path.name for path in (tmp_path / "found").iterdir()} == {
        *("results.csv", "tau.csv", "results.md", "full-0.json", "zero-shot-0.json"),
        *("zero-shot-0.safetensors", "zero-shot-0.safetensors.yaml"),
    }, "nothing drawn is left of the earlier comparison"


def test_backbones_are_listed_described_and_written_as_json(run: Run) -> None:
    status, out, _ = run("backbones", "RN50")
    assert (status, out.splitlines()[0]) == (0, "RN50")
    assert "tags that use QuickGELU: openai, yfcc15m, cc12m" in out
    status, out, _ = run("backbones", "timm:vit_small_patch14")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(
        r"^timm:vit_small_patch14_reg4_dinov2 +518 +384 +12 +22 M +1 plain$", out, re.M
    )
    entries = {entry["name"]: entry for entry in json.loads(run("backbones", "swin", "--json")[1])}
    assert not entries["swin_base_patch4_window7_224"]["works"]
    assert "SwinTransformer" in entries["swin_base_patch4_window7_224"]["reason"]


def test_an_unknown_architecture_is_one_line(run: Run) -> None:
    status, out, error = run("backbones", "ViT-Q-99")
    assert (status, out) == (1, "")
    assert error.startswith("error: there is no architecture 'ViT-Q-99'")
    assert error.count("\n") == 1


def test_auto_keeps_the_soup_of_four_recipes_if_it_may_be_the_best(
    run: Run, tmp_path: Path, tiny_backbone: str
) -> None:
    write_photos(tmp_path / "photos", {"red": 8, "green": 4}, ("train", "val"))
    command = ["train", "photos", "--recipe", "auto", "--backbone", tiny_backbone]
    short = ("--epochs", "1", "--set", "augmentation.copies=2", "--set", "soup.new_head=false")
    status, output, errors = run(*command, *short)
    assert status == 0, errors
    # Another backbone is named in the file, as for a recipe.
    (path,) = tmp_path.glob("runs/photos/auto-*-0.safetensors")
    assert output.startswith(f"{path.relative_to(tmp_path)}: Take soup: ")
    outcomes = path.with_suffix("").glob("*.json")
    assert {path.stem for path in outcomes} == {f"{name}-0" for name in AUTO_RECIPES}
    assert read_metadata(path).recipe.name == "soup"
    status, _, errors = run(*command)
    assert status == 1
    assert "exists already" in errors
