"""Accuracy by live labels of all photos that came, and evidence that confidences are not right."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from taillift.models.bundle.schema import GROUPS
from taillift.service.feedback.label_store import ClassList
from taillift.service.feedback.prediction_id import (
    DAY_SECONDS,
    ID_BYTES,
    MAX_SHORT,
    SIGNATURE_BYTES,
    STEPS,
)
from taillift.service.tail.distributions import Doubles, Flags, Indices, clopper_pearson

COVERAGE: Final = 0.95
# Each bet on a confidence stakes at most half of its wealth on a label. Smaller bets find small
# errors, and weigh the labels of photos that were chosen with a small probability as much as they
# stand for.
STAKES: Final = 2.0 ** -np.arange(1, 13)
HIGHEST_STAKE: Final = 0.5
# An estimate from fewer labels, counted by their weights, says nothing.
FEWEST: Final = 10
# The fields of `PAYLOAD`, and the signature.
ID_FIELDS: Final = np.dtype(
    [
        ("format", "u1"),
        ("version", ">u2"),
        ("answer", ">u2"),
        ("confidence", ">u2"),
        ("words", "u1"),
        ("probability", ">u2"),
        ("time", ">u4"),
        ("rest", f"V{4 + SIGNATURE_BYTES}"),
    ]
)
assert ID_FIELDS.itemsize == ID_BYTES


@dataclass(frozen=True)
class LiveShare:
    """A share of all photos of a kind, with its 95 % interval, from labels of some of them.

    `effective` is the number of labels of photos chosen at random that would say as much.
    """

    estimate: float
    low: float
    high: float
    effective: float

    @property
    def too_few(self) -> str | None:
        """The text to show instead of the numbers if they say nothing."""
        return f"too few ({int(self.effective)})" if self.effective < FEWEST else None


class WeightedSums:
    """For each of K kinds of photos: how many have a label, and which share was right.

    `values` [6, K] are, by the rows' names: the labels, those of sampled photos, those that named
    another class than the answer; and over the sampled ones the sums of w, of w squared, and of w
    if the answer was right.
    """

    def __init__(self, values: Doubles) -> None:
        self.values = values
        self.labels, self.sampled, self.corrected = values[:3]
        self.weights, self.squares, self.right = values[3:]

    @classmethod
    def none_yet(cls, kinds: int) -> "WeightedSums":
        return cls(np.zeros((6, kinds)))

    def add(self, kinds: Indices, weights: Doubles, correct: Flags, sign: int = 1) -> None:
        """Add labels [N] with these weights, 0 if not sampled, or take them away again."""
        ones = np.ones(len(kinds))
        rows = (ones, weights > 0, ~correct, weights, weights**2, weights * correct)
        for sums, values in zip(self.values, rows, strict=True):
            sums += sign * np.bincount(kinds, values, len(sums))

    def grouped(self, membership: Doubles) -> "WeightedSums":
        """Return the sums over groups; `membership` [K, M] is 1 if a kind is in a group."""
        return WeightedSums(self.values @ membership)

    def copy(self) -> "WeightedSums":
        return WeightedSums(self.values.copy())

    def shares(self) -> list[LiveShare]:
        """Return the share of right answers of each kind.

        The estimate is Hájek's (1971): weighted by 1 over the probability of being chosen, and
        divided by the sum of the weights. Its interval is Clopper and Pearson's (1934) for as many
        labels as Kish's (1965, section 11.7) effective sample size.
        """
        some = self.sampled > 0
        estimate = np.where(some, self.right / np.where(some, self.weights, 1), 0.0).clip(0, 1)
        effective = np.where(some, self.weights**2 / np.where(some, self.squares, 1), 0.0)
        low, high = np.zeros(len(some)), np.ones(len(some))
        enough = effective >= FEWEST
        share, labels = estimate[enough], effective[enough]
        bounds = clopper_pearson(share * labels, (1 - share) * labels, COVERAGE)
        low[enough], high[enough] = bounds
        columns = (column.tolist() for column in (estimate, low, high, effective))
        return [LiveShare(*row) for row in zip(*columns, strict=True)]


class LiveAccuracy:
    """Counts of the labels of one version, kept up to date label by label."""

    def __init__(self, classes: ClassList, days: int) -> None:
        """`days` is the age of predictions beyond which their labels do not count."""
        self.classes = classes
        self._indices = {label: index for index, label in enumerate(classes.labels)}
        self._group = np.array([GROUPS.index(group) for group in classes.groups], np.int64)
        size = len(classes.labels)
        # The last kind is none of the classes.
        self._by_truth = WeightedSums.none_yet(size + 1)
        self._by_answer = WeightedSums.none_yet(size)
        self._evidence = CalibrationEvidence(days)

    def add(self, ids: bytes, labels: Sequence[str | None], since: float, sign: int = 1) -> None:
        """Add labels of predictions, or with the sign -1 take them away again.

        `ids` are the bytes of all ids one after the other; predictions before `since`, in seconds
        since 1970, are left out.
        """
        rows = np.frombuffer(ids, ID_FIELDS)
        none = len(self.classes.labels)
        truths = np.array([none if one is None else self._indices.get(one, none) for one in labels])
        counted = (rows["time"] >= since) & (rows["answer"] < none)
        rows, truths = rows[counted], truths[counted].astype(np.int64)
        answers, codes = rows["answer"].astype(np.int64), rows["probability"].astype(np.float64)
        sampled = codes > 0
        probabilities: Doubles = 2 ** ((codes - MAX_SHORT) / STEPS)
        weights, correct = np.where(sampled, 1 / probabilities, 0.0), truths == answers
        self._by_truth.add(truths, weights, correct, sign)
        self._by_answer.add(answers, weights, correct, sign)
        self._evidence.add(
            rows["time"][sampled].astype(np.int64) // DAY_SECONDS,
            self._group[answers[sampled]],
            rows["confidence"][sampled] / MAX_SHORT,
            correct[sampled].astype(np.float64),
            probabilities[sampled],
            sign,
        )

    def report(self) -> "LiveReport":
        """Return what is known now, which no longer changes."""
        membership = (self._group[:, None] == np.arange(len(GROUPS))).astype(np.float64)
        return LiveReport(
            self._by_truth.copy(),
            self._by_answer.copy(),
            membership,
            self._evidence.log_e_values(),
        )


@dataclass(frozen=True)
class LiveReport:
    """Everything that was known of one version's answers at one moment.

    `by_truth` has the C classes and then none of them, `by_answer` the C classes; `membership`
    [C, G] is 1 if a class is in a group. `evidence` [G] is the logarithm to base 10 of the e-value
    that the confidences of a group's answers are not right.
    """

    by_truth: WeightedSums
    by_answer: WeightedSums
    membership: Doubles
    evidence: Doubles

    def compute_shares(self) -> None:
        """Compute all shares, which are kept; with thousands of classes they take longest."""
        _ = self.accuracy, self.recalls, self.precisions, self.group_recalls, self.group_precisions

    @cached_property
    def accuracy(self) -> LiveShare:
        """The share of all photos that were answered with their class."""
        return self.by_answer.grouped(np.ones((len(self.membership), 1))).shares()[0]

    @cached_property
    def recalls(self) -> list[LiveShare]:
        """For each class, the share of its photos that were answered with it."""
        return self.by_truth.shares()[:-1]

    @cached_property
    def precisions(self) -> list[LiveShare]:
        """For each class, the share of its answers that were right."""
        return self.by_answer.shares()

    @cached_property
    def group_recalls(self) -> list[LiveShare]:
        """For each group, the share of its photos that were answered with their class."""
        return self.group_truths.shares()

    @cached_property
    def group_precisions(self) -> list[LiveShare]:
        """For each group, the share of the answers with its classes that were right."""
        return self.group_answers.shares()

    @cached_property
    def group_truths(self) -> WeightedSums:
        """The sums over the photos of each group's classes."""
        return WeightedSums(self.by_truth.values[:, :-1]).grouped(self.membership)

    @cached_property
    def group_answers(self) -> WeightedSums:
        """The sums over the answers with each group's classes."""
        return self.by_answer.grouped(self.membership)


