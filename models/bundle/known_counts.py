"""Counts that a caller knows: how many of the images show each class."""

import csv
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.assignment import MOST_CLASSES, MOST_IMAGES, Assignment, assign
from taillift.models.errors import UserError, did_you_mean
from taillift.models.names import index_of_name, indices_by_name, refuse_twice

# Images of none of the bundle's classes, unless it has a class of this name.
OTHER: Final = "other"
NUMBER: Final = re.compile(r"(\d{1,9})(?:\s*(?:±|\+-|\+/-)\s*(\d{1,9}))?", re.ASCII)


class Pairs(list[tuple[str, object]]):
    """The names and values of a JSON object, in order, with names that repeat."""


@dataclass(frozen=True)
class KnownCounts:
    """The least and most number of images of each class that may occur, by class index.

    `other` is the number of images that show none of the bundle's classes.
    """

    least: dict[int, int]
    most: dict[int, int]
    other: int = 0

    @classmethod
    def of(cls, counts: Iterable[tuple[str, object]], labels: list[str]) -> "KnownCounts":
        """Read labels and counts: 12, "12" or "12±2"; classes that are not named do not occur.

        Raises `UserError` if a label is unknown or a number is not one.
        """
        indices = indices_by_name(labels)
        least: dict[int, int] = {}
        most: dict[int, int] = {}
        other = 0
        named = set()
        for label, count in counts:
            number, tolerance = read_number(label, count)
            index = index_of_name(label, indices)
            if index in named:
                raise UserError(f"counts: {label[:80]!r} appears twice; remove one")
            named.add(index)
            if index is None and label == OTHER:
                if tolerance:
                    raise UserError(f"counts: {OTHER} needs an exact number, without ±")
                other = number
            elif index is None:
                hint = did_you_mean(label, labels)
                raise UserError(f"counts: the bundle has no class {label[:80]!r}{hint}")
            elif number + tolerance > 0:
                least[index], most[index] = max(number - tolerance, 0), number + tolerance
        if len(most) > MOST_CLASSES:
            raise UserError(
                f"counts: {len(most)} classes; at most {MOST_CLASSES} can be told apart at once"
            )
        return cls(least, most, other)

    @classmethod
    def from_json(cls, text: str, labels: list[str]) -> "KnownCounts":
        """Read the counts of a JSON object {label: count}; raises `UserError`."""
        try:
            pairs = json.loads(text, object_pairs_hook=Pairs)
        # RecursionError: too many nested brackets.
        except (ValueError, RecursionError) as error:
            raise UserError(f"counts: not JSON ({str(error)[:80]})") from None
        if not isinstance(pairs, Pairs):
            raise UserError('counts: must be a JSON object, such as {"red": 12, "blue": "3±1"}')
        return cls.of(pairs, labels)

    @classmethod
    def from_csv(cls, path: Path, labels: list[str]) -> "KnownCounts":
        """Read the counts of a file with the columns label,count; raises `UserError`."""
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                table = csv.DictReader(file, strict=True)
                refuse_twice(path, table.fieldnames or [], ("label", "count"))
                rows = list(table)
        except (OSError, UnicodeError, csv.Error) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        if not rows or not {"label", "count"} <= set(rows[0]):
            raise UserError(f"{path} needs the columns label,count, and a row for each class")
        if row := next((row for row in rows if any(row.get(None, ()))), None):
            raise UserError(
                f"{path}: the row of {row['label']!r} has more cells than the first line"
            )
        try:
            return cls.of(((row["label"] or "", row["count"]) for row in rows), labels)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that differ for other counts."""
        everything = repr((sorted(self.least.items()), sorted(self.most.items()), self.other))
        return hashlib.sha256(everything.encode()).hexdigest()[:12]

    def check(self, images: int) -> None:
        """Raise `UserError` if this number of images cannot meet the counts."""
        if images > MOST_IMAGES:
            raise UserError(
                f"{images:,} images: at most {MOST_IMAGES:,} can be assigned together; split them"
            )
        fewest = sum(self.least.values()) + self.other
        highest = sum(self.most.values()) + self.other
        if not fewest <= images <= highest:
            wanted = f"{fewest:,}" if fewest == highest else f"{fewest:,} to {highest:,}"
            raise UserError(
                f"the counts are of {wanted} images, and there are {images:,}: correct the counts, "
                f'give them a tolerance (as in "12±2"), or count the rest as {OTHER}'
            )

    def assign(self, probabilities: list[Doubles | None]) -> list["Assigned | None"]:
        """Assign each image, given its probabilities [C], to a class.

        An image without probabilities cannot be used. It takes a place in the counts, of
        whichever class is left, and has no class itself. Raises `UserError` as `check` does.
        """
        self.check(len(probabilities))
        kinds = list(self.most)
        least = [self.least[kind] for kind in kinds]
        most = [self.most[kind] for kind in kinds]
        columns = len(kinds) + (self.other > 0)
        scores = np.zeros((len(probabilities), columns))
        for row, one in zip(scores, probabilities, strict=True):
            if one is not None:
                row[: len(kinds)] = np.log(np.maximum(one[kinds], np.finfo(np.float64).tiny))
        if self.other:
            least, most = [*least, self.other], [*most, self.other]
        found = assign(scores, np.array(least, np.int64), np.array(most, np.int64))
        return [
            None if probability is None else Assigned.of(found, image, kinds)
            for image, probability in enumerate(probabilities)
        ]


@dataclass(frozen=True)
class Assigned:
    """An image's class by the counts, None for "other".

    `confidence` is the probability of the assignment against the next best one in which the image
    has another class, `instead`; if there is none, it is 1 and `instead` the class itself.
    """

    kind: int | None
    confidence: float
    instead: int | None

    @classmethod
    def of(cls, found: Assignment, image: int, kinds: list[int]) -> "Assigned":
        """Return what an assignment to columns says of one image; `kinds` are their classes."""
        names = [*kinds, None]
        return cls(
            names[found.classes[image]],
            float(found.confidence[image]),
            names[found.instead[image]],
        )


def read_number(label: str, count: object) -> tuple[int, int]:
    """Return a count and its tolerance; raises `UserError`."""
    match = None
    if isinstance(count, int | str) and not isinstance(count, bool):
        match = NUMBER.fullmatch(str(count).strip())
    if match is None:
        raise UserError(
            f"counts: {str(count)[:40]!r} of {label[:80]!r} is not a number of images, such as 12 "
            "or 12±2"
        )
    return int(match[1]), int(match[2] or 0)
