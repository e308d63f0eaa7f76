"""The classes of a set: their names in labels, their order, and their names in prompts."""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from taillift.models.bundle.photo_sources import UTF16_BOMS
from taillift.models.errors import UserError, did_you_mean
from taillift.models.names import canonical, refuse_two_forms
from taillift.training.data.prompts import is_cut, pieces, prompt_form

# The first of these files in a folder names the classes. iNaturalist 2018 has the second, and
# Places365 the third.
CLASS_LISTS: Final = ("classnames.txt", "categories.json", "categories_places365.txt")
PROMPT_NAMES: Final = "classnames.json"

# Lines like `3 polar bear`, and lines like `/a/airfield 3`, as Places365 publishes its classes.
NUMBERED: Final = (
    re.compile(r"(?P<label>\d+)\s+(?P<name>.+)"),
    re.compile(r"(?:/[a-z]/)?(?P<name>.+?)\s+(?P<label>\d+)"),
)
# A class name after its WordNet number, as in ImageNet's lists.
SYNSET: Final = re.compile(r"n\d{8}\s+(?P<name>\S.*)")
# CLIP's names of ImageNet's classes, which it publishes in order and some of them twice.
IMAGENET_CLASSES: Final = 1000

logger = logging.getLogger(__name__)


class NamePairs(list[tuple[str, str]]):
    """The labels and names of a JSON object, in order, with labels that repeat."""


@dataclass(frozen=True)
class Vocabulary:
    """The classes that the labels of a set may name, in the set's own order.

    `source` says in messages where the classes are listed. `prompt_names` holds names in prompts
    that a published class list gives, and `shared_names` the name of every class that shares it
    with another class on purpose. The names of classes become canonical. Raises `UserError` if
    there is no class, if one is listed twice or in two Unicode forms, or if a name is not valid
    UTF-8.
    """

    classes: tuple[str, ...]
    source: str
    shared_names: Mapping[str, str] = field(default_factory=dict)
    prompt_names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_two_forms(self.classes, self.source)
        object.__setattr__(self, "classes", tuple(map(canonical, self.classes)))
        if not self.classes:
            self.refuse_single()
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

    def refuse_single(self) -> None:
        """Raise `UserError` if there are fewer than two classes: there is nothing to learn."""
        if len(self.classes) < 2:
            found = "one class" if self.classes else "no class"
            raise UserError(f"{self.source} has {found}: at least two are needed")

    @cached_property
    def indices(self) -> dict[str, int]:
        """The index of each class, by its name."""
        return {name: index for index, name in enumerate(self.classes)}

    def index_of(self, name: str, where: str) -> int:
        """Return the index of the class `name`, in any Unicode form; a label at `where` gives it.

        Raises `UserError` with the most similar name if there is no such class.
        """
        name = canonical(name)
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


def class_list(folder: Path) -> Path:
    """Return the path of the list that names the classes in a folder; it need not exist."""
    paths = [folder / name for name in CLASS_LISTS]
    return next((path for path in paths if path.is_file()), paths[0])


def read_class_list(path: Path) -> Vocabulary:
    """Read a list with one class a line, or iNaturalist's categories in JSON.

    The lines are in the order of the labels, or each has its label before or after the name. The
    folder before a name, as in the lists of Places-LT (`airfield airfield`) and ImageNet
    (`n01440764 tench`), is removed unless another class has the same name: CLIP calls two of
    ImageNet's classes "missile". A list of ImageNet's 1,000 names without folders may have names
    twice, too; these classes then have their labels before their names.

    Raises `UserError` if the file is missing or is not UTF-8 text, if its labels are not the
    numbers from 0 on, and for the reasons of `Vocabulary`.
    """
    lines = _lines_in_label_order(path)
    matches = [SYNSET.fullmatch(line) for line in lines]
    if all(matches):
        names = [match["name"] for match in matches if match]
        return _named_apart(lines, names, path)
    if _repeat_folders(lines):
        return Vocabulary(tuple(line.split(maxsplit=1)[1] for line in lines), str(path))
    if len(lines) == IMAGENET_CLASSES or path.suffix == ".json":
        return _named_apart([f"{label} {name}" for label, name in enumerate(lines)], lines, path)
    return Vocabulary(tuple(lines), str(path))


def names_of_folders(path: Path, folders: Sequence[str]) -> dict[str, str]:
    """Return the name that a class list gives to each of the folders.

    It gives them by lines like `n01440764 tench`, or by labels that are the folders' names. The
    result is empty if the list does not name every folder. Raises `UserError` if the list cannot be
    read.
    """
    lines = _lines_in_label_order(path)
    labels = {str(label): line for label, line in enumerate(lines)}
    parts = [line.split(maxsplit=1) for line in lines]
    by_folder = {canonical(part[0]): part[1] for part in parts if len(part) == 2}
    for names in (by_folder, labels):
        if all(canonical(folder) in names for folder in folders):
            return {canonical(folder): names[canonical(folder)] for folder in folders}
    return {}


