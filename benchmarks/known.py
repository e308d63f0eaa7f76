"""Measure what it is worth to know which classes a folder may show, or how many of each.

    python -m benchmarks.known BUNDLE [--set wardrobe-lt] [--draws 30]

Folders of 8, 32 and 128 photos are drawn, with replacement, from the test photos: each class
equally often, or as often as in training. The table has their accuracy as served, with the
classes that occur known, and with the counts known. Results are written to
benchmarks/results/known.md.
"""

import argparse
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.photos import SAMPLE
from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.arrays import Counts, Doubles, Floats, Indices, Labels
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.known_counts import KnownCounts
from taillift.models.bundle.posterior import Prior, among, log_prior
from taillift.training.data.dataset import load_dataset

SIZES: Final = (8, 32, 128)


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


def log_prior_of(classifier: Classifier) -> Doubles:
    return log_prior(Prior.UNIFORM, classifier.manifest.counts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--set", default=SAMPLE)
    parser.add_argument("--draws", type=int, default=30)
    options = parser.parse_args()
    classifier = Classifier.open(options.bundle)
    test = load_dataset(options.set).test
    assert test is not None
    classes, counts = classifier.manifest.labels, np.array(classifier.manifest.counts)
    order = {label: index for index, label in enumerate(classes)}
    names = load_dataset(options.set).classes
    labels = np.array([order[names[label]] for label in test.labels])
    canvases = (classifier.canvas(photo.read()) for photo in test.photos)
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
            for _ in range(options.draws):
                kinds = random.choice(len(classes), size, p=weights / weights.sum())
                chosen = np.array([random.choice(np.flatnonzero(labels == one)) for one in kinds])
                found.append(folder_accuracy(classifier, logits, views, labels, chosen))
            means = np.mean(found, 0)
            rows.append([f"{size}, {mix}", *(f"{one:.1f}" for one in means)])
    titles = ["photos in a folder", "as served", "classes known", "counts known"]
    write_result(RESULTS / "known.md", [markdown(titles, rows)])


if __name__ == "__main__":
    main()
