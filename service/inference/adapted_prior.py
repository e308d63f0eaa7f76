"""`taillift adapt-prior`: a prior estimated from a folder of photos without labels.

The share of each group is the most likely one, by expectation maximisation on the photos'
posteriors (Saerens, Latinne and Decaestecker 2002, section 2.2), with the classes of a group
equally often. Three shares can be told from few photos; the shares of all classes cannot, and are
estimated only if asked for and from many photos. A prior is worth writing if it makes photos
likelier that it was not estimated from.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Doubles, Indices, group_indices
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.posterior import Prior
from taillift.models.bundle.schema import GROUPS
from taillift.models.errors import UserError

# Photos that count toward equal shares, for each class that is estimated by itself.
CLASS_PULL: Final = 5.0
# The same for groups, together.
GROUP_PULL: Final = 2.0
PHOTOS_A_CLASS: Final = 20
FEWEST_PHOTOS: Final = 20
MAX_STEPS: Final = 1_000
CONVERGED: Final = 1e-6
RESAMPLES: Final = 100
# Of a normal distribution, for an interval of 95 %.
DEVIATIONS: Final = 1.96


@dataclass(frozen=True)
class AdaptedPrior:
    """Shares estimated from a folder, and what they are worth.

    `shares` [C] are those of the classes. `groups` [G] are the sums by group, with their 95 %
    interval from `low` to `high` (bootstrap). `gain` is the mean gain in the logarithm of a photo's
    likelihood over equal shares, on the half of the photos that was not estimated from, both ways,
    and `error` its standard error.
    """

    shares: Doubles
    groups: Doubles
    low: Doubles
    high: Doubles
    gain: float
    error: float

    @property
    def lines(self) -> list[str]:
        """The shares of the groups and the gain, to print."""
        shares = [
            f"{group}: {share:.1%} ({low:.1%} to {high:.1%})"
            for group, share, low, high in zip(
                GROUPS, self.groups, self.low, self.high, strict=True
            )
        ]
        margin = DEVIATIONS * self.error
        return [
            *shares,
            f"gain in log-likelihood a photo, on photos that were not estimated from: "
            f"{self.gain:.3f} ({self.gain - margin:.3f} to {self.gain + margin:.3f})",
        ]

    @property
    def is_sure(self) -> bool:
        """Whether the 95 % interval of the gain is above 0."""
        return self.gain - DEVIATIONS * self.error > 0


def adapt_prior(
    rows: Sequence[Doubles], manifest: Manifest, per_class: bool = False, seed: int = 0
) -> AdaptedPrior:
    """Estimate a prior from the posteriors [C] of N photos under the uniform prior.

    Raises `UserError` if there are too few photos.
    """
    photos, classes = len(rows), len(manifest.classes)
    needed = PHOTOS_A_CLASS * classes if per_class else FEWEST_PHOTOS
    if photos < needed:
        means = f"; --per-class needs {PHOTOS_A_CLASS} a class" if per_class else ""
        raise UserError(f"{photos:,} photos are too few: give at least {needed:,}{means}")
    posteriors = np.stack(rows)
    group = group_indices([info.group for info in manifest.classes])
    kinds = np.arange(classes) if per_class else group
    sizes = np.bincount(kinds, minlength=0 if per_class else len(GROUPS))
    sums = np.stack([posteriors[:, kinds == kind].sum(1) for kind in range(len(sizes))], 1)
    likelihoods = np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0)
    even = sizes / classes
    pull = even * (CLASS_PULL * classes if per_class else GROUP_PULL)

    random = np.random.default_rng(seed)
    order = random.permutation(photos)
    gains = np.empty(photos)
    for ours, others in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        shares = most_likely(likelihoods[ours], even, pull)
        gains[others] = np.log(likelihoods[others] @ shares) - np.log(likelihoods[others] @ even)

    shares = most_likely(likelihoods, even, pull)
    resampled = np.stack(
        [
            in_groups(
                most_likely(likelihoods[random.integers(0, photos, photos)], even, pull),
                group,
                per_class,
            )
            for _ in range(RESAMPLES)
        ]
    )
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return AdaptedPrior(
        shares=shares[kinds] / sizes[kinds],
        groups=in_groups(shares, group, per_class),
        low=low,
        high=high,
        gain=float(gains.mean()),
        error=float(gains.std(ddof=1) / np.sqrt(photos)),
    )


def in_groups(shares: Doubles, group: Indices, per_class: bool) -> Doubles:
    """Return the share of each group, from shares of classes or from those of the groups."""
    return np.bincount(group, shares, len(GROUPS)).astype(np.float64) if per_class else shares


def most_likely(likelihoods: Doubles, start: Doubles, pull: Doubles) -> Doubles:
    """Return the most likely shares [K] of photos with likelihoods [N, K].

    `pull` [K] counts as photos that are known to be of each kind. A kind that starts from 0 keeps
    it.
    """
    share = start
    for _ in range(MAX_STEPS):
        joint = likelihoods * share
        images: Doubles = (joint / joint.sum(1, keepdims=True)).sum(0) + pull
        before, share = share, images / images.sum()
        if np.abs(share - before).max() < CONVERGED:
            break
    return share


def as_priors_file(adapted: AdaptedPrior, manifest: Manifest, name: str) -> str:
    """Return the JSON of a file for the setting `priors` with one prior."""
    weights = {
        label: float(f"{share:.6g}")
        for label, share in zip(manifest.labels, adapted.shares, strict=True)
    }
    return json.dumps({name: weights}, indent=1, ensure_ascii=False) + "\n"


def refuse_taken(path: Path, name: str) -> None:
    """Raise `UserError` if the file is there already, or the service has a prior of this name."""
    if name in set(Prior):
        raise UserError(f"--name {name}: the service has a prior of this name; choose another")
    if path.exists():
        raise UserError(f"{path} is there already: choose another name, or remove it")
