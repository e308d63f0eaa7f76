"""Names of classes, which look the same in two Unicode forms."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from taillift.models.errors import UserError, did_you_mean

# The label, in tables, of a photo that shows none of the classes.
NONE_OF_THE_CLASSES: Final = "none of the classes"
# Accents that follow one letter, at most, in any text (UAX #15, section 13). Putting more in order
# takes the square of their number.
MAX_ACCENTS: Final = 30


def canonical(name: str) -> str:
    """Return a name in the one form in which names are compared: Unicode's NFC.

    The accent of `café` may be part of its last letter (as Linux and Windows write it) or follow it
    (as macOS does in the names of files). Both look the same, and are the same name. A name with
    more than `MAX_ACCENTS` in a row, which is not a text, stays as it is.
    """
    if unicodedata.is_normalized("NFC", name):
        return name
    runs = groupby(name, lambda letter: unicodedata.category(letter).startswith("M"))
    longest = max((len(list(run)) for is_accent, run in runs if is_accent), default=0)
    return name if longest > MAX_ACCENTS else unicodedata.normalize("NFC", name)


def refuse_two_forms(names: Iterable[str], where: str) -> None:
    """Raise `UserError` with the code points if two different names have the same canonical form.

    `where` says in the message what holds the names.
    """
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(canonical(name), name)
        if other != name:
            forms = (" ".join(f"U+{ord(letter):04X}" for letter in one) for one in (other, name))
            raise UserError(
                f"{where} has the name {canonical(name)!r} in two Unicode forms, which look the "
                f"same ({' and '.join(forms)}): write it in one of them"
            )


def refuse_twice(path: Path, columns: Sequence[str], used: Iterable[str]) -> None:
    """Raise `UserError` if a `used` column of a table is there twice: the last would be read."""
    for name in used:
        if columns.count(name) > 1:
            raise UserError(f"{path} has the column {name!r} twice: remove one")


def indices_by_name(names: Sequence[str]) -> dict[str, int]:
    """Return the index of each name, by the name itself and by its canonical form."""
    forms = {canonical(name): index for index, name in enumerate(names)}
    return forms | {name: index for index, name in enumerate(names)}


def index_of_name(name: str, indices: Mapping[str, int]) -> int | None:
    """Return the index of a name in any Unicode form, from the result of `indices_by_name`."""
    return indices.get(name, indices.get(canonical(name)))


def indices_of_names(names: Iterable[str], known: Sequence[str], where: str) -> list[int]:
    """Return the index in `known` of each name, in any Unicode form, each index once.

    A name may also be several that are separated by commas. Raises `UserError`, which begins with
    `where` and gives the nearest name, if one is unknown.
    """
    indices = indices_by_name(known)
    found: dict[int, None] = {}
    for text in names:
        whole = index_of_name(text, indices)
        for name in [text] if whole is not None else text.split(","):
            index = index_of_name(name.strip(), indices)
            if index is None:
                hint = did_you_mean(name.strip(), known)
                raise UserError(f"{where}: the bundle has no class {name.strip()[:80]!r}{hint}")
            found[index] = None
    return list(found)
