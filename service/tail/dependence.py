"""Predictions that depend on each other: copies count once, and the repetitive ones for less."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

from taillift.service.tail.distributions import Doubles, Indices

# Digests that are kept; a new one takes the place of the oldest. About 10 MiB.
MAX_DIGESTS: Final = 2**16


def image_digest(data: bytes) -> int:
    """Return 64 bits that stand for an image file with exactly these bytes; never 0."""
    return int.from_bytes(blake2b(data, digest_size=8, person=b"image").digest()) or 1


def group_digest(name: str) -> int:
    """Return 64 bits that stand for the thing with this name; never 0."""
    data = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8, person=b"group").digest()) or 1


class Sightings:
    """The digests that were seen last, and when."""

    def __init__(self, seconds: float) -> None:
        """`seconds` is how long a sighting is remembered."""
        self._seconds = seconds
        # A ring: the place that is taken next is that of the digest that came first. 0: free.
        self.digests = np.zeros(MAX_DIGESTS, np.uint64)
        self.times = np.zeros(MAX_DIGESTS)
        self.next = 0
        self._places: dict[int, int] = {}

    def add(self, digests: Iterable[int], now: float) -> bool:
        """Remember all `digests` at `now`, and return whether any of them was known.

        A sighting that seems to come after `now`, because the clock went back, is known as well.
        """
        known = False
        for digest in digests:
            place = self._places.get(digest)
            if place is None:
                place = self._take_place(digest)
            else:
                known |= bool(abs(now - self.times[place]) < self._seconds)
            self.times[place] = now
        return known

    def _take_place(self, digest: int) -> int:
        place, self.next = self.next, (self.next + 1) % MAX_DIGESTS
        self._places.pop(int(self.digests[place]), None)
        self.digests[place] = digest
        self._places[digest] = place
        return place

    def restore(
        self, digests: npt.NDArray[np.uint64], times: npt.NDArray[np.float64], following: int
    ) -> None:
        """Continue from saved `digests` and `times`, and the place that is taken next."""
        self.digests, self.times, self.next = digests.copy(), times.copy(), following
        self._places = {int(digests[place]): int(place) for place in np.flatnonzero(digests)}


# Counts are compared in blocks of these sizes, because dependence may be long or short.
SCALES: Final = (8, 32, 128, 512, 2048)
# A scale that has no two differences yet is taken to have so much more of it than the one below.
STEP: Final = 4.0
# Labels that two blocks of the largest scale need, with those of a call of `learn`.
KEPT: Final = 2 * SCALES[-1]
LONGEST: Final = 128
# The recent mean forgets after so many predictions, or so many blocks if that is longer.
MEMORY, BLOCKS = 2048, 8
# Weight of the expected shares among the shares that were counted.
PRIOR: Final = 200.0
# Deviations from 1 that count as chance, in standard errors: of the whole stream, of a batch, and
# of one class, for which there are many chances.
GATE, BATCH_GATE, CLASS_GATE = 3.5, 4.5, 5.0
# Single classes are too rare for more than one scale.
CLASS_SCALE: Final = SCALES.index(128)
# The first predictions may all show the same few things, and nothing in them would tell. So a
# stream is taken to be this dependent at its beginning, and less and less until `SETTLED`.
UNKNOWN, SETTLED = 64.0, 1500


class Dependence:
    """An estimate of the design effect of the class counts.

    The design effect is the variance of a count divided by that of independent draws (Kish 1965).
    It is the mean square of the differences between neighbouring blocks (von Neumann 1941), at the
    scale where it is largest. The two largest differences are left out: they may be a change of
    the rates. One mean is over all blocks and one over the recent ones.
    """

    def __init__(self, shares: Doubles) -> None:
        """`shares` [C] are the expected ones."""
        self._prior = PRIOR * shares / shares.sum()
        self.counts = np.zeros(len(shares))
        self.predictions = 0
        self.labels = np.zeros(0, np.int64)
        # Of each class: sums of squared differences and of counts, at one scale.
        self.class_sums = np.zeros((2, len(shares)))
        # Of all blocks and of the recent ones, by scale: number, sum, sum of squares, two largest.
        self.sums = np.zeros((2, len(SCALES), 5))
        # What others have measured, who have seen the predictions in their order.
        self.told = 1.0

    def learn(self, labels: Indices) -> None:
        """Add at most `LONGEST` predictions in the order in which they came."""
        before = self.predictions
        self.predictions += len(labels)
        self.labels = np.concatenate([self.labels, labels])[-KEPT - LONGEST :]
        self.counts += np.bincount(labels, minlength=len(self.counts))
        spread = self._spreads().sum()
        for scale, size in enumerate(SCALES):
            first = max(before // size, 1) - 1
            blocks = self.predictions // size - first
            if blocks < 2:
                continue
            start = len(self.labels) - self.predictions + first * size
            recent = self.labels[start : start + blocks * size]
            pairs, classes, squares = self._squares(recent.reshape(-1, size))
            if scale == CLASS_SCALE:
                both = np.concatenate([recent[size:], recent[:-size]])
                self.class_sums[0] += np.bincount(classes, squares, len(self.counts))
                self.class_sums[1] += np.bincount(both, minlength=len(self.counts))
            keep = 1 - 1 / max(BLOCKS, MEMORY / size)
            ratios = np.bincount(pairs, squares) / (2 * size * spread)
            # How much of each ratio is left at the end of the batch, in both means.
            left = np.stack([np.ones(len(ratios)), keep ** np.arange(len(ratios))[::-1]])
            sums = self.sums[:, scale]
            sums[1] *= keep ** len(ratios)
            sums[:, :3] += left @ np.stack([ratios**0, ratios, ratios**2], 1)
            sums[:, 3:] = np.sort(np.hstack([sums[:, 3:], left * ratios]))[:, -2:]

    def _spreads(self) -> Doubles:
        """[C], the variances of one prediction's counts."""
        shares = (self._prior + self.counts) / (PRIOR + self.predictions)
        spreads: Doubles = shares * (1 - shares)
        return spreads

    def _squares(self, blocks: Indices) -> tuple[Indices, Indices, Doubles]:
        """Return (a - b)² for the counts a, b of neighbours among the `blocks` [N, size].

        Squares come with the index of their pair of blocks and with their class.
        """
        pairs, classes = len(blocks) - 1, len(self.counts)
        if pairs < 1:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        cells = np.stack([blocks[1:], blocks[:-1]]) + classes * np.arange(pairs)[:, None]
        # Equal cells stand together, and the last bit says from which block they are.
        ordered = np.sort((2 * cells + np.array([0, 1])[:, None, None]).ravel())
        places = ordered >> 1
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        differences = np.add.reduceat(1.0 - 2 * (ordered & 1), starts)
        distinct = places[starts]
        return distinct // classes, distinct % classes, differences**2

    @property
    def measured(self) -> float:
        """The design effect that was measured; within chance of independent predictions it is 1.

        It is at least the one that was told.
        """
        number, total, squares = np.moveaxis(self.sums[..., :3], -1, 0)
        known = number >= 2
        trimmed = np.floor(number / 4).clip(0, 2)
        left_out = self.sums[..., 3:] * (trimmed[..., None] >= (2, 1))
        number = (number - trimmed).clip(1)
        mean = (total - left_out.sum(-1)) / number
        error = np.sqrt(((squares - (left_out**2).sum(-1)) / number - mean**2).clip(0) / number)
        chance = mean - 1 < self._chance(number, GATE)
        found: Doubles = np.where(known & ~chance, mean + error, 1.0).max(0).clip(1)
        for scale in range(1, len(SCALES)):
            if not known[0, scale]:
                found[scale] = 1 + STEP * (found[scale - 1] - 1)
        return max(self.told, float(found.max()))

    def _chance(self, number: Doubles, gate: float) -> Doubles:
        """Return how far above 1 a mean of so many differences may be by chance."""
        spreads = self._spreads()
        freedom = spreads.sum() ** 2 / (spreads**2).sum()
        beyond: Doubles = gate * np.sqrt(3 / (freedom * number))
        return beyond

    @property
    def design_effect(self) -> float:
        """The design effect that evidence has to be weakened by."""
        floor = 1 + (UNKNOWN - 1) * max(0.0, 1 - self.predictions / SETTLED)
        return max(floor, self.measured)

    @property
    def class_effects(self) -> Doubles:
        """[C], the measured design effects of single classes, at least that of all.

        The images of one class may come in bursts while those of the others do not.
        """
        squares, counts = self.class_sums
        ratios = squares / counts.clip(1)
        in_block = SCALES[CLASS_SCALE] * counts / counts.sum().clip(1)
        # The variance of the ratio for Poisson counts, a half more because blocks are used twice.
        chance = CLASS_GATE * np.sqrt(1.5 * (1 + 4 * in_block) / counts.clip(1))
        return np.maximum(np.where(ratios - 1 > chance, ratios, 1.0), self.measured)

    def of_batch(self, labels: Indices) -> float:
        """Return the design effect of a batch of predictions by themselves, at least 1.

        A film in a stream of single photos shows here first. If the dependence is longer than a
        batch can show, it is taken to go on growing for one scale more.
        """
        effects = []
        spread = self._spreads().sum()
        for size in SCALES[:2]:
            blocks = labels[: len(labels) // size * size].reshape(-1, size)
            number = max(len(blocks) - 1, 1)
            excess = self._squares(blocks)[2].sum() / (2 * size * spread * number) - 1
            chance = float(self._chance(np.array(number), BATCH_GATE))
            effects.append(excess if excess > chance else 0.0)
        short, long = effects
        return 1 + max(short, long * STEP if long > 1.5 * short else long)

    def delay(self, steps: Doubles, effects: Doubles) -> Doubles:
        """Return the predictions from now on that are worth `steps` [K] independent ones.

        `effects` [K] are the measured design effects.
        """
        return np.maximum(steps * effects, max(0, SETTLED - self.predictions))
