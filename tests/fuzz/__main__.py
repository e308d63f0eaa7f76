"""The program behind `scripts/fuzz`."""

import argparse
import sys
import tempfile
from collections import Counter
from hashlib import sha256
from pathlib import Path
from random import Random
from time import monotonic
from typing import Final

from benchmarks.served import Served, taillift
from tests.fuzz.mutations import WAYS
from tests.fuzz.seeds import images, messages
from tests.fuzz.verdict import Inspector, replay
from tests.support import palette

CORPUS: Final = Path(__file__).parent / "corpus"
# Inputs between two looks at the service's health, and faults after which a run ends.
LOOK: Final = 50
MOST_FAULTS: Final = 20


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if no input has a fault, else 1."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Mutated requests, forms and images against a service."
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="send these instead")
    parser.add_argument(
        "--found", type=Path, default=Path("fuzz-found"), help="folder for inputs with a fault"
    )
    options = parser.parse_args(arguments)
    # No colour is slow or breaks the model: that is another test's.
    palette.NEAR, near = -1.0, palette.NEAR  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        bundle = palette.write_bundle(Path(folder) / "palette")
        palette.NEAR = near  # type: ignore[misc]
        with taillift(bundle, "--review-dir", str(Path(folder) / "review")) as service:
            if options.replay:
                faults = replay(Inspector(service), options.replay)
                for file, fault in faults:
                    print(f"{file}: {fault}")
                print(f"{len(options.replay)} inputs, {len(faults)} with a fault")
                return min(len(faults), 1)
            return fuzz(service, options.seed, options.minutes, options.found)


def fuzz(service: Served, seed: int, minutes: float, found: Path) -> int:
    """Send inputs for so long, save those with a fault, and return 1 if there are any."""
    inspector, counts, faults = Inspector(service), Counter[str](), 0
    pictures, requests = list(images().values()), list(messages().values())
    end, number = monotonic() + 60 * minutes, seed
    recent: list[bytes] = []
    while monotonic() < end and faults < MOST_FAULTS:
        random = Random(f"fuzz {number}")
        way = random.choice(WAYS)
        wire = way(random.choice(requests), pictures, random)
        counts[way.__name__] += 1
        recent = [*recent[-LOOK + 1 :], wire]
        number += 1
        fault = inspector.fault(wire)
        if fault is None and number % LOOK == 0 and (fault := inspector.health()):
            # Any of the last ones may be the cause.
            for each in recent:
                save(each, found)
        if fault:
            faults += 1
            print(f"{save(wire, found)}: {fault} (input {number - 1}, {way.__name__})", flush=True)
    print(", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())))
    share = f"{inspector.worst:.0%} of its bound: {inspector.worst_wire[:60]!r}"
    print(f"{number - seed:,} inputs, {faults} with a fault; the slowest took {share}")
    return min(faults, 1)


def save(wire: bytes, folder: Path) -> Path:
    """Write an input to a file named by its content, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{sha256(wire).hexdigest()[:12]}.http"
    file.write_bytes(wire)
    return file


if __name__ == "__main__":
    sys.exit(main())
