"""The error that every command reports as one line without a traceback, and help for its text.

So is the end by a signal before anything has begun.
"""

import os
import re
import signal
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from types import FrameType
from typing import Final, NoReturn

# Colours and other orders to a terminal, which libraries put into their messages.
CONTROLS: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f-\x9f]+")


# Names that an unknown one is compared with: each takes about 20 microseconds.
MAX_COMPARED: Final = 100


class UserError(Exception):
    """An error the user can fix. The text is one line: what is wrong, where, what to do."""


def end_in_one_line(number: int, _frame: FrameType | None) -> NoReturn:
    """End the process at once after a signal; for the time in which nothing needs an orderly end.

    An exception instead would be raised in the middle of an import, which may report it at length.
    """
    os.write(2, f"error: stopped by {signal.Signals(number).name} while starting\n".encode())
    os._exit(128 + number)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None if there is none like it.

    If there are many names, it is looked for among those with the same beginning only.
    """
    candidates = list(known)
    if len(candidates) > MAX_COMPARED:
        alike = (one for one in candidates if one[:2].casefold() == name[:2].casefold())
        candidates = list(islice(alike, MAX_COMPARED))
    matches = get_close_matches(name, candidates, n=1)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean "x"?)` with the known name most like `name`, or nothing.

    The text begins with a space and belongs directly behind the name in a message.
    """
    near = nearest(name, known)
    return f' (did you mean "{near}"?)' if near else ""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message.

    ONNX Runtime's messages have many lines, and the first one says what happened. If operators are
    missing, the line that names them is returned instead.
    """
    lines = str(error).splitlines() or [""]
    return next((line for line in lines if "does not support" in line), lines[0])


def first_lines(error: Exception) -> str:
    """Return the start of an exception's text in one line, or its type if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return CONTROLS.sub(" ", " ".join(lines[:3]))[:300] or type(error).__name__
