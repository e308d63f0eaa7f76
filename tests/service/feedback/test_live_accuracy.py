"""The estimates from labels of chosen photos: that they hold for all, and that others do not."""

from dataclasses import replace

import numpy as np
import pytest

from taillift.service.feedback.label_store import ClassList
from taillift.service.feedback.live_accuracy import LiveAccuracy, LiveShare, WeightedSums
from taillift.service.feedback.prediction_id import PredictionId, Signer, id_bytes
from taillift.service.tail.distributions import Doubles, Flags
from tests.support.simulated_labels import SimulatedStream, simulated_stream

RUNS, LABELS = 500, 250
NOW = 1_800_000_000
CLASSES = ClassList("2e5e00", ("red", "blue", "black"), ("many", "medium", "few"))
SIGNER = Signer([b"k" * 16])


@pytest.fixture(scope="module")
def stream() -> SimulatedStream:
    return simulated_stream(7)


def shares_of_runs(right: Flags, of: Flags, chosen: Flags, chances: Doubles) -> list[LiveShare]:
    """Return for each run what `chosen` photos' labels [R, N] say of the photos `of` a kind."""
    labelled = (chosen & of).astype(np.float64)
    weights = 1 / chances
    columns = (np.ones(len(of)), np.ones(len(of)), ~right, weights, weights**2, weights * right)
    return WeightedSums(np.stack([labelled @ column for column in columns])).shares()


@pytest.mark.parametrize(
    ("rule", "misses"), [("random", False), ("least margin", True), ("tail mass", True)]
)
def test_intervals_contain_the_truth_however_photos_are_chosen(
    stream: SimulatedStream, rule: str, misses: bool
) -> None:
    chances = stream.probabilities(rule, LABELS)
    chosen = np.random.default_rng(8).random((RUNS, len(chances))) < chances
    for kind in (np.ones(len(chances), np.bool_), stream.rare):
        truth = stream.right[kind].mean()
        shares = [
            share
            for share in shares_of_runs(stream.right, kind, chosen, chances)
            if share.too_few is None
        ]
        assert len(shares) >= RUNS / 2
        assert np.mean([share.low <= truth <= share.high for share in shares]) >= 0.93
    truth, everything = stream.right.mean(), np.ones(len(chances), np.bool_)
    plain = shares_of_runs(stream.right, everything, chosen, np.ones(len(chances)))
    covered = np.mean([share.low <= truth <= share.high for share in plain])
    assert (covered < 0.2) if misses else (covered >= 0.93)


@pytest.mark.parametrize("rule", ["random", "least margin", "tail mass"])
def test_estimates_are_right_on_average(stream: SimulatedStream, rule: str) -> None:
    chances = stream.probabilities(rule, 1_000)
    chosen = np.random.default_rng(9).random((RUNS, len(chances))) < chances
    for kind in (np.ones(len(chances), np.bool_), stream.rare):
        shares = shares_of_runs(stream.right, kind, chosen, chances)
        mean = np.mean([share.estimate for share in shares])
        assert mean == pytest.approx(stream.right[kind].mean(), abs=0.015)


def test_choosing_by_tail_mass_finds_twice_the_rare_photos(stream: SimulatedStream) -> None:
    random, tail = (
        stream.probabilities(rule, LABELS)[stream.rare].sum() for rule in ("random", "tail mass")
    )
    assert tail >= 2 * random


def labelled(*labels: tuple[int, str | None, float], age: float = 0.0) -> LiveAccuracy:
    """Return what labels say, each with its answer's index and its photo's probability."""
    live = LiveAccuracy(CLASSES, 90)
    add(live, *labels, age=age)
    return live


def add(
    live: LiveAccuracy, *labels: tuple[int, str | None, float], age: float = 0.0, sign: int = 1
) -> None:
    ids = b"".join(
        id_bytes(
            SIGNER.sign(
                replace(
                    PredictionId(2, answer, 0.9, CLASSES.groups[answer], time=int(NOW - age)),
                    probability=probability,
                )
            )
        )
        for answer, _, probability in labels
    )
    live.add(ids, [label for _, label, _ in labels], NOW - 90 * 86_400, sign)


def test_volunteered_labels_are_counted_and_never_estimated_from() -> None:
    report = labelled(*[(0, "blue", 0.0)] * 30).report()
    assert report.by_truth.labels.tolist() == [0, 30, 0, 0]
    assert report.by_truth.sampled.tolist() == [0, 0, 0, 0]
    assert report.by_answer.corrected.tolist() == [30, 0, 0]
    assert report.accuracy.too_few == "too few (0)"
    assert report.evidence.tolist() == [0, 0, 0]


def test_labels_weigh_as_much_as_their_photos_stand_for() -> None:
    rows = [*[(0, "red", 0.01)] * 12, *[(2, "blue", 1.0)] * 100]
    report = labelled(*rows).report()
    assert report.accuracy.estimate == pytest.approx(1200 / 1300, rel=1e-3)
    assert report.recalls[0].estimate == 1
    assert report.recalls[1].estimate == 0
    assert report.precisions[2].estimate == 0
    assert report.accuracy.effective == pytest.approx(1300**2 / (12 * 100**2 + 100), rel=1e-3)


@pytest.mark.parametrize(("labels", "text"), [(7, "too few (7)"), (9, "too few (9)"), (10, None)])
def test_below_ten_labels_there_is_a_text_and_no_number(labels: int, text: str | None) -> None:
    report = labelled(*[(2, "black", 0.5)] * labels).report()
    assert report.recalls[2].too_few == text


def test_ten_labels_of_which_one_counts_for_the_rest_are_too_few() -> None:
    report = labelled((0, "red", 0.001), *[(0, "red", 0.5)] * 50).report()
    assert report.recalls[0].too_few == "too few (1)"


def test_a_photo_of_none_of_the_classes_is_a_mistake_of_every_answer() -> None:
    report = labelled(*[(0, "red", 0.5)] * 10, *[(0, None, 0.5)] * 10).report()
    assert report.accuracy.estimate == pytest.approx(0.5)
    assert report.precisions[0].estimate == pytest.approx(0.5)
    assert report.recalls[0].estimate == 1
    assert report.by_truth.labels.tolist() == [10, 0, 0, 10]


def test_a_class_that_the_version_does_not_have_is_none_of_its_classes() -> None:
    report = labelled((0, "a class of the next version", 0.5)).report()
    assert report.by_truth.labels.tolist() == [0, 0, 0, 1]


def test_old_predictions_do_not_count() -> None:
    report = labelled(*[(0, "red", 0.5)] * 20, age=90 * 86_400 + 1).report()
    assert report.by_truth.labels.sum() == 0


def test_a_label_that_is_taken_away_leaves_nothing() -> None:
    live = labelled(*[(0, "red", 0.5)] * 10)
    before = live.report()
    add(live, (1, "black", 0.001))
    assert live.report().accuracy.estimate < 0.5
    add(live, (1, "black", 0.001), sign=-1)
    after = live.report()
    assert after.by_answer.values == pytest.approx(before.by_answer.values)
    assert after.evidence == pytest.approx(before.evidence)


def test_groups_are_sums_over_their_classes() -> None:
    classes = ClassList("2e5e00", ("a", "b", "c"), ("few", "few", "many"))
    live = LiveAccuracy(classes, 90)
    add(live, *[(0, "a", 0.5)] * 10, *[(2, "b", 0.5)] * 30)
    many, medium, few = live.report().group_truths.shares()
    assert (many.too_few, medium.too_few) == ("too few (0)", "too few (0)")
    assert few.estimate == pytest.approx(0.25)
    assert few.low < 0.25 < few.high
