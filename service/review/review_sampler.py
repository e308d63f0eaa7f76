"""The choice of photos to label: at random, rare ones more often, and none that looks like another.

A photo is drawn with p = min(1, c (0.02 + mass of the few-shot classes)). Every p depends on the
past alone and is known before the draw, so that labels weighted by 1/p estimate without bias
(Horvitz and Thompson 1952).
"""

from collections import defaultdict
from collections.abc import Callable
from math import exp
from random import Random
from time import time
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Floats

# A photo without any mass on few-shot classes is drawn with so much of the chance of a rare one.
BASE: Final = 0.02
# Photos that show nearly the same have features with a larger cosine.
ALIKE: Final = 0.98
# So many photos that are kept, the latest, are compared with a new one.
COMPARED: Final = 5_000
DAY: Final = 86_400.0
# The service begins with c = 1, as if it had seen photos for so many seconds.
WARM: Final = 3_600.0
# The correction of c is at most e to this power, ...
MOST_CORRECTION: Final = 5.0
# ... or to this one as long as photos are certain to be drawn anyway: a service with few photos
# would keep too many for long once it gets more.
USUAL_CORRECTION: Final = 2.0


class Pace:
    """The factor c, with which about `per_day` photos are kept a day.

    It follows the weights 0.02 + mass that came in the last day, forgotten exponentially. That
    leaves an error, because p is at most 1 and photos that look alike are not kept. So c is also
    corrected by e for each day's budget that was not used, and back for each one kept too much. As
    long as there are photos enough, those kept over any time are the budget of that time, but for
    one day's budget for each factor of e by which the correction has changed.
    """

    def __init__(self, per_day: float, now: float) -> None:
        self._per_day = per_day
        self._last = now
        self._weights = per_day * WARM / DAY
        self._seconds = WARM
        self._correction = 0.0

    def factor(self, weight: float, now: float) -> float:
        """Return c for a photo that comes at `now`, and learn that it came with `weight`."""
        passed = min(max(0.0, now - self._last), DAY)
        self._last = now
        left = exp(-passed / DAY)
        self._weights *= left
        self._seconds = self._seconds * left + DAY * (1 - left)
        factor = self._per_day * self._seconds / (DAY * max(self._weights, 1e-9))
        self._weights += weight
        certain = factor * exp(self._correction) * weight >= 1
        most = USUAL_CORRECTION if certain else MOST_CORRECTION
        if self._correction < most:
            self._correction = min(most, self._correction + passed / DAY)
        return factor * exp(self._correction)

    def note_kept(self) -> None:
        """Learn that a photo was kept."""
        self._correction -= 1 / self._per_day


class ReviewSampler:
    """Draws photos at random, and remembers the features of those that were kept.

    For one thread only.
    """

    def __init__(
        self,
        per_day: float,
        clock: Callable[[], float] = time,
        random: Random | None = None,
    ) -> None:
        self._clock = clock
        self._random = Random() if random is None else random
        self._pace = Pace(per_day, clock())
        # Of each photo that is kept: the version of the bundle, the digest, the features.
        self.kept: dict[str, tuple[str, int, Floats]] = {}
        # The same by version, [N, D], and all digests; made again when they are needed.
        self._rows: dict[str, Floats] | None = None
        self._digests: set[int] = set()

    def draw(self, mass: float, is_eligible: Callable[[], bool]) -> float:
        """Draw a photo with so much `mass` on few-shot classes, 0 to 1.

        Returns the probability of the draw, and 0 if the photo is not drawn. Whether the photo
        `is_eligible` must not depend on the draw; it is only called if it matters.
        """
        weight = BASE + mass
        probability = min(1.0, weight * self._pace.factor(weight, self._clock()))
        if self._random.random() >= probability or not is_eligible():
            return 0.0
        self._pace.note_kept()
        return probability

    def note_kept(self) -> None:
        """Learn that a photo was kept for another reason, so that fewer are drawn."""
        self._pace.note_kept()

    def is_new(self, version: str, digest: int, features: Floats) -> bool:
        """Return whether no photo that is kept looks like this one.

        A copy of its file does in any case, and features [D] are compared with those of the same
        `version` of the bundle.
        """
        if self._rows is None:
            by_version = defaultdict[str, list[Floats]](list)
            for other, _, row in self.kept.values():
                by_version[other].append(row)
            self._rows = {other: np.stack(rows) for other, rows in by_version.items()}
            self._digests = {one for _, one, _ in self.kept.values()}
        if digest in self._digests:
            return False
        rows = self._rows.get(version)
        return rows is None or bool((rows @ unit(features)).max() <= ALIKE)

    def remember(self, key: str, version: str, digest: int, features: Floats) -> None:
        """Let photos that look like this one be left out until `forget` is called with its key."""
        self.kept[key] = version, digest, unit(features)
        if len(self.kept) > COMPARED:
            del self.kept[next(iter(self.kept))]
        self._rows = None

    def forget(self, key: str) -> None:
        """Let photos that look like this one be drawn again."""
        self.kept.pop(key, None)
        self._rows = None


def unit(features: Floats) -> Floats:
    """Return features [D] with length 1; zeros stay zeros, and are like no others."""
    scaled: Floats = (features / max(float(np.linalg.norm(features)), 1e-9)).astype(np.float32)
    return scaled
