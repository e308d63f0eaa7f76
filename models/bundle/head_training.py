"""Training of a cosine head in numpy, on features of photos and on draws from statistics."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Counts, Doubles, Floats, Indices, Labels
from taillift.models.bundle.feature_statistics import FeatureStatistics, unit

# How often a class without its photos is drawn.
DRAWS: Final = 64
# What is added to the adjustment of a class of n photos without draws: ALLOWANCE n / (n + HALF).
ALLOWANCE: Final = 0.5
HALF: Final = 20
# The settings of the recipe `lift` for its head.
STEPS: Final = 250
BATCH: Final = 32
RATE: Final = 0.002
WARMUP: Final = 25
ANCHOR: Final = 0.3
AVERAGE: Final = 0.99
# Of AdamW (Kingma and Ba 2015, section 2).
MOMENTUM, SECOND, EPSILON = 0.9, 0.999, 1e-8


def extended_head(
    rows: Floats,
    scale: float,
    known: FeatureStatistics,
    indices: Sequence[int | None],
    features: Floats,
    labels: Labels,
    seed: int,
    texts: Floats | None = None,
) -> tuple[Floats, FeatureStatistics]:
    """Return the unit rows [C, D] of a head with further classes, and the statistics of all photos.

    `rows` [B, D], at unit length, are the old head's, and `known` the statistics of the photos that
    it was trained on. `indices` has, for each of the C classes, its index in the old head; None if
    it is new. The new photos have unit `features` [N, D] and classes `labels` [N]. Old rows start
    from where they are, and their classes are drawn equally often. New rows start from class means;
    with `texts`, unit weights [C, D] of all classes' texts, half from these.

    Photos are seen again in every pass, and draws are new ones, so photos take more room than they
    need: the more of a new class there are, the more is added to its adjustment (ours).
    """
    joined = known.only(indices).joined(FeatureStatistics.of(features, labels, len(indices)))
    is_old = np.array([index is not None for index in indices])
    if texts is None:
        start = new_rows(rows, known.means, joined.means)
    else:
        start = prototypes(joined.means, texts)
    start[is_old] = rows[[index for index in indices if index is not None]]
    draws = np.where(is_old, DRAWS, 0)
    photos = np.bincount(labels, minlength=len(indices))
    allowance = ALLOWANCE * photos / (photos + HALF + draws)
    trained = train_head(start, scale, features, labels, joined, draws, seed, allowance)
    return trained, joined


def train_head(
    start: Floats,
    scale: float,
    features: Floats,
    labels: Labels,
    statistics: FeatureStatistics,
    draws: Counts,
    seed: int,
    allowance: Doubles | None = None,
) -> Floats:
    """Return the rows [C, D], at unit length, of a cosine head that starts from `start` [C, D].

    The head learns unit `features` [N, D] of photos with their classes `labels` [N], and `draws`
    [C] features of each class from N(mean, covariance) of the `statistics`, at unit length and new
    in every pass. Its logits are `scale` times the cosines. The loss is the logit-adjusted
    cross-entropy (Menon et al. 2021, equation 10) with the numbers that a pass shows of each class,
    so that the logits carry no prior; a class that it does not show counts as shown once.
    `allowance` [C] is added to these adjustments; it lowers the logits of a class.
    """
    random = np.random.default_rng(seed)
    drawn = np.repeat(np.arange(len(start)), draws)
    every_label = np.concatenate([drawn, labels])
    shown = np.maximum(np.bincount(every_label, minlength=len(start)), 1)
    adjustment = np.log(shown / shown.sum()) + (0 if allowance is None else allowance)
    adjustment = adjustment.astype(np.float32)
    root = statistics.root()

    anchor = unit(start)
    anchor[~anchor.any(1)] = start.shape[1] ** -0.5  # A row of zeros has no direction.
    weight, average = anchor.copy(), anchor.copy()
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for step, batch in enumerate(batches(len(every_label), random)):
        # The rows of this batch: some drawn, the others photos.
        targets, is_drawn = every_label[batch], batch < len(drawn)
        rows = np.empty((len(batch), start.shape[1]), np.float32)
        rows[~is_drawn] = features[batch[~is_drawn] - len(drawn)]
        noise = random.standard_normal((int(is_drawn.sum()), start.shape[1]), np.float32)
        rows[is_drawn] = unit(statistics.means[targets[is_drawn]] + noise @ root)

        # The gradient of the loss: softmax less the target, through the normalisation of the rows.
        lengths = np.linalg.norm(weight, axis=1, keepdims=True)
        direction = weight / lengths
        logits = scale * rows @ direction.T + adjustment
        errors = np.exp(logits - logits.max(1, keepdims=True))
        errors /= errors.sum(1, keepdims=True)
        errors[np.arange(len(batch)), targets] -= 1
        slope = scale / len(batch) * errors.T @ rows
        slope = (slope - (slope * direction).sum(1, keepdims=True) * direction) / lengths

        # A step of AdamW whose decay is toward the initial rows, and the moving average.
        rate = RATE * rate_factor(step)
        weight += rate * ANCHOR * (anchor - weight)
        first += (1 - MOMENTUM) * (slope - first)
        second += (1 - SECOND) * (np.square(slope) - second)
        spread = np.sqrt(second / (1 - SECOND ** (step + 1))) + EPSILON
        weight -= rate / (1 - MOMENTUM ** (step + 1)) * first / spread
        average += (1 - min(AVERAGE, (1 + step) / (10 + step))) * (weight - average)
    return unit(average)


def new_rows(rows: Floats, means: Floats, new: Floats) -> Floats:
    """Return unit rows [M, D] of new classes, from their mean features `new` [M, D].

    They are made like the unit `rows` [C, D] of the old classes, whose mean features are `means`
    [C, D]: of what the rows have in common, and as much as they have, on average, of the direction
    in which a class's mean is from the middle of all. The means alone would not do: what all photos
    have in common is most of them, and a head that starts from prototypes has nothing of it.
    """
    shared, middle = rows.mean(0), means.mean(0)
    own_part = float((rows * unit(means - middle)).sum(1).mean())
    return unit(shared + max(own_part, 0.0) * unit(new - middle))


def prototypes(means: Floats, texts: Floats) -> Floats:
    """Return unit rows [C, D], half from the classes' mean features and half from their texts.

    Both are centred over the classes and normalised before, as at the start of a training.
    """
    parts = (unit(each - each.mean(0)) for each in (means, texts))
    return unit(sum(parts, np.zeros_like(means)))


def batches(items: int, random: np.random.Generator) -> Iterator[Indices]:
    """Yield the indices of each of the `STEPS` batches: all items in a new order, again and again.

    A batch has `BATCH` items, or as many more as it takes to show every item once.
    """
    size = max(BATCH, -(-items // STEPS))
    done = 0
    while True:
        order = random.permutation(items)
        for start in range(0, items, size):
            if done == STEPS:
                return
            done += 1
            yield order[start : start + size]


def rate_factor(step: int) -> float:
    """Return the factor of the rate in a step: a linear rise, then half a cosine."""
    rise = min(1.0, (step + 1) / (WARMUP + 1))
    return rise * (1 + math.cos(math.pi * max(0, step - WARMUP) / (STEPS - WARMUP))) / 2
