"""Small pieces of text that error messages share."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean "x"?)` with the known name most like `name`, or nothing.

    The text begins with a space and belongs directly behind the name in a message.
    """
    matches = get_close_matches(name, list(known), n=1)
    return f' (did you mean "{matches[0]}"?)' if matches else ""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message.

    ONNX Runtime's messages have many lines, and the first one says what happened. If operators are
    missing, the line that names them is returned instead.
    """
    lines = str(error).splitlines() or [""]
    return next((line for line in lines if "does not support" in line), lines[0])
