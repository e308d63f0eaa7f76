"""The costs of ids and labels, and what the estimates from labels are worth.

    python -m benchmarks.labels ids | million | intervals | evidence

`ids`: time to make and to check an id. `million`: the size of a file with a million labels, and how
long the first report, a report after one more label, and the JSON of GET /classes take with 1,000
classes. `intervals`: how often the 95 % intervals contain the truth, and how far the plain accuracy
of the labelled photos is off, for three ways to choose them. `evidence`: labels until confidences
that are wrong are found.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time, time
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.watched import simulated_monitor
from taillift.service.feedback.label_book import LabelBook, LabelRequest
from taillift.service.feedback.label_store import ClassList, GivenLabel, LabelStore
from taillift.service.feedback.live_accuracy import CalibrationEvidence, WeightedSums
from taillift.service.feedback.prediction_id import PredictionId, Signer, id_bytes
from taillift.service.http import class_report
from taillift.service.tail.distributions import Doubles
from tests.support.simulated_labels import simulated_stream

IDS: Final = 100_000
MILLION: Final = 1_000_000
CLASSES: Final = 1_000
RUNS: Final = 500
RULES: Final = ("random", "least margin", "tail mass")
KEY: Final = b"a key of a benchmark"
Row = list[str]


def ids() -> tuple[Row, list[Row]]:
    """Return microseconds of processor time for one id, the median of five rounds."""
    signer, makes, checks = Signer([KEY], 90), [], []
    for _ in range(5):
        start = process_time()
        texts = [
            signer.sign(PredictionId(3, number % 1_000, 0.9, "few", "accept", 0.03))
            for number in range(IDS)
        ]
        middle = process_time()
        for text in texts:
            signer.read(text)
        makes.append(middle - start)
        checks.append(process_time() - middle)
    rows = [
        [name, f"{median(taken) / IDS * 1e6:.1f} µs"]
        for name, taken in (("make", makes), ("check", checks))
    ]
    return ["an id", "processor time"], rows


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time that `work` takes, whatever else runs on the machine."""
    start = process_time()
    work()
    return process_time() - start


def million() -> tuple[Row, list[Row]]:
    """Return the sizes and times of a million labels."""
    monitor = simulated_monitor(CLASSES, "auto").monitoring
    manifest = monitor.manifest
    groups = tuple(info.group for info in manifest.classes)
    classes = ClassList("0", tuple(manifest.labels), groups)
    random, now, signer = np.random.default_rng(0), time(), Signer([KEY], 90)

    def new(index: int) -> tuple[str, str]:
        truth = int(random.integers(CLASSES)) if random.random() < 0.2 else index
        chance = float(random.choice([0.02, 0.1, 0.5]))
        made = int(now - 80 * 86_400 * random.random())
        text = signer.sign(PredictionId(1, index, 0.8, groups[index], None, chance, made))
        return text, classes.labels[truth]

    with TemporaryDirectory() as folder:
        path = Path(folder) / "labels.sqlite"
        store = LabelStore(path, MILLION + 1_000)
        book = LabelBook(store, signer, 90)
        book.know(1, classes)
        for start in range(0, MILLION, 10_000):
            labels = (new(number % CLASSES) for number in range(start, start + 10_000))
            store.put([GivenLabel(id_bytes(text), label) for text, label in labels], 1_000)
        book.close()
        size = sum(file.stat().st_size for file in path.parent.iterdir()) / 2**20

        book = LabelBook(LabelStore(path, MILLION + 1_000), signer, 90)

        def listing() -> None:
            live = book.report(1)
            assert live is not None
            live.compute_shares()
            snapshot = class_report.take_snapshot(manifest, monitor.monitor, live)
            class_report.classes(snapshot).model_dump_json()

        def one_more() -> None:
            text, label = new(7)
            (taken,) = book.take([LabelRequest(text, label)])
            assert taken.status == "accepted"

        first = seconds(listing)
        again = median(seconds(listing) for _ in range(9))
        takes, changed = [], []
        for _ in range(9):
            takes.append(seconds(one_more))
            changed.append(seconds(listing))
        book.close()
    rows = [
        ["file", f"{size:.0f} MiB"],
        ["first GET /classes after a start", f"{first:.1f} s"],
        ["GET /classes", f"{again * 1e3:.0f} ms"],
        ["GET /classes after one more label", f"{median(changed) * 1e3:.0f} ms"],
        ["POST /feedback of one label", f"{median(takes) * 1e3:.1f} ms"],
    ]
    return [f"a million labels, {CLASSES:,} classes", "size or processor time"], rows


