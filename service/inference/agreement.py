"""How a challenger's answers to copies of images compare with the champion's."""

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Final

from taillift.models.bundle.manifest import ClassInfo
from taillift.models.bundle.schema import GROUPS

# Of the normal distribution, for intervals of 95 %.
Z: Final = 1.96
# The latest images on which the two differ.
KEPT: Final = 1_000


@dataclass(frozen=True)
class Answer:
    """One model's answer to an image: class, confidence and views."""

    index: int
    confidence: float
    views: int


@dataclass
class Disagreement:
    """An image on which the two differ; `request_id` and `image` (from 0) say which it was.

    `id` is that of the champion's answer, by which a label may come back.
    """

    request_id: str | None
    image: int
    champion: str
    challenger: str
    id: str | None = None


@dataclass
class WeightedShare:
    """A share among images that were chosen with known probabilities p, each of weight 1/p.

    The estimate is Hájek's (1971), and the interval Wilson's (1927) for Kish's effective number of
    images (1965).
    """

    images: int = 0
    total: float = 0.0
    squares: float = 0.0
    hits: float = 0.0

    def add(self, hit: bool, weight: float) -> None:
        self.images += 1
        self.total += weight
        self.squares += weight**2
        self.hits += weight * hit

    @property
    def estimate(self) -> float | None:
        return self.hits / self.total if self.images else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share."""
        if not self.images:
            return 0.0, 1.0
        count, share = self.total**2 / self.squares, self.hits / self.total
        centre = share + Z**2 / (2 * count)
        half = Z * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
        scale = 1 + Z**2 / count
        return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


@dataclass
class WeightedMean:
    """A mean of values with weights."""

    total: float = 0.0
    sum: float = 0.0

    def add(self, value: float, weight: float) -> None:
        self.total += weight
        self.sum += weight * value

    @property
    def value(self) -> float | None:
        return self.sum / self.total if self.total else None


@dataclass
class Side:
    """Means over the answers of one of the two, and its weighted predictions by class."""

    confidence: WeightedMean = field(default_factory=WeightedMean)
    views: WeightedMean = field(default_factory=WeightedMean)
    predicted: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, answer: Answer, label: str, weight: float) -> None:
        self.confidence.add(answer.confidence, weight)
        self.views.add(answer.views, weight)
        self.predicted[label] += weight


class Agreement:
    """The comparison of two versions, image by image."""

    def __init__(self, champion: Sequence[ClassInfo], challenger: Sequence[ClassInfo]) -> None:
        self._classes = (champion, challenger)
        self.overall = WeightedShare()
        self.by_champion = {group: WeightedShare() for group in GROUPS}
        self.by_challenger = {group: WeightedShare() for group in GROUPS}
        self.champion, self.challenger = Side(), Side()
        self.flips: Counter[tuple[str, str]] = Counter()
        self.differences: deque[Disagreement] = deque(maxlen=KEPT)

    def add(
        self,
        champion: Answer,
        challenger: Answer,
        probability: float,
        request_id: str | None,
        image: int,
    ) -> Disagreement | None:
        """Add the answers to an image that was chosen with this probability.

        `request_id` and `image` say which image it was. Returns None if the two agree.
        """
        mine, other = (
            classes[answer.index]
            for classes, answer in zip(self._classes, (champion, challenger), strict=True)
        )
        weight, same = 1 / probability, mine.label == other.label
        self.overall.add(same, weight)
        self.by_champion[mine.group].add(same, weight)
        self.by_challenger[other.group].add(same, weight)
        self.champion.add(champion, mine.label, weight)
        self.challenger.add(challenger, other.label, weight)
        if same:
            return None
        self.flips[mine.label, other.label] += 1
        difference = Disagreement(request_id, image, mine.label, other.label)
        self.differences.append(difference)
        return difference

    def rare(self) -> list[tuple[str, float, float]]:
        """Return each few-shot class with both versions' shares of it, the most changed first."""
        labels = dict.fromkeys(
            info.label for classes in self._classes for info in classes if info.group == "few"
        )
        total = self.overall.total or 1.0
        rows = [
            (
                label,
                self.champion.predicted[label] / total,
                self.challenger.predicted[label] / total,
            )
            for label in labels
        ]
        return sorted(rows, key=lambda row: -abs(row[2] - row[1]))
