"""Results of benchmarks as Markdown, with the command and the machine."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

RESULTS: Final = Path(__file__).with_name("results")


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with the first column aligned left and the others right."""
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *rows))


def write_result(path: Path, parts: Sequence[str]) -> None:
    """Print the parts and write them to `path`, below the command and the machine."""
    module = Path(sys.argv[0])
    name = module.parent.name if module.stem == "__main__" else module.stem
    # An absolute path is of this machine only.
    words = [word if not Path(word).is_absolute() else Path(word).name for word in sys.argv[1:]]
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *words])
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    cores = len(os.sched_getaffinity(0))
    origin = f"`{command}` on {cores} cores ({processor}), Python {platform.python_version()}"
    text = "\n\n".join([origin, *parts]) + "\n"
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
