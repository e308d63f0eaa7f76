"""Measure what it is worth to know which classes a folder may show, or how many of each.

    python -m benchmarks.known BUNDLE [--set wardrobe-lt] [--draws 30]
    python -m benchmarks.known BUNDLE --live [--set wardrobe-lt] [--draws 5]

Folders of 8, 32 and 128 photos are drawn, with replacement, from the test photos: each class
equally often, or as often as in training. The table has their accuracy as served, with the
classes that occur known, and with the counts known. Results are written to
benchmarks/results/known.md.

With `--live`, streams of 2,000 requests are drawn in the same way and answered with prior=live,
by the monitor that serves; the last ones begin with 500 requests of a single class. Results are
written to benchmarks/results/live-prior.md. The bundle's confusions may have been measured on the
same photos, so a second table measures them on one half of the photos, the one that no stream is
drawn from.
"""

import argparse
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.photos import SAMPLE
from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.arrays import Counts, Doubles, Floats, Indices, Labels
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.known_counts import KnownCounts
from taillift.models.bundle.posterior import Prior, among, group_prior, log_prior
from taillift.service.monitoring.recorder import model_profile
from taillift.service.tail.confusion import Pair
from taillift.service.tail.monitor import ModelProfile, Rules, TailMonitor
from taillift.service.tail.prevalence import LiveRules
from taillift.training.data.dataset import load_dataset

SIZES: Final = (8, 32, 128)
# The time of all requests of a stream.
NOON: Final = 1.7e9

# The logits [N, C] of photos by an ensemble, and their views [N].
ViewLogits = tuple[Ensemble, Floats, Counts]


def folder_accuracy(
    classifier: Classifier, logits: Floats, views: Counts, labels: Labels, chosen: Indices
) -> list[float]:
    """Return the accuracy of one folder as served, with its classes and with its counts known."""
    predictor, names = classifier.predictor, classifier.manifest.labels
    counts = np.bincount(labels[chosen], minlength=len(names))
    present = np.flatnonzero(counts).tolist()
    rows, taken = logits[chosen], views[chosen]
    plain = predictor.probabilities(rows, taken, Ensemble.FULL)
    answers = [plain.argmax(1)]
    if len(present) > 1:
        prior = among(log_prior_of(classifier), present)
        answers.append(predictor.probabilities(rows, taken, Ensemble.FULL, prior).argmax(1))
    else:
        answers.append(np.full(len(chosen), present[0]))
    known = KnownCounts.of([(names[one], int(counts[one])) for one in present], names)
    answers.append(np.array([one.kind for one in known.assign(list(plain)) if one is not None]))
    return [100 * float((one == labels[chosen]).mean()) for one in answers]


