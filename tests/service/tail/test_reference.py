"""References, and the prediction rates that follow from them."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.streams import simulate
from taillift.models.errors import UserError
from taillift.service.tail.confusion import estimate_confusion
from taillift.service.tail.reference import (
    Source,
    expect,
    own_reference,
    read_reference,
    reference_from,
)


def test_training_uniform_and_measured_shares() -> None:
    confusion = estimate_confusion(["many", "few"], [(0, 0, 10), (1, 1, 20), (1, 0, 10)])

    def prior(source: Source) -> list[float]:
        return list(reference_from(source, [300, 100], confusion).prior)

    assert prior(Source.TRAIN) == [0.75, 0.25]
    assert prior(Source.UNIFORM) == [0.5, 0.5]
    assert prior(Source.MEASURED) == [0.25, 0.75]


def test_measured_rates_are_about_those_of_the_predictions_in_validation() -> None:
    confusion = estimate_confusion(["many", "few"], [(0, 0, 1_000), (1, 1, 2_000), (1, 0, 1_000)])
    reference = reference_from(Source.MEASURED, [1, 1], confusion)
    rates = expect(reference, confusion).classes.mean
    np.testing.assert_allclose(rates, [0.5, 0.5], atol=0.002)


def test_measuring_needs_held_out_photos() -> None:
    with pytest.raises(UserError, match=r"no held-out photos.*choose the reference train"):
        reference_from(Source.MEASURED, [1, 1], estimate_confusion(["many", "few"], []))


def test_expected_rates_include_the_confusions() -> None:
    confusion = estimate_confusion(["many", "few"], [(0, 0, 9_000), (0, 1, 1_000), (1, 1, 10_000)])
    expected = expect(own_reference({"a": 9, "b": 1}, ["a", "b"]), confusion)
    np.testing.assert_allclose(expected.classes.mean, [0.81, 0.19], atol=1e-3)
    np.testing.assert_allclose(expected.groups.mean, [0.81, 0, 0.19], atol=1e-3)
    # Without its own images, b is still predicted for a tenth of the images of a.
    assert expected.mistakes[1] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("held_out", [0, 1, 5, 20])
def test_intervals_contain_true_rates_however_few_photos_were_held_out(held_out: int) -> None:
    inside = []
    for seed in range(25):
        bundle = simulate(seed, held_out)
        confusion = bundle.confusion
        reference = reference_from(Source.UNIFORM, bundle.counts, confusion)
        low, high = expect(reference, confusion).classes.interval(0.99)
        truth = reference.prior @ bundle.matrix
        inside.append(((low <= truth) & (truth <= high)).mean())
    assert np.mean(inside) > 0.92


def test_more_photos_narrow_the_interval() -> None:
    def width(held_out: int) -> float:
        bundle = simulate(0, held_out)
        confusion = bundle.confusion
        low, high = expect(
            reference_from(Source.UNIFORM, bundle.counts, confusion), confusion
        ).classes.interval(0.95)
        return float((high - low).mean())

    assert width(5) > 1.3 * width(20) > 1.6 * width(80)


def test_the_file_of_an_operator_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mix.csv"
    path.write_text("class,weight\nb,3\na,1\n", "utf-8")
    reference = read_reference(path, ["a", "b"])
    assert (reference.source, reference.prior.tolist()) == (Source.OWN, [0.25, 0.75])


def test_a_file_that_a_spreadsheet_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mix.csv"
    path.write_text("class,weight\r\nb,3\r\na,1\r\n", "utf-8-sig")
    assert read_reference(path, ["a", "b"]).prior.tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class,weight\na,1\nc,1\n", "names the class 'c', which the bundle lacks"),
        ("class,weight\na,1\n", "has no weight for 'b'"),
        ("class,weight\na,1\nb,1\nb,2\n", "names the class 'b' 2 times"),
        ("class,weight\na,-1\nb,1\n", "weight of 'a' is -1"),
        ("class,weight\na,nan\nb,1\n", "weight of 'a' is nan"),
        ("class,weight\na,0\nb,0\n", "every weight of the reference is 0"),
        ("class,weight\na,much\nb,1\n", "is not a reference"),
        ("class,weight\n" + "a" * 140_000, "is not a reference"),
        ("label,share\na,1\nb,1\n", "needs the columns class,weight"),
    ],
)
def test_a_file_that_is_not_a_reference_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mix.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=words):
        read_reference(path, ["a", "b"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"mix\.csv cannot be read \(No such file .*\): name a CSV file"
    ):
        read_reference(tmp_path / "mix.csv", ["a"])


def test_a_reference_names_a_class_in_any_unicode_form_but_not_in_two(tmp_path: Path) -> None:
    path = tmp_path / "reference.csv"
    for label, name in (
        ("caf\u00e9", "cafe\u0301"),
        ("\u212b", "\u00c5"),
        ("\u1100\u1161", "\uac00"),
    ):
        path.write_text(f"class,weight\n{name},3\ntea,1\n", "utf-8")
        assert list(read_reference(path, [label, "tea"]).prior) == [0.75, 0.25]
        path.write_text(f"class,weight\n{name},3\ntea,1\n{label},3\n", "utf-8")
        with pytest.raises(UserError, match="in two Unicode forms"):
            read_reference(path, [label, "tea"])
