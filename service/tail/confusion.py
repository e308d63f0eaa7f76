"""P(predicted | true) of a bundle, estimated from few held-out photos for many classes."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.schema import GROUPS, Group
from taillift.models.errors import UserError
from taillift.service.tail.distributions import Doubles, Indices

# The weight of the pooled pattern in every row, in photos. The recall of the classes of one group
# varies about as much as a share that was estimated from five photos.
STRENGTH: Final = 5.0
# Pseudo-counts for the recall of all groups together, in case hardly any photo was held out.
HITS, TRIES = 2.0, 3.0
# Bytes of a file of confusions, which has at most a row for every photo that was held out.
MAX_CONFUSIONS: Final = 2**26
MOST_PHOTOS: Final = 2**31

Pair = tuple[int, int, int]


@dataclass(frozen=True)
class Confusion:
    """A row-stochastic matrix [C, C], stored as few `values` over a background of rank G.

    The entry (j, k) is the value listed for it in `rows`, `columns` and `values`. Entries that are
    not listed are `background[j, group[k]] * popularity[k]`. Each row is the mean of a Dirichlet
    posterior with the concentration `strength[j]`: the number of held-out photos of the class plus
    the pattern's `STRENGTH`.
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
        """[C, G], the probability that an image of the class is predicted into the group."""
        flat = self.rows * len(GROUPS) + self.group[self.columns]
        extra = self.values - self._listed_background
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
        """Return the sum over true classes j of weights[j] * P(k | j) ** power for each k, [C]."""
        extra = self.values**power - self._listed_background**power
        listed = np.bincount(self.columns, weights[self.rows] * extra, len(self.group))
        smooth = (weights @ self.background**power)[self.group] * self.popularity**power
        sums: Doubles = listed + smooth
        return sums

    @property
    def _listed_background(self) -> Doubles:
        """The background at the listed entries."""
        background: Doubles = (
            self.background[self.rows, self.group[self.columns]] * self.popularity[self.columns]
        )
        return background


def group_indices(groups: Sequence[Group]) -> Indices:
    """Return each group's index in `GROUPS`."""
    return np.array([GROUPS.index(group) for group in groups], np.int64)


def estimate_confusion(groups: Sequence[Group], pairs: Iterable[Pair]) -> Confusion:
    """Estimate the confusions from (true, predicted, photos) of held-out photos.

    `groups` has one entry per class. Each row is shrunk toward the pooled pattern of its group:
    the group's recall, its errors into each group, and within a group the errors spread by how
    often each class is predicted wrongly. A class without held-out photos has the pattern alone.
    The pattern itself is shrunk in the same way, toward that of all groups together.
    """
    group = group_indices(groups)
    size, per_group = len(group), np.bincount(group, minlength=len(GROUPS))
    table = np.array(list(pairs), np.int64).reshape(-1, 3)
    true, predicted, photos = _merge(table[:, 0], table[:, 1], table[:, 2].astype(float), size)
    held_out = _sums(true, photos, size)
    hit = true == predicted

    popularity = 1 + _sums(predicted[~hit], photos[~hit], size)
    popularity = popularity / np.bincount(group, popularity, len(GROUPS))[group]

    tries = np.bincount(group[true], photos, len(GROUPS))
    hits = np.bincount(group[true][hit], photos[hit], len(GROUPS))
    overall_recall = (hits.sum() + HITS) / (tries.sum() + TRIES)
    recall = (hits + STRENGTH * overall_recall) / (tries + STRENGTH)

    # Into which group the errors of each group go, [G, G]; none go into a group without classes.
    wrong_pairs = group[true[~hit]] * len(GROUPS) + group[predicted[~hit]]
    wrong = np.bincount(wrong_pairs, photos[~hit], len(GROUPS) ** 2).reshape(len(GROUPS), -1)
    overall_wrong = wrong.sum(0) + STRENGTH * per_group / per_group.sum()
    overall_wrong /= overall_wrong.sum()
    spread = wrong + STRENGTH * overall_wrong
    spread /= spread.sum(1, keepdims=True)

    strength = held_out + STRENGTH
    errors = (1 - recall)[group, None] * spread[group]
    # A class cannot be mistaken for itself: scale its errors up by the share it takes away.
    available = 1 - spread[group, group] * popularity
    background = errors / available[:, None] * (STRENGTH / strength)[:, None]

    rows, columns = (
        np.concatenate([true, np.arange(size)]),
        np.concatenate([predicted, np.arange(size)]),
    )
    rows, columns, counts = _merge(rows, columns, np.concatenate([photos, np.zeros(size)]), size)
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


def _merge(
    rows: Indices, columns: Indices, counts: Doubles, size: int
) -> tuple[Indices, Indices, Doubles]:
    """Return each entry of the [size, size] matrix once, with the sum of its counts."""
    entries, inverse = np.unique(rows * size + columns, return_inverse=True)
    return entries // size, entries % size, _sums(inverse, counts, len(entries))


def _sums(indices: Indices, weights: Doubles, size: int) -> Doubles:
    # Without any index, bincount forgets the type of the weights.
    sums: Doubles = np.bincount(indices, weights, size).astype(np.float64)
    return sums


def read_confusions(path: Path, labels: Sequence[str]) -> list[Pair]:
    """Return the pairs of a bundle's `report/confusion.csv`.

    Raises `UserError` if the file is too large, names a class that the bundle does not have, or has
    a number of photos that cannot be one.
    """
    if (size := path.stat().st_size) > MAX_CONFUSIONS:
        raise UserError(
            f"{path} has {size:,} bytes, more than {MAX_CONFUSIONS:,}: export the bundle again"
        )
    indices = {label: index for index, label in enumerate(labels)}
    pairs = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                pairs.append((indices[row["true"]], indices[row["predicted"]], int(row["photos"])))
                if not 0 <= pairs[-1][2] <= MOST_PHOTOS:
                    raise ValueError(f"{row['photos']} photos")
        return pairs
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path} does not fit the bundle's classes ({error}): export the bundle again"
        ) from error
