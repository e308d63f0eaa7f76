"""The demo: train, export and serve on sample photos with taillift's own commands.

`scripts/demo` runs it after the installation. So that the first prediction comes soon, it trains
on at most `MOST_PHOTOS` photos of a class, for `STEPS` steps, and leans a little toward the rare
classes by `TAU`. Its test photos are all those of the sample set.
"""

import argparse
import csv
import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from taillift.training.data.dataset import Dataset, load_dataset
from taillift.training.data.photo import Photo, Split

SAMPLE = "wardrobe-lt"
PHOTOS = Path("runs/demo/demo.csv")
CHECKPOINT = Path("runs/demo/lift-0.safetensors")
BUNDLE = Path("bundles/demo")
# With more than 100 photos, the most frequent classes are still in the group many.
MOST_PHOTOS = {"train": 101, "val": 6, "test": 20}
# Ten passes over these photos. After six, the rare classes were 4.6 points worse (two seeds).
STEPS = 270
TAU = 1.1
# `taillift compare` takes about this many times as long as the demo.
COMPARISON = 3
READY_SECONDS = 60
console = Console(markup=False, highlight=False)
# Requests to this machine do not go through a proxy that the environment names.
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> None:
    parser = argparse.ArgumentParser(description="From the sample photos to served predictions.")
    parser.add_argument("--once", action="store_true", help="exit after the predictions")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    require_free(options.port)
    start = time.monotonic()

    sample = load_dataset(SAMPLE)
    write_table(sample, PHOTOS)
    taillift(f"train {PHOTOS} --steps {STEPS} --set loss.tau={TAU} --out {CHECKPOINT} --replace")
    taillift(f"export {CHECKPOINT} {PHOTOS} --out {BUNDLE} --replace")
    with server(f"serve {BUNDLE} --port {options.port}", options.port) as (url, process):
        console.print(predictions(url, sample))
        seconds = time.monotonic() - start
        console.print(f"{seconds:.0f} s since the installation", style="dim")
        minutes = -(-COMPARISON * seconds // 60)
        console.print(
            "To compare LIFT with training the head alone, and with no training, on all photos "
            f"(about {minutes:.0f} minutes on this machine):\n"
            f"$ taillift compare {SAMPLE} --recipes zero-shot,head,lift"
        )
        if not options.once:
            console.print(f"Serving on {url} (try {url}/docs) until Ctrl-C")
            process.wait()


def write_table(dataset: Dataset, target: Path) -> None:
    """Write a table of the demo's photos: the first `MOST_PHOTOS` of each class and split."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "split"))
        for name, most in MOST_PHOTOS.items():
            split: Split = getattr(dataset, name)
            taken: Counter[int] = Counter()
            for photo, label in zip(split.photos, split.labels, strict=True):
                taken[label] += 1
                if taken[label] <= most:
                    path = Path(str(photo)).resolve()
                    rows.writerow((path, dataset.classes[label], name))


def require_free(port: int) -> None:
    """Exit if the port is in use, before the training and not after it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            sys.exit(f"error: port {port} is in use: stop what uses it, or pass --port")


def taillift(arguments: str) -> None:
    """Print a taillift command as a user would type it, and run it; exit if it fails."""
    console.print(f"\n$ taillift {arguments}", style="bold")
    if code := subprocess.call([sys.executable, "-m", "taillift", *shlex.split(arguments)]):
        sys.exit(code)


@contextmanager
def server(arguments: str, port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a `taillift serve` command during the block; yield its address once it is ready."""
    console.print(f"\n$ taillift {arguments}", style="bold")
    process = subprocess.Popen([sys.executable, "-m", "taillift", *shlex.split(arguments)])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url, process
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the service is ready; exit if it ends or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(process.returncode or 1)
        try:
            direct.open(f"{url}/readyz").close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    sys.exit(f"error: the service was not ready after {READY_SECONDS} s")


def predictions(url: str, dataset: Dataset) -> Table:
    """Classify one test photo of every third class, from the most frequent to the rarest.

    Returns a table of the predictions.
    """
    assert dataset.test is not None
    grid = Table(title=f"POST {url}/classify", title_justify="left", box=SIMPLE_HEAD)
    for title in ("a photo of", "trained on", "predicted", "confidence", ""):
        grid.add_column(title, justify="right" if title in ("trained on", "confidence") else "left")
    for index in range(0, len(dataset.classes), 3):
        photo = dataset.test.photos[dataset.test.labels.index(index)]
        best = classify(url, photo)["results"][0]["predictions"][0]
        name = dataset.classes[index]
        grid.add_row(
            name,
            str(dataset.counts[index]),
            best["label"],
            f"{best['confidence']:.2f}",
            "right" if best["label"] == name else "wrong",
        )
    return grid


def classify(url: str, photo: Photo) -> dict[str, Any]:
    """Return the service's JSON answer for a photo."""
    request = urllib.request.Request(
        f"{url}/classify?ensemble=full", photo.read(), {"Content-Type": "image/jpeg"}
    )
    with direct.open(request) as response:
        result: dict[str, Any] = json.load(response)
        return result


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        console.print("stopped")
