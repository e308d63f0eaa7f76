"""The error that every command reports as one line without a traceback, and help for its text."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error the user can fix. The text is one line: what is wrong, where, what to do."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return "did you mean ...?" with the known names nearest to `name`, or `otherwise`."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def first_lines(error: Exception) -> str:
    """Return the start of an exception's text in one line, or its type if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:300] or type(error).__name__
