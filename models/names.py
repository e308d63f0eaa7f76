"""Names of classes, which look the same in two Unicode forms."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from taillift.models.errors import UserError


def canonical(name: str) -> str:
    """Return a name in the one form in which names are compared: Unicode's NFC.

    The accent of `café` may be part of its last letter (as Linux and Windows write it) or follow it
    (as macOS does in the names of files). Both look the same, and are the same name.
    """
    return unicodedata.normalize("NFC", name)


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


def indices_by_name(names: Sequence[str]) -> dict[str, int]:
    """Return the index of each name, by the name itself and by its canonical form."""
    forms = {canonical(name): index for index, name in enumerate(names)}
    return forms | {name: index for index, name in enumerate(names)}


def index_of_name(name: str, indices: Mapping[str, int]) -> int | None:
    """Return the index of a name in any Unicode form, from the result of `indices_by_name`."""
    return indices.get(name, indices.get(canonical(name)))
