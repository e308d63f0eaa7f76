"""The cost of a challenger in the shadow: `python -m benchmarks.shadow BUNDLE`.

Photos come at half the capacity, first alone and then with a challenger that is offered a copy of
each, in turns; then at 1.2 times the capacity. The challenger is the same bundle with other labels.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.photos import read_photos
from benchmarks.served import Served, ask, served
from benchmarks.swaps import KEY, Run, capacity, moved_on, open_loop, percentile
from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.version_store import VersionStore
from taillift.models.errors import UserError

HALF, OVER = 0.5, 1.2


@dataclass(frozen=True)
class Phase:
    """Seconds at one rate: what was answered, how fast, and how many copies were."""

    name: str
    sent: int
    answered: int
    median: float
    p99: float
    copies: float


async def measure(
    service: Served, photos: Sequence[bytes], name: str, rate: float, seconds: float, shadow: bool
) -> Phase:
    """Send photos at a fixed rate, with or without a challenger."""
    await seat(service, shadow)
    run, before = Run(), service.metric("taillift_shadow_images_total")
    async with open_loop(service.url, photos, rate, run):
        await asyncio.sleep(seconds)
        copies = service.metric("taillift_shadow_images_total") - before
    good = [request.seconds for request in run.requests if request.status == 200]
    if not good:
        raise UserError(f"no photo was answered with 200 in {seconds:g} s")
    return Phase(
        name, len(run.requests), len(good), percentile(good, 0.5), percentile(good, 0.99), copies
    )


async def seat(service: Served, shadow: bool) -> None:
    """Begin or end the comparison, and wait until it has."""
    headers = {"X-API-Key": KEY}
    plan = {"version": 2, "shadow": {"share": 1.0, "few": 1.0}}
    async with httpx.AsyncClient(
        base_url=service.url, trust_env=False, headers=headers, timeout=60
    ) as admin:
        if shadow:
            await admin.put("/admin/roles/challenger", json=plan)
        else:
            await admin.delete("/admin/roles/challenger")
        wanted, end = 200 if shadow else 404, time.monotonic() + 60
        while (await admin.get("/admin/challenger")).status_code != wanted:
            if time.monotonic() > end:
                raise UserError("the challenger was not loaded within a minute")
            await asyncio.sleep(0.1)


async def measure_all(
    service: Served, photos: Sequence[bytes], seconds: float, turns: int
) -> list[Phase]:
    rate = await capacity(service.url, photos)
    phases = []
    for _ in range(turns):
        for name, shadow in (("half, alone", False), ("half, with a challenger", True)):
            phases.append(await measure(service, photos, name, HALF * rate, seconds, shadow))
    over = await measure(service, photos, "1.2 times", OVER * rate, seconds, True)
    return [*phases, over]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "shadow.md")
    options = parser.parse_args()
    photos = read_photos(options.photos)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = VersionStore.at(folder / "store")
        store.promote(store.add(options.bundle))
        store.add(moved_on(options.bundle, folder / "moved"))
        keys = folder / "keys"
        keys.write_text(KEY)
        command = [sys.executable, "-m", "taillift", "serve", "--store", str(store.folder)]
        command += ["--admin-keys-file", str(keys), "--precision", "fp32", "--port", "{port}"]
        with served(command, lambda url: ask(f"{url}/readyz") is not None) as service:
            phases = asyncio.run(measure_all(service, photos, options.seconds, options.turns))
    rows = [
        [
            phase.name,
            str(phase.sent),
            f"{100 * phase.answered / phase.sent:.1f} %",
            f"{1000 * phase.median:.0f}",
            f"{1000 * phase.p99:.0f}",
            f"{100 * phase.copies / phase.answered:.1f} %",
        ]
        for phase in phases
    ]
    titles = ["of the capacity", "sent", "answered", "median, ms", "p99, ms", "copies answered"]
    write_result(options.out, [markdown(titles, rows)])


if __name__ == "__main__":
    main()