def prompt_names(folder: Path, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return the name of each class in prompts, as `names_in_prompts` does.

    Raises `UserError` also if a class has no name for a prompt, or if two classes have the same
    prompt and the vocabulary does not intend it.
    """
    names = names_in_prompts(folder, vocabulary)
    refuse_equal_prompts(folder, vocabulary, names)
    return names


def names_in_prompts(folder: Path, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return the name of each class in prompts.

    It is the name in `folder`'s classnames.json, else the one that the vocabulary gives, else the
    class with spaces in place of underscores. Warnings tell of names there that are not used, and
    of prompts that are too long. Raises `UserError` if the file is not a JSON object of names.
    """
    path = folder / PROMPT_NAMES
    given = _read_prompt_names(path)
    if unknown := sorted(set(given) - set(vocabulary.classes)):
        logger.warning(
            "%s names %d classes that are not in the set, such as %s",
            path,
            len(unknown),
            unknown[0],
        )
    published = {**vocabulary.prompt_names, **vocabulary.shared_names}
    names = [
        given.get(label, published.get(label, class_name(label))) for label in vocabulary.classes
    ]
    if cut := [name for name in names if is_cut(name)]:
        logger.warning(
            "%s: the prompts of %d classes are longer than CLIP reads, and their ends are ignored, "
            "such as %r: give them shorter names there",
            path,
            len(cut),
            cut[0],
        )
    return tuple(names)


def same_prompts(
    vocabulary: Vocabulary, names: Sequence[str]
) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Return pairs of classes whose prompts are the same to CLIP, each with its name in prompts.

    Names that the vocabulary shares on purpose are left out.
    """
    shared = vocabulary.shared_names
    pairs = []
    first: dict[object, tuple[str, str]] = {}
    for label, name in zip(vocabulary.classes, names, strict=True):
        other, other_name = first.setdefault(prompt_form(name), (label, name))
        if other != label and not shared.get(label) == shared.get(other) == name == other_name:
            pairs.append(((other, other_name), (label, name)))
    return pairs


def refuse_equal_prompts(folder: Path, vocabulary: Vocabulary, names: Sequence[str]) -> None:
    """Raise `UserError` if a name in `names` is empty in a prompt, or two prompts are the same."""
    path = folder / PROMPT_NAMES
    for label, name in zip(vocabulary.classes, names, strict=True):
        if not pieces(name.replace("_", " ")):
            raise UserError(
                f"{path}: the class {label!r} has no name for a prompt ({name!r}): give it one "
                "there"
            )
    if pairs := same_prompts(vocabulary, names):
        (other, other_name), (label, name) = pairs[0]
        called = (
            f"both called {name!r}"
            if name == other_name
            else f"called {other_name!r} and {name!r}, which are equal to CLIP"
        )
        more = f" (and {len(pairs) - 1:,} more pairs)" if len(pairs) > 1 else ""
        raise UserError(
            f"{path}: the classes {other!r} and {label!r} are {called}, so their prompts would be "
            f"the same{more}: give one of them another name there"
        )


def _read_prompt_names(path: Path) -> dict[str, str]:
    try:
        pairs = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=NamePairs)
    except FileNotFoundError:
        return {}
    # RecursionError: too many nested brackets.
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(pairs, NamePairs) or not all(
        isinstance(name, str) and name.strip() for _, name in pairs
    ):
        raise UserError(f'{path} is not an object of names, like {{"t-shirt_01": "t-shirt"}}')
    refuse_two_forms((label for label, _ in pairs), str(path))
    given = dict(pairs)
    if len(given) < len(pairs):
        label, _ = Counter(label for label, _ in pairs).most_common(1)[0]
        raise UserError(f"{path} names the class {label!r} twice: remove one")
    return {canonical(label): name for label, name in given.items()}


def _named_apart(lines: Sequence[str], names: Sequence[str], path: Path) -> Vocabulary:
    """Return classes with these names; those whose name is there twice have their whole lines."""
    counts = Counter(names)
    shared = {
        canonical(line): name for line, name in zip(lines, names, strict=True) if counts[name] > 1
    }
    classes = (line if counts[name] > 1 else name for line, name in zip(lines, names, strict=True))
    return Vocabulary(tuple(classes), str(path), shared)


def _repeat_folders(lines: Sequence[str]) -> bool:
    """Return whether the lines are a folder and its name, which mostly have the same letters."""
    parts = [line.split(maxsplit=1) for line in lines]
    if not all(len(part) == 2 for part in parts) or len({part[0] for part in parts}) < len(lines):
        return False
    alike = sum(_letters(folder) == _letters(name) for folder, name in parts)
    return 2 * alike > len(lines)


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _lines_in_label_order(path: Path) -> tuple[str, ...]:
    """Return the names in a class list, sorted by the labels next to them if there are any."""
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: the labels are numbers, so it must name the classes, one a line, "
            "starting with label 0"
        ) from None
    except (OSError, ValueError) as error:
        raise unreadable(path, "text", error) from error
    if path.suffix == ".json":
        return _categories(text, path)
    return _in_label_order([line.strip() for line in text.splitlines() if line.strip()], path)


def _categories(text: str, path: Path) -> tuple[str, ...]:
    try:
        rows = json.loads(text)
        names = {int(row["id"]): str(row["name"]).strip() for row in rows}
    # An id of 1e999 overflows; RecursionError: too many nested brackets.
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(
            f'{path} is not a list of classes like {{"id": 0, "name": "Hermodice carunculata"}}'
        ) from error
    if sorted(names) != list(range(len(rows))) or not all(names.values()):
        raise UserError(
            f"{path}: its {len(rows)} classes need the ids from 0 to {len(rows) - 1}, each once, "
            "and names: correct them"
        )
    return tuple(names[label] for label in range(len(rows)))


def _in_label_order(lines: list[str], path: Path) -> tuple[str, ...]:
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


def unreadable(path: Path, kind: str, error: Exception) -> UserError:
    """Return the error for a file of text that cannot be read; `kind` is CSV or text."""
    if isinstance(error, UnicodeDecodeError):
        hint = 'spreadsheets call the format "CSV UTF-8"'
        if error.object.startswith(UTF16_BOMS):
            hint = 'it is in UTF-16, which Windows also calls "Unicode"'
        return UserError(f"{path} is not in UTF-8: save it so; {hint}")
    return UserError(f"{path} cannot be read as {kind}: {error}")
