from functools import cache
from math import comb, exp, log
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from taillift.models.bundle.version_store import VersionStore
from taillift.models.duel import LEVEL, Duel, Tally, judge_duel, read_duel
from taillift.models.errors import UserError
from taillift.models.versions_cli import app
from tests.support.palette import CLASSES, palette_manifest

LABELS = list(CLASSES)
LABEL_GROUPS = [info.group for info in palette_manifest("", {}).classes]


@cache
def in_one_group(wins: int, losses: int) -> Duel:
    groups = {"many": Tally(wins, losses), "medium": Tally(), "few": Tally()}
    return judge_duel(groups, wins + losses)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 0), (0, 3), (5, 2), (40, 35)])
def test_the_e_value_is_the_mixture_over_the_share_of_wins(wins: int, losses: int) -> None:
    shares = (np.arange(200_000) + 0.5) / 400_000 + 0.5
    mixture = np.mean((2 * shares) ** wins * (2 - 2 * shares) ** losses)
    assert Tally(wins, losses).evidence == pytest.approx(log(mixture), abs=1e-4)


def test_a_fair_coin_gains_nothing_in_the_mean() -> None:
    """The mean over all outcomes of ten labels is one: no evidence can be expected."""
    mean = sum(comb(10, wins) / 2**10 * exp(Tally(wins, 10 - wins).evidence) for wins in range(11))
    assert mean == pytest.approx(1)


def first_decision(share: float, labels: int, random: np.random.Generator) -> tuple[str, int]:
    """Look after every label until there is a decision, and return it with the labels it took."""
    wins = 0
    for count, won in enumerate(random.random(labels) < share, 1):
        wins += bool(won)
        duel = in_one_group(wins, count - wins)
        if duel.decision != "undecided":
            return duel.decision, count
    return "undecided", labels


def test_of_equal_models_at_most_the_level_is_promoted_however_often_one_looks() -> None:
    random = np.random.default_rng(0)
    decisions = [first_decision(0.5, 200, random)[0] for _ in range(1000)]
    assert 0 < decisions.count("promote") <= LEVEL * 1000
    assert decisions.count("discard") <= 2 * LEVEL * 1000


def test_a_challenger_that_wins_two_thirds_is_found_within_a_hundred_labels() -> None:
    random = np.random.default_rng(0)
    found = [first_decision(0.65, 400, random) for _ in range(100)]
    promoted = sorted(count for decision, count in found if decision == "promote")
    assert len(promoted) > 95
    assert 50 <= promoted[len(promoted) // 2] <= 100


def test_photos_that_were_chosen_more_often_weigh_as_little_as_they_stand_for() -> None:
    """Both are right equally often, but rare answers of the champion are copied 20 times as often.

    So 95 % of the labels are of photos on which the champion is right.
    """
    random, chosen = np.random.default_rng(0), 0.05
    losses = random.binomial(300, 1 / (1 + chosen), 300)
    plain, weighted = (
        [
            judge_duel({"few": Tally.of_stakes(rows)}, 300).decision
            for rows in ([(stake, 0, lost), (1.0, 300 - lost, 0)] for lost in losses.tolist())
        ]
        for stake in (1.0, chosen)
    )
    assert plain.count("discard") == 300
    assert weighted.count("promote") + weighted.count("discard") <= 0.1 * 300
    # 285 photos of a stake of 0.05 are as much as 14 that were not chosen, so 60 of these decide.
    better = Tally.of_stakes([(chosen, 0, 285), (1.0, 60, 0)])
    assert judge_duel({"few": better}, 345).decision == "promote"


def test_a_group_that_got_worse_prevents_a_promotion() -> None:
    groups = {"many": Tally(60, 5), "medium": Tally(20, 4), "few": Tally(0, 12)}
    duel = judge_duel(groups, 200)
    assert duel.decision == "discard"
    assert duel.reason == "it is right less often among photos of few-shot classes"
    assert judge_duel({**groups, "few": Tally(1, 2)}, 200).decision == "promote"


def test_an_open_verdict_says_how_many_labels_are_missing() -> None:
    assert in_one_group(14, 6).reason.startswith("about ")
    assert "too few, or too even" in in_one_group(3, 2).reason
    assert "too few, or too even" in in_one_group(50, 50).reason


def test_a_file_counts_only_photos_on_which_one_of_the_two_is_right(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(
        "photo,label,champion,challenger\n"
        "a,black,white,black\n"
        "b,red,red,red\n"
        "c,red,red,green\n"
        "d,red,blue,green\n"
        "e,white,cyan,a class of the challenger only\n"
    )
    duel = read_duel(file, LABELS, LABEL_GROUPS)
    assert duel.labels == 5
    assert duel.groups == {"many": Tally(0, 1), "medium": Tally(), "few": Tally(1, 0)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label,champion\n", "has no column challenger"),
        ("label,champion,challenger\nrd,red,red\n", "line 2: 'rd' is not a class"),
        ("label,champion,challenger\nred\n", None),
    ],
)
def test_a_file_that_is_not_one_is_refused_in_one_line(
    tmp_path: Path, text: str, words: str | None
) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    if words is None:
        assert read_duel(file, LABELS, LABEL_GROUPS).overall == Tally()
        return
    with pytest.raises(UserError, match=words):
        read_duel(file, LABELS, LABEL_GROUPS)


def test_the_command_prints_the_verdict(tmp_path: Path, bundle: Path) -> None:
    store = VersionStore.at(tmp_path / "store")
    store.promote(store.add(bundle))
    file = tmp_path / "labels.csv"
    file.write_text("label,champion,challenger\n" + "red,green,red\n" * 12)
    result = CliRunner().invoke(app, ["verdict", str(store.folder), str(file)])
    assert result.exit_code == 0
    assert "many: the challenger alone right 12, the champion alone 0" in result.stdout
    assert "promote: it is right more often" in result.stdout
