"""Lines of progress, and durations in words."""

import pytest

from taillift.training import console
from taillift.training.console import ProgressLines, duration, steps_bar, track


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "a few seconds"),
        (9.9, "a few seconds"),
        (44, "about 40 s"),
        (89, "about 90 s"),
        (90, "about 2 min"),
        (3_600, "about 60 min"),
        (9_000, "about 2.5 h"),
    ],
)
def test_durations_are_told_no_more_exactly_than_they_are_known(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_without_a_terminal_items_pass_and_lines_tell_how_far_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    assert list(track("abc", "Reading", 3)) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == "", "the output is left to results"
    assert err.splitlines() == [
        "Reading: 1 of 3, a few seconds left",
        "Reading: 2 of 3, a few seconds left",
    ]


def test_short_work_writes_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    list(track("abc", "Reading", 3))
    assert capsys.readouterr().err == ""


def test_other_processes_write_no_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    monkeypatch.setenv("RANK", "1")
    list(track("abc", "Reading", 3))
    assert capsys.readouterr().err == ""


def test_the_steps_of_an_interrupted_run_do_not_count_as_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("taillift.training.console.time.monotonic", lambda: now[0])
    lines = ProgressLines("Training", 1_000, done=500)
    now[0] += 60
    lines.update(500)
    assert capsys.readouterr().err == "", "nothing is known of the speed yet"
    lines.update(600, "loss 1.234")
    assert capsys.readouterr().err == "Training: 600 of 1,000, loss 1.234, about 4 min left\n"


def test_a_bar_on_a_terminal_begins_without_a_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with steps_bar("Training", 2, 0) as show:
        show(1, "loss 0.500")
        show(2, "loss 0.250")
    printed = capsys.readouterr().out
    assert "loss 0.250" in printed
    assert "nan" not in printed
