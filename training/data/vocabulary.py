"""The classes that the labels of a set may name."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property

from models import UserError


@dataclass(frozen=True)
class Vocabulary:
    """`classes` in the set's own order, and for messages where they stand.

    `called` says what a person calls those whose name does not say it. Raises `UserError` where
    the classes are fewer than two, one stands twice, or one cannot be written down.
    """

    classes: tuple[str, ...]
    source: str
    called: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            found = "one class" if self.classes else "no class"
            raise UserError(f"{self.source} has {found}: at least two are needed")
        name, count = Counter(self.classes).most_common(1)[0]
        if count > 1:
            raise UserError(f"{self.source} has the class {name!r} twice: rename one")
        for name in self.classes:
            if not _is_utf8(name):
                raise UserError(f"{self.source}: the class {name!r} is not UTF-8: rename it")

    def named(self, name: str, where: str) -> int:
        """The number of the class `name`, which stands at `where`.

        Raises `UserError` where there is none, with the nearest name.
        """
        if name in self._numbers:
            return self._numbers[name]
        near = get_close_matches(name, self.classes, 1)
        advice = f"did you mean {near[0]!r}?" if near else "add it there, or remove it here"
        raise UserError(f"{where}: {self.source} has no class {name!r}; {advice}")

    def numbered(self, label: str, where: str) -> int:
        """The number written as `label` at `where`; raises `UserError` where it is not one."""
        try:
            number = int(label)
        except ValueError:
            raise UserError(
                f"{where}: the label {label!r} is not a number: write one from 0 to "
                f"{len(self.classes) - 1}"
            ) from None
        if not 0 <= number < len(self.classes):
            raise UserError(
                f"{where}: there is no class {number}: {self.source} has classes 0 to "
                f"{len(self.classes) - 1}"
            )
        return number

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
