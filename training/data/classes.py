"""The classes that the labels of a set may name."""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Final

from taillift.models.errors import UserError


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


CLASS_LIST: Final = "classnames.txt"
HUMAN_NAMES: Final = "classnames.json"

# Lines as `3 polar bear` and as `/a/airfield 3`, which is how Places365 publishes its classes.
NUMBERED: Final = (
    re.compile(r"(?P<label>\d+)\s+(?P<name>.+)"),
    re.compile(r"(?:/[a-z]/)?(?P<name>.+?)\s+(?P<label>\d+)"),
)
# ImageNet's number of a thing, in front of its name.
SYNSET: Final = re.compile(r"n\d{8}\s+(?P<name>\S.*)")

logger = logging.getLogger(__name__)


def class_name(folder: str) -> str:
    """A folder's name as a person would write it."""
    return folder.replace("_", " ")


def read_class_list(path: Path) -> Vocabulary:
    """Read one class a line: in the order of the labels, or each with its label before or behind.

    ImageNet's number in front of a name is left out, unless others have the name, too: CLIP calls
    two things a missile. Raises `UserError` where the file is missing or not UTF-8 text, its labels
    are not those from 0 on, or what `Vocabulary` raises.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: labels are numbers, and it names their classes, one a line from "
            "label 0 on"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
    classes = _in_label_order([line.strip() for line in lines if line.strip()], path)
    synsets = [match for one in classes if (match := SYNSET.fullmatch(one))]
    if len(synsets) < len(classes):
        return Vocabulary(classes, str(path))
    found = Counter(match["name"] for match in synsets)
    called = {match[0]: match["name"] for match in synsets if found[match["name"]] > 1}
    alone = (match[0] if match[0] in called else match["name"] for match in synsets)
    return Vocabulary(tuple(alone), str(path), called)


def human_names(folder: Path, vocabulary: Vocabulary) -> tuple[str, ...]:
    """What each class is called in prompts.

    classnames.json in `folder` says it, else what the vocabulary calls the class, else its name
    without underscores. Raises `UserError` where the file is no JSON object of names, or where two
    classes are called the same and the vocabulary does not want it.
    """
    classes = vocabulary.classes
    given = _read_human_names(folder / HUMAN_NAMES)
    if unknown := sorted(set(given) - set(classes)):
        logger.warning(
            "%s names %d classes that the set has not, such as %s",
            folder / HUMAN_NAMES,
            len(unknown),
            unknown[0],
        )
    names = {one: given.get(one, vocabulary.called.get(one, class_name(one))) for one in classes}
    _check_distinct(names, vocabulary.called, folder / HUMAN_NAMES)
    return tuple(names.values())


def _check_distinct(names: Mapping[str, str], called: Mapping[str, str], path: Path) -> None:
    """No two classes have the same name, but those that are `called` so."""
    first: dict[str, str] = {}
    for one, name in names.items():
        other = first.setdefault(name, one)
        if other != one and not called.get(one) == called.get(other) == name:
            raise UserError(
                f"{path}: the classes {other!r} and {one!r} are both called {name!r}, and nothing "
                "tells their prompts apart: give one another name there"
            )


def _in_label_order(lines: list[str], path: Path) -> tuple[str, ...]:
    misnumbered = False
    for pattern in NUMBERED:
        matches = [match for line in lines if (match := pattern.fullmatch(line))]
        found = sorted((int(match["label"]), match["name"]) for match in matches)
        numbers, names = {number for number, _ in found}, {name for _, name in found}
        # `class 0`, `class 1`, and so on are names, not one name numbered.
        if len(found) < len(lines) or len(names) == 1:
            continue
        if numbers == set(range(len(lines))):
            return tuple(name for _, name in found)
        # So are cars with their years, in which models and years repeat.
        misnumbered |= len(lines) in (len(numbers), len(names))
    if misnumbered:
        raise UserError(
            f"{path}: the numbers of its {len(lines)} lines are not those from 0 to "
            f"{len(lines) - 1}: put these in front of the names, or write names alone in the order "
            "of the labels"
        )
    return tuple(lines)


def _read_human_names(path: Path) -> dict[str, str]:
    try:
        given = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(given, dict) or not all(
        isinstance(name, str) and name.strip() for name in given.values()
    ):
        raise UserError(f'{path} is not an object of names, like {{"t-shirt_01": "t-shirt"}}')
    return given
