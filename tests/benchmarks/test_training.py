"""The training benchmark's output, without the measurement."""

import argparse
from pathlib import Path

import pytest

from benchmarks import training
from benchmarks.training import ROOT, WAYS, Comparison


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


def test_comparisons_take_turns_and_their_weights_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []

    def run(self: Comparison, data: str, recipes: str) -> tuple[float, str]:
        turns.append(self.name)
        assert (data, recipes) == ("wardrobe-lt", "zero-shot,head,lift")
        ours = self.root == ROOT
        return 10.0 * len(turns) if ours else 100.0, "ours" if ours else "theirs"

    monkeypatch.setattr(Comparison, "run", run)
    command = f"training.py --compare wardrobe-lt --against {tmp_path} --rounds 2 --busy 1"
    monkeypatch.setattr("sys.argv", [*command.split(), "--out", str(tmp_path / "out.md")])
    training.main()
    lines = (tmp_path / "out.md").read_text("utf-8").splitlines()
    assert len(turns) == 1 + 2 * 2 * 4, "one fills the cache; four ways, alone and not, twice"
    assert turns[1:5] == turns[5:9]
    assert lines[-1].endswith("the same to the bit.")
    assert "| without a cache | 60 | 0.60 | 20 100 |" in lines
    assert "| the other checkout, next to 1 busy processes | 100 | 1.00 | 100 100 |" in lines
