"""P(predicted | true) of a bundle, from few held-out photos and for many classes."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.schema import GROUPS, Group
from taillift.models.errors import UserError
from taillift.service.tail.distributions import Doubles, Flags, Indices

# Photos that the pooled pattern counts for in every row: classes of one group differ in their
# recall about as much as a share seen on five photos does.
STRENGTH: Final = 5.0
# Of all groups' recall, where hardly any photo was held out.
HITS, TRIES = 2.0, 3.0

Pair = tuple[int, int, int]


@dataclass(frozen=True)
class Confusion:
    """Row-stochastic [C, C], kept as few `values` over a background of rank G.

    The entry (j, k) is the value that is listed for it, else
    `background[j, group[k]] * popularity[k]`. Each row is the mean of a Dirichlet posterior with
    the concentration `strength[j]`, the held-out photos of the class and the pattern's `STRENGTH`.
    """

    group: Indices
    held_out: Doubles
    strength: Doubles
    rows: Indices
    columns: Indices
    values: Doubles
    background: Doubles
    popularity: Doubles

    @property
    def into_groups(self) -> Doubles:
        """[C, G]: the probability that an image of the class is predicted into the group."""
        flat = self.rows * len(GROUPS) + self.group[self.columns]
        extra = self.values - self._background_there()
        listed = np.bincount(flat, extra, self.background.size).reshape(self.background.shape)
        sums: Doubles = listed + self.background * np.bincount(
            self.group, self.popularity, len(GROUPS)
        )
        return sums

    @property
    def recall(self) -> Doubles:
        """[C], the diagonal."""
        hits = self.rows == self.columns
        diagonal = np.empty(len(self.group))
        diagonal[self.rows[hits]] = self.values[hits]
        return diagonal

    def column_sums(self, weights: Doubles, power: int = 1) -> Doubles:
        """[C]: the sum over true classes j of weights[j] * P(k | j) ** power."""
        extra = self.values**power - self._background_there() ** power
        listed = np.bincount(self.columns, weights[self.rows] * extra, len(self.group))
        smooth = (weights @ self.background**power)[self.group] * self.popularity**power
        sums: Doubles = listed + smooth
        return sums

    def _background_there(self) -> Doubles:
        there: Doubles = (
            self.background[self.rows, self.group[self.columns]] * self.popularity[self.columns]
        )
        return there


def group_indices(groups: Sequence[Group]) -> Indices:
    return np.array([GROUPS.index(group) for group in groups], np.int64)


def estimate_confusion(groups: Sequence[Group], pairs: Iterable[Pair]) -> Confusion:
    """From (true, predicted, photos) of held-out photos; `groups` has one entry a class.

    Each row is shrunk towards its group's pooled pattern: the group's recall; its errors into
    each group; and inside a group, errors by how often each class is taken for others. A class
    without held-out photos has the pattern alone. The pattern itself is smoothed in the same way,
    towards all groups together.
    """
    group = group_indices(groups)
    size, per_group = len(group), np.bincount(group, minlength=len(GROUPS))
    true, predicted, photos = _columns(pairs, size)
    held_out = _sums(true, photos, size)
    hit = true == predicted

    popularity = 1 + _sums(predicted[~hit], photos[~hit], size)
    popularity = popularity / np.bincount(group, popularity, len(GROUPS))[group]
    recall = _pooled_recall(group[true], photos, hit)
    spread = _pooled_errors(group[true[~hit]], group[predicted[~hit]], photos[~hit], per_group)

    errors = (1 - recall)[group, None] * spread[group]
    reach = 1 - spread[group, group] * popularity
    strength = held_out + STRENGTH
    background = errors / reach[:, None] * (STRENGTH / strength)[:, None]

    rows, columns = (
        np.concatenate([true, np.arange(size)]),
        np.concatenate([predicted, np.arange(size)]),
    )
    rows, columns, counts = _merged(rows, columns, np.concatenate([photos, np.zeros(size)]), size)
    smooth = np.where(
        rows == columns,
        recall[group[rows]] * STRENGTH / strength[rows],
        background[rows, group[columns]] * popularity[columns],
    )
    return Confusion(
        group=group,
        held_out=held_out,
        strength=strength,
        rows=rows,
        columns=columns,
        values=counts / strength[rows] + smooth,
        background=background,
        popularity=popularity,
    )


def _columns(pairs: Iterable[Pair], size: int) -> tuple[Indices, Indices, Doubles]:
    table = np.array(list(pairs), np.int64).reshape(-1, 3)
    rows, columns, photos = _merged(table[:, 0], table[:, 1], table[:, 2].astype(float), size)
    return rows, columns, photos


def _merged(
    rows: Indices, columns: Indices, counts: Doubles, size: int
) -> tuple[Indices, Indices, Doubles]:
    """Every place once."""
    places, inverse = np.unique(rows * size + columns, return_inverse=True)
    return places // size, places % size, _sums(inverse, counts, len(places))


def _sums(places: Indices, weights: Doubles, size: int) -> Doubles:
    sums: Doubles = np.bincount(places, weights, size).astype(np.float64)
    return sums


def _pooled_recall(group: Indices, photos: Doubles, hit: Flags) -> Doubles:
    tries = np.bincount(group, photos, len(GROUPS))
    hits = np.bincount(group[hit], photos[hit], len(GROUPS))
    overall = (hits.sum() + HITS) / (tries.sum() + TRIES)
    recall: Doubles = (hits + STRENGTH * overall) / (tries + STRENGTH)
    return recall


def _pooled_errors(true: Indices, predicted: Indices, photos: Doubles, sizes: Indices) -> Doubles:
    """[G, G]: into which group a group's errors go; a group without classes gets none."""
    flat = np.bincount(true * len(GROUPS) + predicted, photos, len(GROUPS) ** 2)
    errors = flat.reshape(len(GROUPS), len(GROUPS))
    overall = errors.sum(0) + STRENGTH * sizes / sizes.sum()
    overall /= overall.sum()
    pooled = errors + STRENGTH * overall
    spread: Doubles = pooled / pooled.sum(1, keepdims=True)
    return spread


def read_confusions(path: Path, labels: Sequence[str]) -> list[Pair]:
    """Of a bundle's `report/confusion.csv`; none where there is no such file.

    Raises `UserError` where it names a class that the bundle does not have.
    """
    if not path.exists():
        return []
    places = {label: index for index, label in enumerate(labels)}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [
                (places[row["true"]], places[row["predicted"]], int(row["photos"]))
                for row in csv.DictReader(file)
            ]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} does not fit the bundle's classes ({error}): export the bundle again"
        ) from error
