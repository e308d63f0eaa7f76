"""Tests of the text that error messages share."""

from taillift.models.errors import did_you_mean, first_line


def test_the_most_similar_name_is_suggested() -> None:
    assert did_you_mean("yelow", ["red", "yellow", "mellow"]) == ' (did you mean "yellow"?)'
    assert did_you_mean("yelow", iter(["yellow"])) == ' (did you mean "yellow"?)'


def test_nothing_is_suggested_if_no_name_is_similar() -> None:
    assert did_you_mean("yelow", ["red", "blue"]) == ""
    assert did_you_mean("yelow", []) == ""


def test_the_line_that_names_missing_operators_is_the_one_that_is_shown() -> None:
    error = RuntimeError("Exception during initialization\nX does not support: Attention\n\n")
    assert first_line(error) == "X does not support: Attention"
    assert first_line(RuntimeError("first\nsecond")) == "first"
    assert first_line(RuntimeError()) == ""
