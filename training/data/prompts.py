"""The prompt with a class's name, as CLIP's tokenizer sees it."""

import html
from functools import cache
from typing import Any, Final

import ftfy
import regex

# The template in which names are compared; that of recipes has an article that fits the name.
TEMPLATE: Final = "a photo of a {}."
# The tokens that CLIP's text tower reads of a prompt, with one for its start and one for its end.
CONTEXT: Final = 77
# The pieces of a text that the tokenizer encodes each for itself, whatever space is between them:
# an English ending after an apostrophe, a word, a digit, a run of other signs.
PIECES: Final = regex.compile(r"'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")


def pieces(text: str) -> tuple[str, ...]:
    """Return the pieces of a text that the tokenizer encodes, each for itself.

    Before that, it mends the encoding, unites full width with usual letters, replaces HTML's
    entities and makes all letters small (Radford et al. 2021; `SimpleTokenizer` in open_clip).
    """
    plain = html.unescape(html.unescape(ftfy.fix_text(text)))
    return tuple(PIECES.findall(" ".join(plain.split()).lower()))


def prompt_for(name: str) -> str:
    """Return the prompt with a class's name, in which underscores become spaces."""
    return TEMPLATE.replace("{}", name.replace("_", " "))


def prompt_form(name: str) -> tuple[str, ...] | tuple[int, ...]:
    """Return what the text tower reads of the prompt with this name.

    Two names with equal forms have the same prompt. The form is the prompt's pieces or, if it might
    be too long, those of its tokens that are read.
    """
    prompt = prompt_for(name)
    found = pieces(prompt)
    return found if _is_short(found) else tuple(_tokenizer().encode(prompt)[: CONTEXT - 2])


def is_cut(name: str) -> bool:
    """Return whether the prompt with this name has more tokens than the text tower reads."""
    prompt = prompt_for(name)
    return not _is_short(pieces(prompt)) and len(_tokenizer().encode(prompt)) > CONTEXT - 2


def _is_short(found: tuple[str, ...]) -> bool:
    """Return whether these pieces fit for sure: no token is shorter than a byte."""
    return sum(len(piece.encode()) for piece in found) <= CONTEXT - 2


@cache
def _tokenizer() -> Any:
    # `models.lift` makes torchvision importable, which open_clip imports.
    from open_clip import SimpleTokenizer

    import taillift.models.lift  # noqa: F401

    return SimpleTokenizer()
