"""Which of two models is right where they differ, by labels: a verdict that may be asked for daily.

The evidence is an e-value, so its error level holds however often one looks (Ville 1939; Shafer
2021).
"""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp, lgamma, log, log1p
from pathlib import Path
from typing import Final, Literal

from taillift.models.bundle.schema import GROUPS
from taillift.models.errors import UserError
from taillift.models.names import index_of_name, indices_by_name

# The share of equal models that are promoted, and of those that are discarded, at most.
LEVEL: Final = 0.05
COLUMNS: Final = ("label", "champion", "challenger")


@dataclass(frozen=True)
class Tally:
    """Photos on which the challenger alone is right (`wins`), or the champion alone (`losses`)."""

    wins: int = 0
    losses: int = 0

    @property
    def evidence(self) -> float:
        """Logarithm of the e-value that the challenger is right more often."""
        return log_e_value(self.wins, self.losses)

    @property
    def evidence_against(self) -> float:
        """Logarithm of the e-value that the champion is right more often."""
        return log_e_value(self.losses, self.wins)


@dataclass(frozen=True)
class Duel:
    """The verdict, with the tallies that it rests on; `labels` counts all photos with a label."""

    decision: Literal["promote", "discard", "undecided"]
    reason: str
    overall: Tally
    groups: Mapping[str, Tally]
    labels: int


def log_e_value(wins: int, losses: int) -> float:
    """Return the logarithm of the e-value that a win is more likely than a loss.

    It is the mixture of (2p)^wins (2 - 2p)^losses over p, uniform from 1/2 to 1. With n = wins +
    losses this is 2^(n+1) B(wins+1, losses+1) P(Bin(n+1, 1/2) <= wins).
    """
    count = wins + losses
    beta = lgamma(wins + 1) + lgamma(losses + 1) - lgamma(count + 2)
    return (count + 1) * log(2) + beta + log_half_binomial(count + 1, wins)


def log_half_binomial(count: int, most: int) -> float:
    """Return the logarithm of P(Bin(count, 1/2) <= most)."""
    terms = [
        lgamma(count + 1) - lgamma(number + 1) - lgamma(count - number + 1)
        for number in range(min(most, count) + 1)
    ]
    top = max(terms)
    return top + log(sum(exp(term - top) for term in terms)) - count * log(2)


def judge_duel(groups: Mapping[str, Tally], labels: int) -> Duel:
    """Return the verdict on the tallies of each group.

    The challenger is promoted if it is right more often over all, and in no group less often; it is
    discarded if it is right less often over all or in any group. Over the groups, the false
    discovery rate is bounded (e-BH; Wang and Ramdas 2022).
    """
    overall = Tally(
        sum(tally.wins for tally in groups.values()), sum(tally.losses for tally in groups.values())
    )
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
    share = (max(tally.wins, tally.losses) + 1) / (count + 2)
    gain = log(2) + share * log(share) + (1 - share) * log1p(-share)
    lack = -log(LEVEL) - max(tally.evidence, tally.evidence_against)
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
