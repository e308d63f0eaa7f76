import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from taillift.training.comparison.outcome import Outcome
from taillift.training.report.comparison import FIGURES, write_report
from tests.support.outcomes import FAILED, dataset_of, failed, outcome_of, tail_of, with_curve

COUNTS = tail_of(17)
MEANS = {"zero-shot": 40.0, "head": 50.0, "lift": 65.0, "lora": 60.0, "full": 45.0}


def outcomes_of(seeds: int = 3) -> list[Outcome]:
    return [
        outcome_of(name, seed, [rate + seed] * 17, COUNTS)
        for seed in range(seeds)
        for name, rate in MEANS.items()
    ]


class Words(HTMLParser):
    """A page's text, and the addresses that it refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_holds_everything_and_fetches_nothing(tmp_path: Path) -> None:
    write_report(tmp_path, dataset_of(COUNTS), outcomes_of(), "taillift compare made-up")
    page = (tmp_path / "report.html").read_text("utf-8")
    words_of_page = Words(page)
    assert len(words_of_page.sources) == len(FIGURES)
    assert all(source.startswith("data:image/png;base64,") for source in words_of_page.sources)
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    for words in (
        *("zero-shot", "head only", "LIFT", "LoRA", "full, SGD", "85.1 M"),
        *(
            "taillift compare made-up",
            "a machine, 2 cores and 2 a GPU, 2 processes",
            "sha256 cdcdcdcdcdcd",
        ),
        *("taillift 0.1.0, torch 2.13.0, commit efefefefefef with changes", "bf16"),
        *("17 classes (6 many, 5 medium, 6 few)", "measured on 1,234 others", "0, 1, 2"),
    ):
        assert words in words_of_page.text
    assert "$" not in words_of_page.text, "no name of the template is left"
    for name in (*FIGURES, "results.md"):
        assert (tmp_path / name).stat().st_size > 300
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def test_figures_and_answer_show_every_recipe_though_titles_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    plain = Figure.savefig

    def savefig(self: Figure, *rest: Any, **more: Any) -> None:
        drawn.append(self)
        plain(self, *rest, **more)

    monkeypatch.setattr(Figure, "savefig", savefig)
    names = {"zero-shot": "zero-shot", "lora": "mine", "lift": "lift", "full": "heavy"}
    outcomes = [
        entitled(outcome, names[outcome.recipe.name])
        for outcome in outcomes_of()
        if outcome.recipe.name in names
    ]
    write_report(tmp_path, dataset_of(COUNTS), outcomes, "")
    groups, parameters, tail = (figure.axes for figure in drawn)
    labels = {f"a title ({name})" for name in names.values()}
    assert {label.get_text() for label in groups[0].get_yticklabels()} == labels
    assert labels <= {text.get_text() for text in parameters[0].texts}
    lines = {line.get_label(): line.get_ydata() for line in tail[1].lines}
    for name, rate in (("zero-shot", 41.0), ("lift", 66.0), ("heavy", 46.0)):
        assert lines[f"a title ({name})"] == pytest.approx([rate] * 17), name
    text = Words((tmp_path / "report.html").read_text("utf-8")).text
    assert "a title (heavy) is 20.0 points worse than a title (lift)" in text


def entitled(outcome: Outcome, name: str, title: str = "a title") -> Outcome:
    recipe = outcome.recipe.model_copy(update={"name": name, "title": title})
    return outcome.model_copy(update={"recipe": recipe})


def test_the_papers_question_is_answered_in_words(tmp_path: Path) -> None:
    write_report(tmp_path, dataset_of(COUNTS), outcomes_of(), "")
    text = Words((tmp_path / "report.html").read_text("utf-8")).text
    assert "Does heavy fine-tuning hurt the tail here? Yes." in text
    assert (
        "full, SGD is 20.0 points worse than LIFT on few-shot classes "
        "(95 % interval -20.0 to -20.0)."
    ) in text


def test_a_failed_run_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    outcomes = [
        failed(outcome) if outcome.recipe.name == "full" else outcome for outcome in outcomes_of()
    ]
    write_report(tmp_path, dataset_of(COUNTS), outcomes, "")
    text = Words((tmp_path / "report.html").read_text("utf-8")).text
    assert f"full, SGD, seed 0, failed: {FAILED}" in text
    assert "Does heavy fine-tuning hurt" not in text, "nothing at hand answers it"
    assert "full, SGD - - - - - - - -" in text


def test_captions_name_only_what_is_drawn(tmp_path: Path) -> None:
    outcomes = [one for one in outcomes_of(1) if one.recipe.name in ("zero-shot", "lift")]
    write_report(tmp_path, dataset_of(COUNTS), outcomes, "")
    text = Words((tmp_path / "report.html").read_text("utf-8")).text
    assert "Grey squares: nothing in the tower; purple dots: small tuners." in text
    assert "triangles" not in text
    assert "standard deviations" not in text, "one seed has none"


def test_if_all_failed_the_reasons_are_left_and_nothing_older(tmp_path: Path) -> None:
    written = write_report(tmp_path, dataset_of(COUNTS), outcomes_of(1), "")
    assert {path.name for path in tmp_path.iterdir()} == set(written)
    gone = [failed(outcome) for outcome in outcomes_of(1)]
    assert write_report(tmp_path, dataset_of(COUNTS), gone, "") == ["results.md"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.md"]
    assert (tmp_path / "results.md").read_text().count(FAILED) == len(MEANS)


@pytest.mark.parametrize("names", [["lift"], ["zero-shot"], ["full", "lora"], ["head", "lift"]])
def test_any_choice_of_recipes_makes_a_report(tmp_path: Path, names: list[str]) -> None:
    outcomes = [outcome for outcome in outcomes_of(1) if outcome.recipe.name in names]
    write_report(tmp_path, dataset_of(COUNTS), outcomes, "")
    assert (tmp_path / "report.html").exists()


def test_names_and_commands_are_shown_as_they_are(tmp_path: Path) -> None:
    """Names and titles may hold characters with a meaning in HTML or in a formula."""
    dataset = dataset_of(COUNTS, "a<b> & $c")
    command = "taillift compare 'x<y' --set title='<b>$1 & more</b>'"
    outcomes = [entitled(outcomes_of(1)[0], "zero-shot", "<i>$x_1^ & y")]
    write_report(tmp_path, dataset, outcomes, command)
    page = (tmp_path / "report.html").read_text("utf-8")
    text = Words(page).text
    assert "Fine-tuning recipes compared on a<b> & $c" in text
    assert command in text
    assert "<i>$x_1^ & y" in text
    assert not re.search(r"<[bi]>", page)


def test_curves_along_tau_are_drawn_and_go_with_their_runs(tmp_path: Path) -> None:
    few = [10.0 * step for step in range(9)]
    means = {"zero-shot": 20.0, "lift": 60.0, "full": 62.0}
    outcomes = [
        with_curve(outcome, few, [mean - share / 10 for share in few])
        for outcome in outcomes_of(1)
        if (mean := means.get(outcome.recipe.name))
    ]
    written = write_report(tmp_path, dataset_of(COUNTS), outcomes, "")
    assert "tau.png" in written
    assert (tmp_path / "tau.png").stat().st_size > 300
    text = Words((tmp_path / "report.html").read_text("utf-8")).text
    assert "full, SGD 62.0 / 0.0 61.0 / 10.0 60.0 / 20.0 59.0 / 30.0 58.0 / 40.0" in text
    assert "54.0 / 80.0 +2.0" in text
    assert "52.0 / 80.0 -2.0" in text
    before = [outcome.model_copy(update={"tau_curve": ()}) for outcome in outcomes]
    assert "tau.png" not in write_report(tmp_path, dataset_of(COUNTS), before, "")
    assert not (tmp_path / "tau.png").exists()
    assert "Along" not in Words((tmp_path / "report.html").read_text("utf-8")).text
