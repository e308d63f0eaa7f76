"""Class names: the list that numbers them, and what a person calls them."""

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from models import UserError
from training.data.vocabulary import Vocabulary

CLASS_LIST: Final = "classnames.txt"
HUMAN_NAMES: Final = "classnames.json"

# Lines as `3 polar bear` and as `/a/airfield 3`, which is how Places365 publishes its classes.
NUMBERED: Final = (
    re.compile(r"(?P<label>\d+)\s+(?P<name>.+)"),
    re.compile(r"(?:/[a-z]/)?(?P<name>.+?)\s+(?P<label>\d+)"),
)
# ImageNet's number of a thing, in front of its name.
SYNSET: Final = re.compile(r"n\d{8}\s+(?=\S)")

logger = logging.getLogger(__name__)


def class_name(folder: str) -> str:
    """A folder's name as a person would write it."""
    return folder.replace("_", " ")


def read_class_list(path: Path) -> Vocabulary:
    """Read one class a line: in the order of the labels, or each with its label before or behind.

    Raises `UserError` where the file is missing or not UTF-8 text, or what `Vocabulary` raises.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: labels are numbers, and it names their classes, one a line from "
            "label 0 on"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
    return Vocabulary(_in_label_order([line.strip() for line in lines if line.strip()]), str(path))


def human_names(folder: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """What each class is called: by classnames.json in `folder`, else its name without underscores.

    Raises `UserError` where the file is no JSON object of names, or calls two classes the same.
    """
    given = _read_human_names(folder / HUMAN_NAMES)
    if unknown := sorted(set(given) - set(classes)):
        logger.warning(
            "%s names %d classes that the set has not, such as %s",
            folder / HUMAN_NAMES,
            len(unknown),
            unknown[0],
        )
    names = tuple(given.get(name, class_name(name)) for name in classes)
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        first, second = [one for one, human in zip(classes, names, strict=True) if human == name][
            :2
        ]
        raise UserError(
            f"{folder / HUMAN_NAMES}: the classes {first!r} and {second!r} are both called "
            f"{name!r}, and nothing tells their prompts apart: give one another name there"
        )
    return names


def _in_label_order(lines: list[str]) -> tuple[str, ...]:
    for pattern in NUMBERED:
        matches = [match for line in lines if (match := pattern.fullmatch(line))]
        named = {int(match["label"]): match["name"] for match in matches}
        # `class 0`, `class 1`, and so on are names, not one name numbered.
        distinct = len(set(named.values())) == len(lines)
        if distinct and set(named) == set(range(len(lines))):
            return tuple(named[label] for label in range(len(lines)))
    if all(SYNSET.match(line) for line in lines):
        return tuple(SYNSET.sub("", line, count=1) for line in lines)
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
