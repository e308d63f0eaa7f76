"""Tests of names in two Unicode forms."""

from pathlib import Path

import pytest

from taillift.models.errors import UserError
from taillift.models.names import (
    canonical,
    index_of_name,
    indices_by_name,
    refuse_twice,
    refuse_two_forms,
)

FORMS = [
    ("caf\u00e9", "cafe\u0301"),
    ("\u00c5", "\u212b"),
    ("\uac00", "\u1100\u1161"),
    ("\u1ec7", "e\u0323\u0302"),
]


@pytest.mark.parametrize(("composed", "other"), FORMS)
def test_a_name_is_found_in_any_unicode_form(composed: str, other: str) -> None:
    assert canonical(other) == composed
    for known in (composed, other):
        indices = indices_by_name(["tea", known])
        assert [index_of_name(name, indices) for name in (composed, other, "tea")] == [1, 1, 0]
    assert index_of_name("cafe", indices_by_name([composed, "tea"])) is None


def test_a_name_with_more_accents_than_any_text_has_stays_as_it_is() -> None:
    """Putting them in order would take the square of their number."""
    for pair in ("\u0301\u0316", "\u0f73\u0301"):
        for number, stays in ((15, False), (16, True)):
            name = "e" + pair * number
            assert (canonical(name) == name) is stays


def test_of_two_labels_that_look_alike_each_is_found_by_itself() -> None:
    """A bundle of an earlier version may have both."""
    composed, other = FORMS[0]
    for labels in ([composed, other], [other, composed]):
        indices = indices_by_name(labels)
        assert [index_of_name(label, indices) for label in labels] == [0, 1]


@pytest.mark.parametrize(("composed", "other"), FORMS)
def test_two_forms_are_refused_with_their_code_points(composed: str, other: str) -> None:
    refuse_two_forms([other, "tea", other], "the list")
    points = [" ".join(f"U+{ord(letter):04X}" for letter in name) for name in (other, composed)]
    with pytest.raises(UserError, match=r"the list has the name .* in two Unicode forms") as error:
        refuse_two_forms([other, "tea", composed], "the list")
    assert f"({points[0]} and {points[1]})" in str(error.value)


def test_a_column_that_is_there_twice_is_refused_also_among_more_without_a_name() -> None:
    """Programs for tables write empty columns at the end."""
    refuse_twice(Path("a.csv"), ["id", "label", "", "", ""], ["id", "label"])
    with pytest.raises(UserError, match=r"a\.csv has the column 'label' twice: remove one"):
        refuse_twice(Path("a.csv"), ["id", "label", "label", "", "", ""], ["id", "label"])
