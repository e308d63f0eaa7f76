"""The training benchmark's output, without the measurement."""

import argparse
from pathlib import Path

import pytest

from benchmarks import training
from benchmarks.training import WAYS


def test_the_results_follow_the_command_and_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
        return dict(zip(WAYS, (2.0, 4.0, 2.5), strict=True)), dict.fromkeys(WAYS, 1.75)

    out = tmp_path / "training.md"
    monkeypatch.setattr(training, "interleaved", measured)
    monkeypatch.setattr("sys.argv", ["benchmarks/training.py", "--batch", "4", "--out", str(out)])
    training.main()
    lines = out.read_text("utf-8").splitlines()
    assert lines[0].startswith("`python -m benchmarks.training --batch 4 --out training.md` on ")
    assert lines[2].startswith("ViT-B-16, batch 4, fp32, ")
    assert lines[-2:] == [
        "| full fine-tuning | 4.00 | 0.50 | 1.8 |",
        "| AdaptFormer on open_clip's blocks, by hooks | 2.50 | 0.80 | 1.8 |",
    ]
