"""What the monitor shows: of every class at once, of one class, and of the groups."""

from dataclasses import dataclass
from typing import Literal

from models.bundle.record import Group
from service.tail.exact import Doubles, Flags, Indices
from service.tail.reference import Source

Verdict = Literal["as expected", "fewer", "more", "silent"]


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Quantiles:
    """Confidence in the top class below which 10, 50 and 90 of 100 images lie."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class ClassState:
    """One class within the window, and the evidence since monitoring began.

    `interval` and `expected_interval` (95 %) are of the share of predictions; `chance` is that of
    so few predictions or fewer under the reference, for one look; `e_value` and `silence_e_value`
    may be looked at always. The delays are predictions (of any class) within which 95 of 100 such
    changes from now on are found; infinite where they cannot be. `silence_e_value` and
    `silence_delay` are None for a class that is not few-shot.
    """

    label: str
    group: Group
    predicted: int
    expected: float
    interval: Interval
    expected_interval: Interval
    ratio: float
    chance: float
    e_value: float
    verdict: Verdict
    silence_e_value: float | None
    silence_delay: float | None
    doubling_delay: float
    confidence: Quantiles | None
    last_seen: float | None


@dataclass(frozen=True)
class GroupState:
    """One group within the window; `prevalence` is corrected for the model's confusions."""

    group: Group
    classes: int
    predicted: int
    expected: float
    share: float
    interval: Interval
    expected_share: float
    expected_interval: Interval
    ratio: float
    prevalence: float
    prevalence_interval: Interval
    e_value: float
    verdict: Verdict
    confidence: Quantiles | None


@dataclass(frozen=True)
class ClassArrays:
    """[C] each, within the window: `ratio` is NaN before any prediction, `last_seen` never seen.

    `found` are the discoveries of drift, `direction` is 1 for more and -1 for fewer; `hidden` are
    few-shot classes whose loss other classes' mistakes would hide.
    """

    predicted: Indices
    expected: Doubles
    ratio: Doubles
    e_value: Doubles
    found: Flags
    direction: Indices
    silent: Flags
    hidden: Flags
    last_seen: Doubles


@dataclass(frozen=True)
class TailState:
    """At one look. `window_predictions` are in the window, `predictions` since the beginning."""

    reference: Source
    predictions: int
    window_predictions: int
    classes: ClassArrays
    groups: tuple[GroupState, ...]

    @property
    def drifting(self) -> int:
        return int(self.classes.found.sum())

    @property
    def silent(self) -> int:
        return int(self.classes.silent.sum())