def intervals() -> tuple[Row, list[Row]]:
    """Return how the estimates do over 500 runs of 250 labels, in per cent and points."""
    stream, rows = simulated_stream(7), []
    for rule in RULES:
        chances = stream.probabilities(rule, 250)
        chosen = np.random.default_rng(8).random((RUNS, len(chances))) < chances
        row = [rule, f"{(chosen & stream.rare).sum(1).mean():.0f}"]
        for kind in (np.ones(len(chances), np.bool_), stream.rare):
            truth, labelled = 100 * stream.right[kind].mean(), (chosen & kind).astype(np.float64)
            for weights in (np.ones(len(chances)), 1 / chances):
                columns = (
                    np.ones(len(chances)),
                    np.ones(len(chances)),
                    ~stream.right,
                    weights,
                    weights**2,
                    weights * stream.right,
                )
                sums = WeightedSums(np.stack([labelled @ column for column in columns]))
                shares = [share for share in sums.shares() if share.too_few is None]
                off = 100 * np.mean([share.estimate for share in shares]) - truth
                inside = [100 * share.low <= truth <= 100 * share.high for share in shares]
                row.append(f"{off:+.1f} ({100 * np.mean(inside):.0f} %)")
        rows.append(row)
    heads = ["chosen by", "rare photos", "accuracy, plain", "accuracy", "rare recall, plain"]
    return [*heads, "rare recall"], rows


def evidence() -> tuple[Row, list[Row]]:
    """Return the labels until wrong confidences are found, at 75 labels a day."""
    stream, rows = simulated_stream(1), []
    right, sharper = stream.posteriors.max(1), stream.posteriors**2
    doubled = (sharper / sharper.sum(1, keepdims=True)).max(1)
    cases = (("sound", right, 0), ("logits twice as large", doubled, 0))
    for name, wrong, start in (*cases, ("the same after 1,500 labels", doubled, 1_500)):
        for rule in RULES:
            found = sorted(
                labels_until_found(right, wrong, start, stream.probabilities(rule, 250), run)
                for run in range(200)
            )
            share = np.mean(np.isfinite(found))
            times = [f"{found[place] - start:.0f}" for place in (100, 190)]
            rows.append([name, rule, f"{100 * share:.1f} %", *times])
    return ["confidences", "chosen by", "found", "median", "95 of 100"], rows


def labels_until_found(
    truths: Doubles,
    wrong: Doubles,
    start: int,
    chances: Doubles,
    seed: int,
) -> float:
    """Return the labels until the evidence is beyond the alert's; infinity after 1,500 more."""
    random, certain, step = np.random.default_rng(seed), np.log10(60), 25
    tested = CalibrationEvidence(90)
    for labels in range(0, start + 1_500, step):
        drawn = random.choice(len(truths), step, p=chances / chances.sum())
        confidences = (wrong if labels >= start else truths)[drawn]
        correct = (random.random(step) < truths[drawn]).astype(np.float64)
        days = np.full(step, labels // 75)
        tested.add(days, np.zeros(step, np.int64), confidences, correct, chances[drawn])
        if tested.log_e_values()[0] > certain:
            return labels + step
    return float("inf")


PARTS: Final[dict[str, Callable[[], tuple[Row, list[Row]]]]] = {
    "ids": ids,
    "million": million,
    "intervals": intervals,
    "evidence": evidence,
}


def main() -> None:
    """Print the table of one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    heads, rows = PARTS[parser.parse_args().part]()
    table = Table(*heads)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
