"""The likeliest classes of several images together, if it is known how many each class has.

Each image has one class, and each class a least and a most number of images. Among all such
assignments, the one with the largest sum of log probabilities is found exactly, as a flow of least
cost: images are assigned one after the other, each along the cheapest chain of exchanges between
the classes (Ahuja, Magnanti and Orlin 1993, Network Flows, section 9.7). A prior need not be known:
it would add the same sum to every assignment with the same counts.
"""

from typing import Final, NamedTuple

import numpy as np

from taillift.models.bundle.arrays import Counts, Doubles, Indices

# Most images that are assigned together: the time grows with their square.
MOST_IMAGES: Final = 2_000
# Most classes among which they are: the time grows with their cube.
MOST_CLASSES: Final = 256
# A cost that falls by less has not fallen; relative to the largest difference of two scores.
ROUNDING: Final = 1e-9


class Assignment(NamedTuple):
    """The class [N] of each image, its margin [N] and the next best class [N].

    The margin is by how much the sum of log probabilities falls if the image has any other class
    and all others are assigned as well as possible; infinite if no other assignment meets the
    counts. `instead` is the image's class in that next best assignment, and its own class if there
    is none.
    """

    classes: Indices
    margins: Doubles
    instead: Indices

    @property
    def confidence(self) -> Doubles:
        """The probability [N] of each image's class against that of the next best assignment."""
        confidence: Doubles = 1 / (1 + np.exp(-self.margins))
        return confidence


def assign(scores: Doubles, least: Counts, most: Counts) -> Assignment:
    """Assign N images to K classes so that the sum of their scores is largest.

    `scores` [N, K] are log probabilities, up to a constant in each row, and finite. Class k gets
    `least[k]` to `most[k]` images. Raises `ValueError` if no assignment does.
    """
    if not least.sum() <= len(scores) <= np.minimum(most, len(scores)).sum():
        raise ValueError(f"{len(scores)} images, and not {least.sum()} to {most.sum()}")
    exchanges = Exchanges(scores)
    # A place that a class must fill is worth more than any chain of exchanges costs.
    must = -exchanges.unit * (len(least) + 1)
    for image in range(len(scores)):
        numbers = exchanges.numbers
        places = np.where(numbers < least, must, np.where(numbers < most, 0.0, np.inf))
        costs, following = exchanges.chains(places)
        exchanges.insert(image, int((costs - scores[image]).argmin()), following)
    return exchanges.result(least, most)


class Exchanges:
    """Images in classes, and what it costs to move one from a class to another.

    `steps[a, b]` is the least loss of score [K, K] of moving one image of class a to class b, and
    `movers[a, b]` that image; infinite for an empty class. No move costs `unit` or more.
    """

    def __init__(self, scores: Doubles) -> None:
        kinds = scores.shape[1]
        self.scores = scores
        self.unit = 1 + (float(np.ptp(scores)) if scores.size else 0)
        self.classes: Indices = np.full(len(scores), -1)
        self.numbers: Counts = np.zeros(kinds, np.int64)
        self.steps = np.full((kinds, kinds), np.inf)
        self.movers: Indices = np.full((kinds, kinds), -1)

    def chains(self, places: Doubles) -> tuple[Doubles, Indices]:
        """Return the least cost [K] of making room in each class, and the class that follows it.

        `places` [K] is the cost of a free place in a class. A class whose own place is cheapest is
        followed by itself; otherwise one of its images moves to the class that follows.
        """
        costs, following = places.copy(), np.arange(len(places))
        for _ in places:
            through = self.steps + costs
            best, through = through.argmin(1), through.min(1)
            cheaper = through < costs - ROUNDING * self.unit
            if not cheaper.any():
                break
            costs[cheaper] = through[cheaper]
            following[cheaper] = best[cheaper]
        return costs, following

    def insert(self, image: int, kind: int, following: Indices) -> None:
        """Put an image into a class, and move one image along each link of the chain from it."""
        changed = [kind]
        while following[kind] != kind:
            mover, after = int(self.movers[kind, following[kind]]), int(following[kind])
            self.classes[image], image, kind = kind, mover, after
            changed.append(kind)
        self.classes[image] = kind
        self.numbers[kind] += 1
        for one in changed:
            self._measure(one)

    def _measure(self, kind: int) -> None:
        """Find the cheapest image to move from a class to each other one."""
        members = np.flatnonzero(self.classes == kind)
        losses = self.scores[members, kind, None] - self.scores[members]
        nearest = losses.argmin(0)
        self.movers[kind], self.steps[kind] = members[nearest], losses.min(0)
        self.steps[kind, kind] = np.inf

    def result(self, least: Counts, most: Counts) -> Assignment:
        """Return the assignment, with the margin of each image."""
        back = self._ways_back(least, most)
        margins = np.full(len(self.scores), np.inf)
        instead = self.classes.copy()
        for image, kind in enumerate(self.classes):
            losses = self.scores[image, kind] - self.scores[image] + back[:, kind]
            losses[kind] = np.inf
            if np.isfinite(losses.min()):
                # An equally good assignment may seem better by a rounding error.
                margins[image], instead[image] = max(losses.min(), 0), losses.argmin()
        return Assignment(self.classes, margins, instead)

    def _ways_back(self, least: Counts, most: Counts) -> Doubles:
        """Return the least cost [K, K] of giving class b an image that class a has too many of.

        A class may also grow while another shrinks, if the counts allow it: both pass through one
        more node, which stands for the images that classes may have more or fewer of.
        """
        kinds = len(least)
        ways = np.full((kinds + 1, kinds + 1), np.inf)
        ways[:kinds, :kinds] = self.steps
        ways[:kinds, kinds][self.numbers < most] = 0
        ways[kinds, :kinds][self.numbers > least] = 0
        np.fill_diagonal(ways, 0)
        for node in range(kinds + 1):
            np.minimum(ways, ways[:, node, None] + ways[None, node], out=ways)
        return ways[:kinds, :kinds]
