"""Which of two models is right where they differ, by labels: a verdict that may be asked for daily.

The evidence is an e-value, so its error level holds however often one looks (Ville 1939; Shafer
2021).
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from pathlib import Path
from typing import Final, Literal

import numpy as np

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.schema import GROUPS
from taillift.models.errors import UserError
from taillift.models.names import index_of_name, indices_by_name

# The share of equal models that are promoted, and of those that are discarded, at most.
LEVEL: Final = 0.05
COLUMNS: Final = ("label", "champion", "challenger")
# The midpoints of equal parts of the interval from 0 to 1.
BETS: Final = (np.arange(1_000) + 0.5) / 1_000


@dataclass(frozen=True)
class Tally:
    """Photos on which the challenger alone is right (`wins`), or the champion alone (`losses`).

    `stakes` has both by the stake of the photos, above 0 to 1: c / p for those that were chosen
    with the probability p, with c no larger than any p. Without it, every photo has the stake 1.
    """

    wins: int = 0
    losses: int = 0
    stakes: Mapping[float, tuple[int, int]] | None = None

    @classmethod
    def of_stakes(cls, rows: Iterable[tuple[float, int, int]]) -> "Tally":
        """Return the tally of rows, each a stake with the wins and losses at this stake."""
        stakes: dict[float, tuple[int, int]] = {}
        for stake, wins, losses in rows:
            before = stakes.get(stake, (0, 0))
            stakes[stake] = before[0] + wins, before[1] + losses
        wins, losses = (sum(pair[side] for pair in stakes.values()) for side in (0, 1))
        return cls(wins, losses, None if stakes.keys() <= {1.0} else stakes)

    @property
    def rows(self) -> list[tuple[float, int, int]]:
        """The wins and losses at each stake."""
        if self.stakes is None:
            return [(1.0, self.wins, self.losses)]
        return [(stake, *pair) for stake, pair in self.stakes.items()]

    @property
    def evidence(self) -> float:
        """Logarithm of the e-value that the challenger is right more often."""
        return log_e_value(self.rows)

    @property
    def evidence_against(self) -> float:
        """Logarithm of the e-value that the champion is right more often."""
        return log_e_value([(stake, losses, wins) for stake, wins, losses in self.rows])


@dataclass(frozen=True)
class Duel:
    """The verdict, with the tallies that it rests on; `labels` counts all photos with a label."""

    decision: Literal["promote", "discard", "undecided"]
    reason: str
    overall: Tally
    groups: Mapping[str, Tally]
    labels: int


def log_e_value(rows: Iterable[tuple[float, int, int]]) -> float:
    """Return the logarithm of the e-value that wins are more likely than losses.

    `rows` are a stake s, the wins and the losses at this stake. The e-value is the mean over bets
    b, uniform from 0 to 1, of the wealth (1 + b s)^wins (1 - b s)^losses. If wins and losses are
    equally frequent among all photos, and s is c / p for those that were chosen with the
    probability p, no bet gains on average (Waudby-Smith and Ramdas 2024).
    """
    wealth = log_wealth(rows)
    most = float(wealth.max())
    return most + log(float(np.exp(wealth - most).mean()))


def log_wealth(rows: Iterable[tuple[float, int, int]]) -> Doubles:
    """Return the logarithms of the wealth of `BETS`, [B]."""
    wealth = np.zeros(len(BETS))
    for stake, wins, losses in rows:
        if wins or losses:
            wealth += wins * np.log1p(BETS * stake) + losses * np.log1p(-BETS * stake)
    return wealth


def judge_duel(groups: Mapping[str, Tally], labels: int) -> Duel:
    """Return the verdict on the tallies of each group.

    The challenger is promoted if it is right more often overall, and in no group less often; it is
    discarded if it is right less often overall or in any group. Over the groups, the false
    discovery rate is bounded (e-BH; Wang and Ramdas 2022).
    """
    overall = Tally.of_stakes(row for tally in groups.values() for row in tally.rows)
    threshold = -log(LEVEL)
    hurt = worse_groups(groups)
    if hurt:
        reason = f"it is right less often among photos of {' and '.join(hurt)}-shot classes"
        return Duel("discard", reason, overall, groups, labels)
    if overall.evidence_against >= threshold:
        return Duel("discard", "it is right less often", overall, groups, labels)
    if overall.evidence >= threshold:
        reason = "it is right more often, and in no group less often"
        return Duel("promote", reason, overall, groups, labels)
    return Duel("undecided", labels_missing(overall), overall, groups, labels)


def worse_groups(groups: Mapping[str, Tally]) -> list[str]:
    """Return the groups in which the challenger is shown to be worse (e-BH)."""
    ranked = sorted(groups, key=lambda group: -groups[group].evidence_against)
    worse: list[str] = []
    for rank, group in enumerate(ranked, 1):
        if groups[group].evidence_against >= log(len(groups) / (LEVEL * rank)):
            worse = ranked[:rank]
    return worse


def labels_missing(tally: Tally) -> str:
    """Say how many more labels a decision takes if the winner goes on as it does."""
    count = tally.wins + tally.losses
    rows, lack = tally.rows, -log(LEVEL) - max(tally.evidence, tally.evidence_against)
    if tally.evidence < tally.evidence_against:
        rows = [(stake, losses, wins) for stake, wins, losses in rows]
    # With one more win and one more loss: few labels tell little about those to come.
    gain = float(log_wealth([*rows, (1.0, 1, 1)]).max()) / (count + 2)
    if count < 10 or gain <= 0 or (more := ceil(lack / gain)) > 10_000:
        return "the labels of photos on which the two differ are too few, or too even, to decide"
    return f"about {max(1, more)} more labels of photos on which the two differ"


def read_duel(path: Path, labels: Sequence[str], groups: Sequence[str]) -> Duel:
    """Judge a CSV file with the columns label, champion and challenger, one row for each photo.

    `labels` and `groups` are those of the champion's classes. A label that is not among them counts
    for no group. Raises `UserError` if the file is not such a file.
    """
    indices = indices_by_name(labels)
    wins: Counter[str] = Counter()
    losses: Counter[str] = Counter()
    count = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (rows.fieldnames or [])]:
                raise UserError(f"{path} has no column {missing[0]}: it needs {', '.join(COLUMNS)}")
            for row in rows:
                label, champion, challenger = (
                    index_of_name((row[name] or "").strip(), indices) for name in COLUMNS
                )
                if label is None:
                    raise UserError(
                        f"{path}, line {rows.line_num}: {row['label']!r} is not a class of the "
                        "champion"
                    )
                count += 1
                if champion == challenger:
                    continue
                if challenger == label:
                    wins[groups[label]] += 1
                elif champion == label:
                    losses[groups[label]] += 1
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: it is not a CSV file in UTF-8") from error
    return judge_duel({group: Tally(wins[group], losses[group]) for group in GROUPS}, count)
