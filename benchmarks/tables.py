"""Results as Markdown."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

RESULTS: Final = Path(__file__).with_name("results")


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *rows))


def write_result(path: Path, parts: Sequence[str]) -> None:
    """Print the parts, and write them to `path` below the command and the machine."""
    text = "\n\n".join([_origin(), *parts]) + "\n"
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _origin() -> str:
    module = Path(sys.argv[0])
    name = module.parent.name if module.stem == "__main__" else module.stem
    words = [word if not Path(word).is_absolute() else Path(word).name for word in sys.argv[1:]]
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *words])
    cores = len(os.sched_getaffinity(0))
    return f"`{command}` on {cores} cores ({_processor()}), Python {platform.python_version()}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
