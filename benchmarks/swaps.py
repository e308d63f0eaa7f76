"""Versions that change under load: `python -m benchmarks.swaps BUNDLE`.

A store gets the bundle, and the same bundle with each label moved on by one class, so that every
answer shows which version gave it. Photos come at a fixed rate, answered or not, while the admin
API promotes one version and then the other, each once no request waits any more. The table has what
was lost, and the times of requests that were sent while a version was loaded, after that until no
more requests waited than there are clients, and of all others.
"""

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from benchmarks.photos import read_photos
from benchmarks.served import Served, ask, served
from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.folder import MANIFEST, read_manifest, write_manifest
from taillift.models.bundle.version_store import VersionStore
from taillift.models.errors import UserError

KEY: Final = "the-key-of-this-benchmark"
CLIENTS: Final = 8
CAPACITY_SECONDS: Final = 15.0
# Seconds between two swaps, and before the first, in which nothing is loaded.
REST: Final = 4.0
# Seconds after which a backlog that does not shrink is left as it is.
CATCH_UP: Final = 30.0
# Seconds between two looks whether a version was refused.
LOOK: Final = 1.0
COUNTED: Final = ("VmRSS", "Threads")


@dataclass(frozen=True)
class Request:
    """One request: when it was sent, its seconds, its status, its version and its label."""

    sent: float
    seconds: float
    status: int
    version: str
    label: str
    photo: int


@dataclass
class Swap:
    """When a promotion was asked for, when the new version answered, and when no request waited."""

    began: float
    ended: float = 0.0
    over: float = 0.0


@dataclass
class Run:
    """All requests and swaps, and what the process took after each swap."""

    sent: int = 0
    requests: list[Request] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def is_near_a_swap(self, request: Request) -> bool:
        return any(swap.began <= request.sent <= swap.over for swap in self.swaps)

    async def answered_by(self, number: int, seconds: float) -> None:
        """Wait until a version has given the newest answer, or so many seconds."""
        end = time.monotonic() + seconds
        while self.requests[-1].version != str(number) and time.monotonic() < end:
            await asyncio.sleep(0.005)

    async def caught_up(self) -> None:
        """Wait until the requests that loading has held up are answered, but not for ever."""
        end = time.monotonic() + CATCH_UP
        while self.sent - len(self.requests) > CLIENTS and time.monotonic() < end:
            await asyncio.sleep(0.1)


def moved_on(bundle: Path, target: Path) -> Path:
    """Copy a bundle with each class's label given to the class before it."""
    shutil.copytree(bundle, target)
    manifest = read_manifest(target)
    labels = [*manifest.labels[1:], manifest.labels[0]]
    classes = tuple(
        info.model_copy(update={"label": label})
        for info, label in zip(manifest.classes, labels, strict=True)
    )
    # The report is about the labels as they were.
    shutil.rmtree(target / "report", ignore_errors=True)
    files = {name: file for name, file in manifest.files.items() if (target / name).exists()}
    write_manifest(
        target / MANIFEST, manifest.model_copy(update={"classes": classes, "files": files})
    )
    return target


def status_of(served_at: Served, run: Run) -> None:
    """Note the memory, threads and open files of the service."""
    lines = Path(f"/proc/{served_at.pid}/status").read_text().splitlines()
    rows = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(COUNTED)}
    run.memory.append(int(rows["VmRSS"]) / 2**10)
    run.threads.append(int(rows["Threads"]))
    handles = Path(f"/proc/{served_at.pid}/fd").iterdir()
    # The sockets are those of the clients.
    run.files.append(sum(not str(handle.readlink()).startswith("socket:") for handle in handles))


async def send(client: httpx.AsyncClient, photo: int, data: bytes, run: Run) -> None:
    run.sent += 1
    begin = time.monotonic()
    try:
        answer = await client.post(
            "/classify", content=data, params={"top_k": 1}, headers={"Content-Type": "image/jpeg"}
        )
        status, version = answer.status_code, answer.headers.get("X-Taillift-Version", "")
        results = answer.json().get("results", [])
        label = results[0]["predictions"][0]["label"] if results else ""
    except (httpx.HTTPError, ValueError) as error:
        status, version, label = 0, "", type(error).__name__
    run.requests.append(Request(begin, time.monotonic() - begin, status, version, label, photo))


@asynccontextmanager
async def open_loop(
    url: str, photos: Sequence[bytes], rate: float, run: Run
) -> AsyncIterator[None]:
    """Send photos at a fixed rate during the block, and wait for the last answers."""
    tasks: set[asyncio.Task[None]] = set()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=url,
        trust_env=False,
        timeout=60,
        limits=limits,
    ) as client:

        async def pace() -> None:
            start, number = time.monotonic(), 0
            while True:
                await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
                photo = number % len(photos)
                task = asyncio.create_task(send(client, photo, photos[photo], run))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1

        pacer = asyncio.create_task(pace())
        try:
            yield
        finally:
            pacer.cancel()
            await asyncio.gather(*tasks)


async def capacity(url: str, photos: Sequence[bytes]) -> float:
    """Return the photos a second that clients who wait for each answer get."""
    run = Run()

    async def client(index: int) -> None:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as one:
            end = time.monotonic() + CAPACITY_SECONDS
            while time.monotonic() < end:
                photo = (index + len(run.requests)) % len(photos)
                await send(one, photo, photos[photo], run)

    await asyncio.gather(*map(client, range(CLIENTS)))
    answered = sum(request.status == 200 for request in run.requests)
    if not answered:
        raise UserError(f"{url} answered no photo with 200 in {CAPACITY_SECONDS:g} s")
    return answered / CAPACITY_SECONDS


