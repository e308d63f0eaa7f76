"""Curves go to TensorBoard's files and, if asked for, to wandb and mlflow."""

import importlib.util
from pathlib import Path

import pytest

from taillift.models.errors import UserError
from taillift.training.fit.progress import Curves, Log, require_installed


def test_a_log_without_its_package_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"--log wandb needs a package: run pip install 'taillift"):
        require_installed([Log.TENSORBOARD, Log.WANDB])
    require_installed([Log.TENSORBOARD])


def test_a_continued_run_goes_on_in_the_same_run_of_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    folder = tmp_path / "lift-0"
    with Curves(folder, 0, [Log.MLFLOW], {"epochs": 2}) as curves:
        curves.add(0, {"loss/step": 2.0, "rate/head": 0.1})
    with Curves(folder, 1, [Log.MLFLOW]) as curves:
        curves.add(1, {"loss/step": 1.0})
    with Curves(folder, 0, [Log.MLFLOW]) as curves:
        curves.add(0, {"loss/step": 3.0})
    runs = mlflow.search_runs(experiment_names=["taillift"], output_format="list")
    client = mlflow.MlflowClient()
    losses = [
        [
            (point.step, point.value)
            for point in client.get_metric_history(run.info.run_id, "loss/step")
        ]
        for run in runs
    ]
    assert sorted(losses) == [[(0, 2.0), (1, 1.0)], [(0, 3.0)]]
    assert {run.info.run_name for run in runs} == {"lift-0"}


def test_wandb_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    folder = tmp_path / "lift-0"
    with Curves(folder, 0, [Log.WANDB], {"epochs": 2}) as curves:
        curves.add(0, {"loss/step": 2.0})
        curves.add(1, {"loss/epoch": 1.5})
    run = (folder / "wandb-run.txt").read_text("utf-8")
    (written,) = tmp_path.glob(f"wandb/offline-run-*-{run}/run-{run}.wandb")
    content = written.read_bytes()
    assert b"loss/step" in content
    assert b"loss/epoch" in content