@dataclass(frozen=True)
class TestPhotos:
    """The posteriors [N, C] of test photos under the uniform prior, and their classes [N]."""

    posteriors: Doubles
    labels: Labels
    rows: Indices

    def stream(self, weights: Doubles, requests: int, random: np.random.Generator) -> Indices:
        """Draw photos whose classes come as often as `weights` [C] say."""
        own = [self.rows[self.labels[self.rows] == one] for one in range(len(weights))]
        kinds = random.choice(len(weights), requests, p=weights / weights.sum())
        return np.array([random.choice(own[kind]) for kind in kinds])

    def halves(self, random: np.random.Generator) -> "tuple[TestPhotos, TestPhotos]":
        """Return two halves of the photos of each class."""
        order = random.permutation(self.rows)
        order = order[np.argsort(self.labels[order], kind="stable")]
        one, other = (replace(self, rows=order[start::2]) for start in (0, 1))
        return one, other

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The photos by true and predicted class."""
        predicted = self.posteriors[self.rows].argmax(1).tolist()
        counted = Counter(zip(self.labels[self.rows].tolist(), predicted, strict=True))
        return tuple((true, guess, photos) for (true, guess), photos in counted.items())


def live_gains(
    photos: TestPhotos, profile: ModelProfile, stream: Indices, known: Doubles
) -> tuple[Doubles, Doubles, bool]:
    """Return how much more often, 0 or ±1, each request of a stream is right than as served.

    First with prior=live, then with the group shares `known` (a log prior [C]). The last value says
    whether the live prior ever stood still.
    """
    monitor = TailMonitor(profile, Rules(live=LiveRules()), lambda: NOON)
    assert monitor.live is not None
    logs, right = np.log(photos.posteriors), photos.labels
    served = photos.posteriors.argmax(1)
    gains, stood = np.zeros((2, len(stream))), False
    for request, photo in enumerate(stream.tolist()):
        for row, prior in enumerate((monitor.live.current.log_prior, known)):
            answer = (logs[photo] + prior).argmax()
            gains[row, request] = float(answer == right[photo]) - float(
                served[photo] == right[photo]
            )
        monitor.observe(int(served[photo]), 0.5)
        stood |= bool(monitor.live.current.frozen)
    return gains[0], gains[1], stood


def live_rows(
    photos: TestPhotos, profile: ModelProfile, draws: int, halved: bool
) -> list[list[str]]:
    """Return the rows of the table for the three mixes."""
    counts = np.array(profile.counts, np.float64)
    mixes = {
        "balanced": np.ones(len(counts)),
        "as in training": counts,
        "reversed": counts[::-1].copy(),
    }
    rows = []
    for mix, weights in mixes.items():
        found, stops = [], 0
        for seed in range(draws):
            random = np.random.default_rng(seed)
            ours, judge = photos, profile
            if halved:
                ours, others = photos.halves(random)
                judge = replace(profile, pairs=others.pairs)
            shares = dict.fromkeys(profile.groups, 0.0)
            for group, weight in zip(profile.groups, weights, strict=True):
                shares[group] += float(weight)
            known = group_prior(shares, profile.groups)
            live, best, stood = live_gains(ours, judge, ours.stream(weights, 2000, random), known)
            found.append([100 * live.mean(), 100 * best.mean()])
            stops += stood
        live_gain, known_gain = np.array(found).T
        rows.append(
            [
                mix,
                f"{live_gain.mean():+.1f}",
                f"{live_gain.min():+.1f} to {live_gain.max():+.1f}",
                f"{known_gain.mean():+.1f}",
                f"{stops} of {draws}",
            ]
        )
    return rows


def burst_rows(photos: TestPhotos, profile: ModelProfile) -> list[list[str]]:
    """Return the gains by 250 requests of streams that begin with 500 of one class."""
    classes, even = len(profile.labels), np.zeros(len(profile.labels))
    found = []
    for kind in range(classes):
        random = np.random.default_rng(kind)
        single = photos.stream(np.eye(classes)[kind], 500, random)
        mixed = photos.stream(np.ones(classes), 1500, random)
        live, _, _ = live_gains(photos, profile, np.concatenate([single, mixed]), even)
        found.append(100 * live.reshape(-1, 250).mean(1))
    means, worst = np.mean(found, 0), np.min(found, 0)
    return [
        [f"{250 * part + 1} to {250 * part + 250}", f"{mean:+.1f}", f"{least:+.1f}"]
        for part, (mean, least) in enumerate(zip(means, worst, strict=True))
    ]


def write_live(
    classifier: Classifier, bundle: Path, outputs: list[ViewLogits], labels: Labels, draws: int
) -> None:
    """Measure prior=live, and write the results."""
    profile = model_profile(bundle, classifier.manifest)
    parts: list[str] = []
    for ensemble, logits, views in outputs:
        posteriors = classifier.predictor.probabilities(logits, views, ensemble)
        photos = TestPhotos(posteriors, labels, np.arange(len(labels)))
        for halved in (False, True) if ensemble is Ensemble.FULL else (False,):
            judge = "one half of the photos" if halved else "the bundle"
            parts.append(f"Ensemble {ensemble}, confusions of {judge}:")
            titles = ["stream", "live", "all draws", "group shares known", "stood still"]
            parts.append(markdown(titles, live_rows(photos, profile, draws, halved)))
        if ensemble is Ensemble.OFF:
            continue
        parts.append(f"Ensemble {ensemble}, 500 requests of one class, then balanced:")
        titles = ["requests", "mean of all classes", "worst class"]
        parts.append(markdown(titles, burst_rows(photos, profile)))
    write_result(RESULTS / "live-prior.md", parts)


def log_prior_of(classifier: Classifier) -> Doubles:
    return log_prior(Prior.UNIFORM, classifier.manifest.counts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--set", default=SAMPLE)
    parser.add_argument("--draws", type=int)
    parser.add_argument("--live", action="store_true")
    options = parser.parse_args()
    draws = options.draws or (5 if options.live else 30)
    classifier = Classifier.open(options.bundle)
    test = load_dataset(options.set).test
    assert test is not None
    classes, counts = classifier.manifest.labels, np.array(classifier.manifest.counts)
    order = {label: index for index, label in enumerate(classes)}
    names = load_dataset(options.set).classes
    labels = np.array([order[names[label]] for label in test.labels])
    canvases = [classifier.canvas(photo.read()) for photo in test.photos]
    if options.live:
        outputs = [
            (ensemble, *classifier.mean_logits(canvases, ensemble))
            for ensemble in (Ensemble.FULL, Ensemble.OFF)
        ]
        write_live(classifier, options.bundle, outputs, labels, draws)
        return
    logits, views = classifier.mean_logits(canvases)
    shares = {
        "balanced": np.ones(len(classes)),
        "as in training": counts.astype(np.float64),
    }
    rows = []
    for size in SIZES:
        for mix, weights in shares.items():
            random = np.random.default_rng(size)
            found = []
            for _ in range(draws):
                kinds = random.choice(len(classes), size, p=weights / weights.sum())
                chosen = np.array([random.choice(np.flatnonzero(labels == one)) for one in kinds])
                found.append(folder_accuracy(classifier, logits, views, labels, chosen))
            means = np.mean(found, 0)
            rows.append([f"{size}, {mix}", *(f"{one:.1f}" for one in means)])
    titles = ["photos in a folder", "as served", "classes known", "counts known"]
    write_result(RESULTS / "known.md", [markdown(titles, rows)])


if __name__ == "__main__":
    main()