class CalibrationEvidence:
    """For each group, the wealth of bets that confidences are too high, or that they are too low.

    A label multiplies the wealth by 1 + s (correct - confidence), which is 1 on average as long as
    the confidence is right (Waudby-Smith and Ramdas 2024, section 4). The stake s of a bet is
    divided by the probability with which the photo was chosen, up to a half. Half of the wealth is
    on all labels; the other half is divided over the days of the window, and what belongs to a day
    is bet from that day on, so that a change is found after a long good time, too. The mean of an
    e-value is at most 1 as long as all confidences are right: it reaches 1/x with a chance of at
    most x, however often one looks (Ville).
    """

    def __init__(self, days: int) -> None:
        """`days` is the length of the window of the predictions."""
        self._days = days
        # By day, the logarithms of the factors of each group's bets: [G, 2 B].
        self._logs: dict[int, Doubles] = {}

    def add(
        self,
        days: Indices,
        groups: Indices,
        confidences: Doubles,
        correct: Doubles,
        probabilities: Doubles,
        sign: int = 1,
    ) -> None:
        """Add labels [N], or with the sign -1 take them away again.

        `days` are those of the predictions, `groups` the indices of the answers' groups, `correct`
        is 1 or 0.
        """
        stakes = np.minimum(HIGHEST_STAKE, STAKES / probabilities[:, None])
        gains = stakes * (correct - confidences)[:, None]
        logs = np.concatenate([np.log1p(gains), np.log1p(-gains)], 1) * sign
        for day in np.unique(days).tolist():
            of_day = days == day
            sums = self._logs.setdefault(day, np.zeros((len(GROUPS), 2 * len(STAKES))))
            np.add.at(sums, groups[of_day], logs[of_day])

    def log_e_values(self) -> Doubles:
        """Return the logarithms to base 10 of the groups' e-values [G]."""
        if not self._logs:
            return np.zeros(len(GROUPS))
        by_day = np.stack([self._logs[day] for day in sorted(self._logs)])
        # From each day on: [days, G, 2 B]. A window may hold a day more than its length.
        since = np.cumsum(by_day[::-1], 0)[::-1]
        wealth = np.logaddexp.reduce(since, -1) - np.log(since.shape[-1])
        shares = np.full(len(wealth), 0.5 / (self._days + 1))
        shares[0] += 0.5
        unspent = 1 - shares.sum()
        staked = np.logaddexp.reduce(wealth + np.log(shares)[:, None], 0)
        values: Doubles = np.logaddexp(staked, np.log(max(unspent, 1e-300))) / np.log(10)
        return values