async def swap_often(
    service: Served, photos: Sequence[bytes], rate: float, swaps: int, run: Run
) -> None:
    """Promote 2, 1, 2 and so on, each once the one before it has drained and no request waits."""
    headers = {"X-API-Key": KEY}
    async with (
        open_loop(service.url, photos, rate, run),
        httpx.AsyncClient(base_url=service.url, trust_env=False, headers=headers) as admin,
    ):
        await asyncio.sleep(2 * REST)
        for index in range(swaps):
            number = 2 - index % 2
            swap = Swap(time.monotonic())
            answer = await admin.put("/admin/roles/champion", json={"version": number})
            if answer.status_code != 202:
                raise UserError(f"the promotion was answered with {answer.status_code}")
            while (report := (await admin.get("/admin/versions")).json())["served"] != number:
                if report["versions"][number - 1]["state"] == "refused":
                    raise UserError(report["versions"][number - 1]["reason"])
                # A report takes the service some milliseconds, so it is not asked for often.
                await run.answered_by(number, LOOK)
            swap.ended = time.monotonic()
            run.swaps.append(swap)
            while any(row["state"] == "draining" for row in report["versions"]):
                await asyncio.sleep(0.1)
                report = (await admin.get("/admin/versions")).json()
            await run.caught_up()
            swap.over = time.monotonic()
            await asyncio.sleep(REST)
            await run.caught_up()
            status_of(service, run)


def percentile(seconds: Sequence[float], share: float) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def tables(run: Run, expected: Sequence[dict[str, str]], rate: float) -> list[str]:
    """Return what was lost, the times, and the memory, as tables."""
    during = {
        "while nothing is loaded": [one for one in run.requests if not run.is_near_a_swap(one)],
        "while loading": [
            one for one in run.requests if any(s.began <= one.sent <= s.ended for s in run.swaps)
        ],
        "after it, until no request waits": [
            one for one in run.requests if any(s.ended < one.sent <= s.over for s in run.swaps)
        ],
    }
    good = [request for request in run.requests if request.status == 200]
    wrong = [one for one in good if expected[one.photo][one.version] != one.label]
    statuses = Counter(one.status for one in run.requests if one.status != 200)
    versions = Counter(one.version for one in good)
    rows = [
        ["requests", f"{len(run.requests):,}"],
        ["a second", f"{rate:.1f}"],
        ["swaps", str(len(run.swaps))],
        ["not answered with 200", ", ".join(f"{n} times {s}" for s, n in statuses.items()) or "0"],
        ["answers that are not those of the version they name", str(len(wrong))],
        ["answered by version 1, by version 2", f"{versions['1']}, {versions['2']}"],
        ["seconds from the promotion to the first answer, median", f"{seconds_of(run):.2f}"],
    ]
    times = [
        [name, str(len(part)), *(f"{1000 * percentile(seconds, p):.0f}" for p in (0.5, 0.99))]
        for name, part in during.items()
        if (seconds := [one.seconds for one in part if one.status == 200])
    ]
    after = [
        [name, *(f"{values[place]:.0f}" for place in (0, len(values) // 2, -1))]
        for name, values in (
            ("resident memory, MiB", run.memory),
            ("threads", run.threads),
            ("open files", run.files),
        )
        if values
    ]
    middle = f"after swap {len(run.memory) // 2 + 1}"
    return [
        markdown(["", "count"], rows),
        markdown(["requests sent", "count", "median, ms", "p99, ms"], times),
        markdown(["", "after the first swap", middle, "after the last"], after),
    ]


def seconds_of(run: Run) -> float:
    return statistics.median(swap.ended - swap.began for swap in run.swaps)


def expected_labels(store: VersionStore, photos: Sequence[bytes]) -> list[dict[str, str]]:
    """Return each photo's label by each version, without a server."""
    labels: list[dict[str, str]] = [{} for _ in photos]
    for number in (1, 2):
        classifier = Classifier.open(store.path(number))
        for photo, data in enumerate(photos):
            labels[photo][str(number)] = classifier.classify(data).label
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.9, help="of the capacity")
    parser.add_argument("--rate", type=float, help="photos a second, instead of a share")
    parser.add_argument("--count", type=int, default=64, help="of different photos")
    parser.add_argument("--out", type=Path, default=RESULTS / "swaps.md")
    options = parser.parse_args()
    photos = read_photos(options.photos)[: options.count]
    run = Run()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = VersionStore.at(folder / "store")
        store.promote(store.add(options.bundle))
        store.add(moved_on(options.bundle, folder / "moved"))
        expected = expected_labels(store, photos)
        keys = folder / "keys"
        keys.write_text(KEY)
        command = [sys.executable, "-m", "taillift", "serve", "--store", str(store.folder)]
        command += ["--admin-keys-file", str(keys), "--precision", "fp32", "--port", "{port}"]
        with served(command, lambda url: ask(f"{url}/readyz") is not None) as service:
            rate = options.rate
            if rate is None:
                rate = options.share * asyncio.run(capacity(service.url, photos))
            asyncio.run(swap_often(service, photos, rate, options.swaps, run))
    write_result(options.out, tables(run, expected, rate))


if __name__ == "__main__":
    main()
