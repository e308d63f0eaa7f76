"""How often each class is expected to be predicted, and how precisely that is known."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.errors import UserError
from taillift.models.names import index_of_name, indices_by_name, refuse_two_forms
from taillift.service.tail.confusion import Confusion
from taillift.service.tail.distributions import Doubles, beta_quantile

# Smallest relative standard error of a rate, however many photos were held out.
MIN_RELATIVE_ERROR: Final = 1e-3


class Source(StrEnum):
    """The source of a reference's shares of the true classes.

    `train`: the training images. `uniform`: all classes equally often. `measured`: the held-out
    images, so that the expected rates are those of validation's predictions. `own`: the operator.
    """

    TRAIN = "train"
    UNIFORM = "uniform"
    MEASURED = "measured"
    OWN = "own"


@dataclass(frozen=True)
class Reference:
    """The expected shares of the true classes: `prior` [C] sums to 1."""

    source: Source
    prior: Doubles


@dataclass(frozen=True)
class Rates:
    """Prediction rates [K], each known as Beta(a, b)."""

    a: Doubles
    b: Doubles

    @classmethod
    def from_moments(cls, mean: Doubles, variance: Doubles) -> "Rates":
        """Return beta distributions with these moments; a mean of 0 becomes slightly positive."""
        mean = mean.clip(1e-12, 1 - 1e-12)
        least = (MIN_RELATIVE_ERROR * np.minimum(mean, 1 - mean)) ** 2
        weight = mean * (1 - mean) / np.maximum(variance, least) - 1
        return cls(mean * weight, (1 - mean) * weight)

    @property
    def mean(self) -> Doubles:
        mean: Doubles = self.a / (self.a + self.b)
        return mean

    @property
    def variance(self) -> Doubles:
        total = self.a + self.b
        variance: Doubles = self.a * self.b / (total**2 * (total + 1))
        return variance

    def at(self, index: int) -> "Rates":
        """Return the one rate at `index`, as an array of length 1."""
        return Rates(self.a[[index]], self.b[[index]])

    def interval(self, coverage: float) -> tuple[Doubles, Doubles]:
        """Return bounds [K] that leave out (1 - coverage) / 2 at either end."""
        beyond = (1 - coverage) / 2
        low, high = beta_quantile(np.array([[beyond], [1 - beyond]]), self.a, self.b)
        return low, high


@dataclass(frozen=True)
class Expected:
    """Expected rates of the classes [C] and groups [G], and what would remain of a lost class.

    `mistakes` [C] is the rate at which a class would still be predicted, for images of other
    classes, if its own images no longer came.
    """

    classes: Rates
    groups: Rates
    mistakes: Doubles


def reference_from(source: Source, counts: Sequence[int], confusion: Confusion) -> Reference:
    """Return the reference of a built-in source; `counts` are the classes' training images.

    Raises `UserError` for `measured` if the bundle was exported without held-out photos, and for
    `own`, which needs a file.
    """
    match source:
        case Source.TRAIN:
            weights = np.asarray(counts, np.float64)
        case Source.UNIFORM:
            weights = np.ones(len(counts))
        case Source.MEASURED if confusion.held_out.any():
            weights = confusion.held_out
        case Source.MEASURED:
            raise UserError(
                "the bundle has no held-out photos to measure a reference with: choose the "
                "reference train or uniform, or give your own"
            )
        case Source.OWN:
            raise UserError("the reference own needs a file with the columns class,weight")
    return Reference(source, weights / weights.sum())


def own_reference(weights: Mapping[str, float], labels: Sequence[str]) -> Reference:
    """Return the reference with a weight for every label; 0 means that no image is expected.

    `weights` may name a label in any Unicode form.

    Raises `UserError` if a label is unknown or missing, or if a weight is negative or not finite.
    """
    indices = indices_by_name(labels)
    refuse_two_forms(weights, "the reference")
    by_label: dict[str, float] = {}
    for name, weight in weights.items():
        if (index := index_of_name(name, indices)) is None:
            raise UserError(f"the reference names the class {name!r}, which the bundle lacks")
        if not 0 <= weight < np.inf:
            raise UserError(f"the reference's weight of {name!r} is {weight}: give 0 or more")
        by_label[labels[index]] = weight
    missing = [label for label in labels if label not in by_label]
    if missing:
        raise UserError(
            f"the reference has no weight for {missing[0]!r} ({len(missing)} classes lack one): "
            "add them, with 0 if no image is expected"
        )
    values = np.array([by_label[label] for label in labels], np.float64)
    if not values.any():
        raise UserError("every weight of the reference is 0: give at least one class a weight")
    return Reference(Source.OWN, values / values.sum())


def read_reference(path: Path, labels: Sequence[str]) -> Reference:
    """Read a reference from a CSV file with the columns class,weight.

    Raises `UserError` if the file cannot be read or does not fit the labels.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(row["class"], float(row["weight"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(
            f"the reference {path} cannot be read ({error.strerror}): name a CSV file with the "
            "columns class,weight, or one of train, uniform and measured"
        ) from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is not a reference ({error}): it needs the columns class,weight with numbers"
        ) from error
    weights = dict(rows)
    if len(weights) < len(rows):
        (label, times), *_ = Counter(label for label, _ in rows).most_common(1)
        raise UserError(f"{path} names the class {label!r} {times} times: keep one of them")
    return own_reference(weights, labels)


def expect(reference: Reference, confusion: Confusion) -> Expected:
    """Return the prediction rates that follow from the reference and the model's confusions."""
    prior = reference.prior
    squares = prior**2 / (confusion.strength + 1)
    classes = confusion.column_sums(prior)
    variance = confusion.column_sums(squares) - confusion.column_sums(squares, power=2)
    into = confusion.into_groups
    own = prior * confusion.recall
    return Expected(
        classes=Rates.from_moments(classes, variance),
        groups=Rates.from_moments(prior @ into, squares @ (into - into**2)),
        mistakes=(classes - own).clip(0) / (1 - prior).clip(1e-12),
    )
