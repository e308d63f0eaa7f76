"""The classes of a set: their names in labels, their order, and their names in prompts."""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from taillift.models.errors import UserError, did_you_mean

CLASS_LIST: Final = "classnames.txt"
PROMPT_NAMES: Final = "classnames.json"

# Lines like `3 polar bear`, and lines like `/a/airfield 3`, as Places365 publishes its classes.
NUMBERED: Final = (
    re.compile(r"(?P<label>\d+)\s+(?P<name>.+)"),
    re.compile(r"(?:/[a-z]/)?(?P<name>.+?)\s+(?P<label>\d+)"),
)
# A class name after its WordNet number, as in ImageNet's lists.
SYNSET: Final = re.compile(r"n\d{8}\s+(?P<name>\S.*)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vocabulary:
    """The classes that the labels of a set may name, in the set's own order.

    `source` says in messages where the classes are listed. `shared_names` holds the name in prompts
    of every class that shares this name with another class on purpose. Raises `UserError` if there
    are fewer than two classes, if one is listed twice, or if a name is not valid UTF-8.
    """

    classes: tuple[str, ...]
    source: str
    shared_names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            found = "one class" if self.classes else "no class"
            raise UserError(f"{self.source} has {found}: at least two are needed")
        name, count = Counter(self.classes).most_common(1)[0]
        if count > 1:
            raise UserError(f"{self.source} has the class {name!r} twice: rename one")
        for name in self.classes:
            try:
                name.encode("utf-8")
            except UnicodeEncodeError:
                raise UserError(
                    f"{self.source}: the class {name!r} is not UTF-8: rename it"
                ) from None

    @cached_property
    def indices(self) -> dict[str, int]:
        """The index of each class, by its name."""
        return {name: index for index, name in enumerate(self.classes)}

    def index_of(self, name: str, where: str) -> int:
        """Return the index of the class `name`, which a label at `where` gives.

        Raises `UserError` with the most similar name if there is no such class.
        """
        if name not in self.indices:
            raise UserError(
                f"{where}: {self.source} has no class {name!r}{did_you_mean(name, self.classes)}: "
                "add it there, or correct the label"
            )
        return self.indices[name]

    def parse_index(self, label: str, where: str) -> int:
        """Return the class index that the label at `where` gives as a decimal number.

        Raises `UserError` if it is not a number or not the index of a class.
        """
        try:
            index = int(label)
        except ValueError:
            raise UserError(
                f"{where}: the label {label!r} is not a number: write one from 0 to "
                f"{len(self.classes) - 1}"
            ) from None
        if not 0 <= index < len(self.classes):
            raise UserError(
                f"{where}: there is no class {index}: {self.source} has classes 0 to "
                f"{len(self.classes) - 1}"
            )
        return index


def class_name(folder: str) -> str:
    """Return a folder's name with spaces in place of underscores."""
    return folder.replace("_", " ")


def read_class_list(path: Path) -> Vocabulary:
    """Read a list with one class a line.

    The lines are in the order of the labels, or each has its label before or after the name. The
    WordNet number before a name, as in ImageNet's lists, is removed unless another class has the
    same name: CLIP calls two of them "missile". Raises `UserError` if the file is missing or is not
    UTF-8 text, if its labels are not the numbers from 0 on, and for the reasons of `Vocabulary`.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: the labels are numbers, so it must name the classes, one a line, "
            "starting with label 0"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
    classes = _in_label_order([line.strip() for line in lines if line.strip()], path)
    synsets = [match for line in classes if (match := SYNSET.fullmatch(line))]
    if len(synsets) < len(classes):
        return Vocabulary(classes, str(path))
    counts = Counter(match["name"] for match in synsets)
    shared = {match[0]: match["name"] for match in synsets if counts[match["name"]] > 1}
    names = (match[0] if match[0] in shared else match["name"] for match in synsets)
    return Vocabulary(tuple(names), str(path), shared)


def prompt_names(folder: Path, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return the name of each class in prompts.

    It is the name in `folder`'s classnames.json, else the vocabulary's shared name, else the class
    with spaces in place of underscores. Raises `UserError` if the file is not a JSON object of
    names, or if two classes have the same name in prompts and the vocabulary does not intend it.
    """
    path = folder / PROMPT_NAMES
    try:
        given = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        given = {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(given, dict) or not all(
        isinstance(name, str) and name.strip() for name in given.values()
    ):
        raise UserError(f'{path} is not an object of names, like {{"t-shirt_01": "t-shirt"}}')
    if unknown := sorted(set(given) - set(vocabulary.classes)):
        logger.warning(
            "%s names %d classes that are not in the set, such as %s",
            path,
            len(unknown),
            unknown[0],
        )
    shared = vocabulary.shared_names
    names: list[str] = []
    first: dict[str, str] = {}
    for label in vocabulary.classes:
        name = given.get(label, shared.get(label, class_name(label)))
        other = first.setdefault(name, label)
        if other != label and not shared.get(label) == shared.get(other) == name:
            raise UserError(
                f"{path}: the classes {other!r} and {label!r} are both called {name!r}, so their "
                "prompts would be the same: give one of them another name there"
            )
        names.append(name)
    return tuple(names)


def _in_label_order(lines: list[str], path: Path) -> tuple[str, ...]:
    """Return the names in `lines`, sorted by the labels next to them if there are any."""
    misnumbered = False
    for pattern in NUMBERED:
        matches = [match for line in lines if (match := pattern.fullmatch(line))]
        classes = sorted((int(match["label"]), match["name"]) for match in matches)
        labels, names = {label for label, _ in classes}, {name for _, name in classes}
        # `class 0`, `class 1` and so on are whole names, not one name with several labels.
        if len(classes) < len(lines) or len(names) == 1:
            continue
        if labels == set(range(len(lines))):
            return tuple(name for _, name in classes)
        # Cars with their years are whole names, too: both the models and the years repeat.
        misnumbered |= len(lines) in (len(labels), len(names))
    if misnumbered:
        raise UserError(
            f"{path}: the numbers of its {len(lines)} lines are not those from 0 to "
            f"{len(lines) - 1}: correct them, or write the names alone in the order of the labels"
        )
    return tuple(lines)
